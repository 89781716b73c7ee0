"""Rows of pictures with names, which all domains compare models in; GIFs; files of samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
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


INK = ((0, 0, 0), (214, 69, 65), (44, 110, 170), (60, 140, 80))  # of the curves of `overlay`, in order


def overlay(curves: Mapping[str, Tensor], seconds: float | None, label: str) -> Image.Image:
    """Curves [T] over each other, the first in black.

    Args:
        curves: by name.
        seconds: what they cover; None numbers their points.
        label: name and unit of their values.
    """
    values = {name: curve.detach().float().cpu() for name, curve in curves.items()}
    low, high = (
        float(f(torch.cat([curve.nan_to_num(0.0) for curve in values.values()]))) for f in (torch.min, torch.max)
    )
    image, (width, height), edge = Image.new("RGB", (480, 200), "white"), (480, 200), 24
    pen = ImageDraw.Draw(image)
    for (name, curve), ink, i in zip(values.items(), INK, range(len(INK)), strict=False):
        across = np.linspace(edge, width - edge, len(curve))
        up = height - edge - (curve.nan_to_num(0.0).numpy() - low) / max(high - low, 1e-9) * (height - 2 * edge)
        pen.line(list(zip(across.tolist(), up.tolist(), strict=True)), fill=ink, width=2)
        pen.text((edge + 110 * i, 4), name, fill=ink)
    pen.text(
        (2, height - 14), f"{low:.3g} .. {high:.3g} {label}" + (f", {seconds:.3g} s" if seconds else ""), fill="black"
    )
    return image
