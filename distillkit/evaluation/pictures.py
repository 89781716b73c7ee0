"""Rows of pictures with names, which all domains compare models in; GIFs; files of samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.files import write_atomic


def labelled(strips: dict[str, Image.Image]) -> Image.Image:
    """Stack pictures vertically, each with its name on the left.

    Raises:
        ValueError: there are no pictures.
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
    """Save frames uint8 [height, width, 3] as an endless GIF with this duration of a frame.

    All frames share one palette, so that colours do not flicker.
    """
    palette = Image.fromarray(np.concatenate(frames)).quantize(255)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, loop=0)


def save_files(media: Any, samples: Tensor, cond: Cond, folder: Path, most: int = 4) -> list[Path]:
    """Save the first samples in the domain's file formats (sound, video, meshes), if it has any."""
    if not hasattr(media, "save"):
        return []
    return media.save(samples[:most], {name: value[:most] for name, value in cond.items()}, folder)


def save_picture(path: Path, image: Any) -> None:
    """Save a picture as PNG, atomically."""
    write_atomic(path, lambda temporary: image.save(temporary, format="PNG"))
