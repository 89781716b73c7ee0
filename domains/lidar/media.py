"""Pictures of scenes as points, and files of them.

n: scenes; N: points of each; h, w: pixels. Pictures look down, ahead is up; or ahead from behind.
Colours tell heights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from distillkit.files import write_text
from distillkit.report.viewer import Item, by_height, page
from domains.lidar.files import write_bin, write_ply

CELL = 224  # pixels along each side of a view from above
SUPER = 2  # pixels drawn for each shown, along each side
DOT = 3  # drawn pixels of a point, along each side
SHOWN = 3  # scenes in a comparison
LEAST = 5.0  # metres from the middle to the sides of a view, at least
RADIUS = 0.05  # metres, of a point on the page to turn scenes on
GAP, LINE = 4, 16  # pixels between cells, and of a line of text
INK, GREY = (20, 22, 26), (96, 96, 96)  # behind points, and between cells


class Frame(NamedTuple):
    """What all views of some scenes show.

    Attributes:
        half: metres from the middle to the sides.
        low, high: heights in metres of the first and the last colour.
    """

    half: float
    low: float
    high: float

    def colours(self, points: np.ndarray) -> np.ndarray:
        """Colours of points [N, 3] by their height, uint8 [N, 3]."""
        return by_height(points[:, 2], self.low, self.high)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """The points [N, 3] that it shows."""
        return points[(np.abs(points) <= self.half).all(1)]


def picture(samples: Tensor, cond: dict[str, Tensor] | None = None, columns: int = 4) -> Image.Image:
    """Scenes [n, N, 3] in metres from above, row by row, as far as `cond["part"]` reaches."""
    scenes = _arrays(samples)
    frame = framed(_arrays(cond["part"]) if cond and "part" in cond else scenes)
    cells = [from_above(scene, frame) for scene in scenes]
    for i in range(0, len(cells), columns):
        cells[i] = _measured(cells[i], frame)
    return sheet([cells[i : i + columns] for i in range(0, len(cells), columns)])


def compare(rows: dict[str, Tensor], cond: dict[str, Tensor]) -> Image.Image:
    """Some scenes: the scan and the sets of samples side by side, from above and below from behind.

    The student stands between its teacher and the real scenes.
    """
    if not rows:
        raise ValueError("there is nothing to compare; give at least one row of samples")
    names = sorted(rows, key=lambda name: (name == "real", name == "student"))
    sets = {"input": cond["part"], **{name: rows[name] for name in names}}
    scenes = {name: _arrays(samples[:SHOWN]) for name, samples in sets.items()}
    frame = framed(scenes["input"] + scenes.get("real", []))
    lines = []
    for number in range(len(scenes[names[0]])):
        each = [found[number] for found in scenes.values()]
        lines.append([from_above(scene, frame) for scene in each])
        lines[-1][0] = _measured(lines[-1][0], frame)
        lines.append([from_behind(scene, frame) for scene in each])
    return sheet(lines, list(sets))


def save(samples: Tensor, cond: dict[str, Tensor], folder: str | Path) -> list[Path]:
    """Each scene as coloured points (`scene_N.ply`) and for KITTI's readers (`scene_N.bin`).

    On the page scenes.html they can be turned, each beside the scan that it was made for.
    """
    return save_scenes(_arrays(cond["part"]), _arrays(samples), folder)


def save_scenes(scans: Sequence[np.ndarray], scenes: Sequence[np.ndarray], folder: str | Path) -> list[Path]:
    """`save` for scans and scenes [N, 3] of any numbers of points."""
    paths, items = [], []
    frame = framed(scans)
    for i, (scan, scene) in enumerate(zip(scans, scenes, strict=True)):
        paths += write_scene(Path(folder) / f"scene_{i}.ply", torch.from_numpy(scene), frame)
        for what, points in (("input", scan), ("completed", scene)):
            shown = frame.inside(points)
            items.append(Item(f"scene {i}, {what}", shown, frame.colours(shown), radius=RADIUS))
    note = "Scans, and what was made of them, coloured by height."
    return [*paths, write_text(Path(folder) / "scenes.html", page(items, "Scenes", note))]


def write_scene(path: Path, points: Tensor, frame: Frame) -> list[Path]:
    """Points [N, 3] as a .ply file, coloured by height, and beside it as KITTI's .bin."""
    name = path.stem.replace(".pcd", "_pcd") + ".bin"  # NAME.pcd.bin would be nuScenes', with other columns
    colours = torch.from_numpy(frame.colours(points.numpy()))
    return [write_ply(path, points, colours), write_bin(path.with_name(name), points)]


def framed(scenes: Sequence[np.ndarray]) -> Frame:
    """The frame that shows nearly all points of scenes [N, 3]."""
    points = np.concatenate(list(scenes))
    half = 1.02 * float(np.quantile(np.abs(points[:, :2]).max(1), 0.999))
    low, high = np.quantile(points[:, 2], [0.01, 0.99])
    return Frame(max(half, LEAST), float(low), float(high))


def from_above(points: np.ndarray, frame: Frame) -> Image.Image:
    """Points [N, 3], ahead is up; the highest hide those below."""
    order = np.argsort(points[:, 2], kind="stable")
    scale = CELL / 2 / frame.half
    return _dots(points[order], scale * (frame.half - points[order][:, [1, 0]]), CELL, frame)


def from_behind(points: np.ndarray, frame: Frame) -> Image.Image:
    """Points [N, 3] as one sees them looking ahead; the nearest hide those behind."""
    order = np.argsort(-points[:, 0], kind="stable")
    scale, top = CELL / 2 / frame.half, frame.high + 1
    height = max(1, math.ceil(scale * (top - frame.low + 1)))
    return _dots(points[order], scale * (np.array([frame.half, top]) - points[order][:, 1:]), height, frame)


def _dots(points: np.ndarray, at: np.ndarray, height: int, frame: Frame) -> Image.Image:
    """Points [N, 3] as dots at pixels [N, 2], to the right and down; the last hide the others."""
    image = np.full((height * SUPER, CELL * SUPER, 3), INK, np.uint8)
    colours, corner = frame.colours(points), np.floor(at * SUPER).clip(-1e6, 1e6).astype(np.int64) - DOT // 2
    steps = np.stack(np.meshgrid(np.arange(DOT), np.arange(DOT)), -1).reshape(1, -1, 2)
    places, tints = (corner[:, None] + steps).reshape(-1, 2), colours.repeat(DOT**2, 0)
    within = ((places >= 0) & (places < [image.shape[1], image.shape[0]])).all(1)
    image[places[within, 1], places[within, 0]] = tints[within]
    return Image.fromarray(image).reduce(SUPER)


def _measured(image: Image.Image, frame: Frame) -> Image.Image:
    """A view from above with a bar of a round number of metres."""
    about = frame.half / 2
    metres = max(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500) if step <= max(about, 1))
    pen, long = ImageDraw.Draw(image), round(metres * CELL / 2 / frame.half)
    left, low = 8, image.height - 9
    pen.line([(left, low), (left + long, low)], fill="white", width=2)
    pen.text((left, low - 3), f"{metres} m", fill="white", font=ImageFont.load_default(), anchor="lb")
    return image


def _arrays(samples: Tensor) -> list[np.ndarray]:
    """Scenes [n, N, 3] as float32 [N, 3] each; a diverging model's are shown too."""
    if samples.ndim != 3 or samples.shape[2] != 3 or not samples.numel():
        raise ValueError(f"a picture needs scenes [n, points, 3] with n >= 1, got {list(samples.shape)}")
    return [*samples.detach().float().cpu().nan_to_num(0.0, 0.0, 0.0).numpy()]


def sheet(lines: Sequence[Sequence[Image.Image]], heads: Sequence[str] = ()) -> Image.Image:
    """Lines of images of one width, below the names of the columns if they have names."""
    top = LINE if heads else 0
    width, height = max(map(len, lines)) * (CELL + GAP) + GAP, top + GAP
    whole = Image.new("RGB", (width, height + sum(line[0].height + GAP for line in lines)), GREY)
    pen = ImageDraw.Draw(whole)
    for i, name in enumerate(heads):
        middle = GAP + i * (CELL + GAP) + CELL // 2, LINE // 2 + 2
        pen.text(middle, name, fill="white", font=ImageFont.load_default(), anchor="mm")
    for line in lines:
        for i, cell in enumerate(line):
            whole.paste(cell, (GAP + i * (CELL + GAP), height))
        height += line[0].height + GAP
    return whole
