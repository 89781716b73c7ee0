"""Rows of pictures with names, which all domains compare models in; curves; GIFs; files."""

from collections.abc import Mapping, Sequence
from io import BytesIO
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


def overlay(curves: Mapping[str, Tensor], seconds: float | None, label: str) -> Image.Image:
    """Curves [T] over each other: the first, a target, broad and grey behind what was achieved.

    NaN is a gap.

    Args:
        curves: by name; those of other lengths cover the same time.
        seconds: from the beginning to the end; None for steps of the first curve.
        label: of the values, with their unit.

    Raises:
        ValueError: there are no curves, or one has not the shape [T] with T >= 2.
    """
    from matplotlib.figure import Figure

    if not curves:
        raise ValueError("there is nothing to draw; give at least one curve")
    for name, curve in curves.items():
        if curve.ndim != 1 or len(curve) < 2:
            raise ValueError(f"{name} is no curve: it must have the shape [T] with T >= 2, got {list(curve.shape)}")
    end = len(next(iter(curves.values()))) - 1 if seconds is None else seconds
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    for i, curve in enumerate(curves.values()):
        style = {"linewidth": 1.6} if i else {"linewidth": 5, "color": "0.75", "solid_capstyle": "round"}
        axes.plot(np.linspace(0, end, len(curve)), curve.detach().float().cpu().numpy(), **style)
    axes.set_xlabel("step" if seconds is None else "seconds")
    axes.set_ylabel(label, parse_math=False)
    axes.set_xlim(0, end)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    legend = figure.legend(axes.lines, list(curves), loc="outside upper left", ncols=3, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    return Image.open(drawn).convert("RGB")


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


def save_student(media: Any, student: Any, cond: Cond, folder: Path) -> list[Path]:
    """Save what the student itself is beside its samples, such as a scene, if the domain knows."""
    return media.of_student(student, cond, folder) if hasattr(media, "of_student") else []


def save_picture(path: Path, image: Any) -> None:
    """Save a picture as PNG, atomically."""
    write_atomic(path, lambda temporary: image.save(temporary, format="PNG"))
