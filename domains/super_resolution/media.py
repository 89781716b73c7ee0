"""Pictures of enlarged photographs: sheets, and rows side by side with a part of them close up.

N: samples; H, W: height, width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation.pictures import save_picture
from domains.super_resolution.measures import luma
from domains.super_resolution.resize import enlarged

CELL = 192  # pixels of a photograph's longer side, about
SHOWN = 4  # photographs in a comparison
GAP, LINE = 4, 16  # pixels between cells, and of a line of text
GREY, FRAME = (96, 96, 96), (255, 64, 64)


def picture(samples: Tensor, cond: dict[str, Tensor] | None = None, columns: int = 4) -> Image.Image:
    """Samples [N, 3, H, W] in [-1, 1] as a sheet, row by row.

    Small ones are enlarged by whole pixels, large ones shrunk.
    """
    cells = [_sized(image) for image in images(samples)]
    return _sheet([cells[i : i + columns] for i in range(0, len(cells), columns)])


def compare(rows: dict[str, Tensor], cond: dict[str, Tensor]) -> Image.Image:
    """Some photographs: input, bicubic, and the sets of samples, each above a part close up.

    The student stands between its teacher and the real photographs. Shown are the photographs
    of most detail and of each its part of most detail. Both are sought in the last set, that of
    the real photographs if they are given.
    """
    if not rows:
        raise ValueError("there is nothing to compare; give at least one row of samples")
    rows = {name: rows[name] for name in sorted(rows, key=lambda name: (name == "real", name == "student"))}
    last = [*rows.values()][-1].detach().float().cpu().nan_to_num(0.0)
    size, low = last.shape[-2:], cond["low"][: len(last)].float().cpu()
    close = [max(2, side * min(max(size) // 2, CELL // 2) // max(size)) for side in size]
    detail, corners = _detail(last, close)
    shown = detail.topk(min(SHOWN, len(last))).indices.sort().values.tolist()
    strips = {"input": _nearest(low, size), "bicubic": enlarged(low, size), **rows}
    columns = {name: images(samples[shown]) for name, samples in strips.items()}
    lines = []
    for i, (top, left) in enumerate(corners[number] for number in shown):
        box = (left, top, left + close[1], top + close[0])
        lines.append([_framed(column[i], box) for column in columns.values()])
        whole = lines[-1][0].size
        lines.append([column[i].crop(box).resize(whole, Image.Resampling.NEAREST) for column in columns.values()])
    return _sheet(lines, list(columns))


def save(samples: Tensor, cond: dict[str, Tensor] | None, folder: str | Path) -> list[Path]:
    """Each sample as `photo_N.png`, in its own size."""
    paths = [Path(folder) / f"photo_{i}.png" for i in range(len(samples))]
    for path, image in zip(paths, images(samples), strict=True):
        save_picture(path, image)
    return paths


def images(samples: Tensor) -> list[Image.Image]:
    """Samples [N, 3, H, W] in [-1, 1] as images of 8 bits."""
    if samples.ndim != 4 or samples.shape[1] != 3 or len(samples) == 0:
        raise ValueError(f"a picture needs samples [N, 3, H, W] with N >= 1, got {list(samples.shape)}")
    x = samples.detach().float().cpu().nan_to_num(0.0)  # a diverging model is shown, in grey
    levels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).contiguous().numpy()
    return [Image.fromarray(image) for image in levels]


def _nearest(low: Tensor, size: Sequence[int]) -> Tensor:
    """Observations [N, 3, h, w] with each pixel as a square."""
    return F.interpolate(low, size=tuple(size), mode="nearest-exact")


def _sized(image: Image.Image) -> Image.Image:
    """An image of about `CELL` pixels."""
    longest = max(image.size)
    ratio = max(1, round(CELL / longest)) if longest < 2 * CELL else CELL / longest
    how = Image.Resampling.NEAREST if ratio >= 1 else Image.Resampling.LANCZOS
    return image.resize([max(1, round(side * ratio)) for side in image.size], how)


def _detail(x: Tensor, size: Sequence[int]) -> tuple[Tensor, list[tuple[int, int]]]:
    """How steep images [N, 3, H, W] are where they are steepest, [N], and where: (top, left).

    A place is a part of this size (height, width).
    """
    y = luma(x)
    steep = (y[:, 1:, :-1] - y[:, :-1, :-1]).abs() + (y[:, :-1, 1:] - y[:, :-1, :-1]).abs()
    stride = [max(1, side // 4) for side in size]
    found = F.avg_pool2d(steep[:, None], [side - 1 for side in size], stride)[:, 0]
    most, places = found.flatten(1).max(1)
    columns = found.shape[2]
    return most, [(place // columns * stride[0], place % columns * stride[1]) for place in places.tolist()]


def _framed(image: Image.Image, box: Sequence[int]) -> Image.Image:
    """An image of about `CELL` pixels with a frame around a part of it."""
    shown = _sized(image)
    ratio = shown.width / image.width
    ImageDraw.Draw(shown).rectangle([round(side * ratio) - (i > 1) for i, side in enumerate(box)], outline=FRAME)
    return shown


def _sheet(lines: Sequence[Sequence[Image.Image]], heads: Sequence[str] = ()) -> Image.Image:
    """Lines of images of one size, below the names of the columns if they have names."""
    width, height = lines[0][0].size
    font, head = ImageFont.load_default(), LINE if heads else 0
    columns = max(map(len, lines))
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, len(lines) * (height + GAP) + GAP + head), GREY)
    pen = ImageDraw.Draw(sheet)
    for i, name in enumerate(heads):
        pen.text((GAP + i * (width + GAP) + width // 2, LINE // 2 + 2), name, fill="white", font=font, anchor="mm")
    for j, line in enumerate(lines):
        for i, cell in enumerate(line):
            sheet.paste(cell, (i * (width + GAP) + GAP, j * (height + GAP) + GAP + head))
    return sheet
