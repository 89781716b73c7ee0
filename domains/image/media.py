"""Pictures of images: a grid of samples, and rows side by side."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from distillkit.evaluation.pictures import labelled, save_picture

FILES = 64  # pixels of the smallest images that are worth a file
CELL = 56  # pixels that a small image is about enlarged to
GAP = 1
GREY = (96, 96, 96)


def picture(samples: Tensor, cond: dict[str, Tensor] | None = None, columns: int = 8) -> Image.Image:
    """Samples [N, C, H, W] in [-1, 1] as a grid, row by row.

    Small images are enlarged by whole pixels.
    """
    cells = _cells(samples)
    columns = min(columns, len(cells))
    width, height = cells[0].width + GAP, cells[0].height + GAP
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), GREY)
    for i, cell in enumerate(cells):
        sheet.paste(cell, (i % columns * width + GAP, i // columns * height + GAP))
    return sheet


def compare(rows: dict[str, Tensor], cond: dict[str, Tensor] | None = None, columns: int = 12) -> Image.Image:
    """One labelled row for each set of samples, such as teacher and student from the same noise.

    Shows the first `columns` samples of each.
    """
    return labelled({name: picture(samples[:columns], columns=columns) for name, samples in rows.items()})


def save(samples: Tensor, cond: dict[str, Tensor] | None, folder: str | Path) -> list[Path]:
    """Every image of at least 64 pixels a side as a file of its own, image_0.png ..."""
    if min(samples.shape[-2:]) < FILES:
        return []
    paths = [Path(folder) / f"image_{i}.png" for i in range(len(samples))]
    for path, cell in zip(paths, _cells(samples), strict=True):
        save_picture(path, cell)
    return paths


def _cells(samples: Tensor) -> list[Image.Image]:
    if samples.ndim != 4 or samples.shape[1] not in (1, 3) or len(samples) == 0:
        raise ValueError(f"a picture needs samples [N, C, H, W] with N >= 1 and C = 1 or 3, got {list(samples.shape)}")
    x = samples.detach().float().cpu().nan_to_num(0.0)  # a diverging model is shown, in grey
    levels_NHWC = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).expand(-1, -1, -1, 3)
    zoom = max(1, round(CELL / max(samples.shape[-2:])))
    size = (samples.shape[-1] * zoom, samples.shape[-2] * zoom)
    return [Image.fromarray(cell.numpy()).resize(size, Image.Resampling.NEAREST) for cell in levels_NHWC.contiguous()]
