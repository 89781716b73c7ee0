"""Rows of pictures under their names, which every domain shows student and teacher in, and pictures that move."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def labelled(strips: dict[str, Image.Image]) -> Image.Image:
    """The pictures one below the other, each with its name on the left.

    Raises:
        ValueError: there are none.
    """
    if not strips:
        raise ValueError("there is nothing to compare; give at least one row of samples")
    font = ImageFont.load_default()
    margin = max(int(font.getlength(name)) for name in strips) + 12
    height = sum(strip.height for strip in strips.values())
    sheet = Image.new("RGB", (margin + max(strip.width for strip in strips.values()), height), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for name, strip in strips.items():
        sheet.paste(strip, (margin, top))
        pen.text((margin - 6, top + strip.height // 2), name, fill="black", font=font, anchor="rm")
        top += strip.height
    return sheet


def save_gif(frames: Sequence[np.ndarray], path: Path, milliseconds: float) -> None:
    """Frames uint8 [height, width, 3], each on show for so long, over and over.

    All with the palette of them together, so that colours do not flicker.
    """
    palette = Image.fromarray(np.concatenate(frames)).quantize(255)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
