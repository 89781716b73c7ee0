"""Pictures of range images: the image itself above a bird's-eye view of its points."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from distillkit.evaluation.pictures import labelled
from domains.lidar.projection import back_project, metres
from domains.lidar.rays import between_beams

SHOWN = 4  # images in a comparison
CELL = 256  # pixels of a side of a bird's-eye view
SEEN = 25.0  # metres from the sensor that it shows
GAP = 6  # pixels between cells
HEIGHTS = (-2.5, 4.0)  # metres above the sensor, from the first to the last colour


class RangeMedia:
    """Pictures of range images [N, 2, H, W].

    Args:
        elevations: [H], of the beams, in degrees.
        farthest: what is farther, in metres, is no return.
    """

    def __init__(self, elevations: Tensor, farthest: float):
        self.elevations, self.farthest = elevations, farthest

    def picture(self, samples: Tensor, cond: dict[str, Tensor] | None = None, columns: int = SHOWN) -> Image.Image:
        """Cells of samples in rows: range by colour above the points from above, by height."""
        if samples.ndim != 4 or samples.shape[1] != 2 or len(samples) == 0:
            raise ValueError(f"a picture needs range images [N, 2, H, W] with N >= 1, got {list(samples.shape)}")
        cells = [self._cell(sample[0].detach().float().cpu().nan_to_num(-1.0)) for sample in samples]
        height, width = cells[0].shape[:2]
        lines = -(-len(cells) // columns)
        sheet = np.full((lines * (height + GAP), min(columns, len(cells)) * (width + GAP), 3), 255, np.uint8)
        for number, cell in enumerate(cells):
            top, left = number // columns * (height + GAP), number % columns * (width + GAP)
            sheet[top : top + height, left : left + width] = cell
        return Image.fromarray(sheet)

    def compare(self, rows: dict[str, Tensor], cond: dict[str, Tensor]) -> Image.Image:
        """The first images: what is given, lines between it, and the sets of samples below."""
        rays = cond["rays"][:SHOWN].cpu()
        rows = {"given": rays[:, :2], "between": between_beams(rays, self.farthest)} | {
            name: x[:SHOWN] for name, x in rows.items()
        }
        return labelled({name: self.picture(x) for name, x in rows.items()})

    def _cell(self, level: Tensor) -> np.ndarray:
        """Levels [H, W] of one image as pixels."""
        ranges = metres(level, self.farthest)
        image = np.where((ranges > 0)[..., None], _coloured(-level.numpy(), -1.0, 0.6), 0)
        times = max(1, round(CELL / image.shape[1]))
        image = image.repeat(2 * times, 0).repeat(times, 1)
        above = _from_above(back_project(ranges, self.elevations)[ranges > 0].numpy(), image.shape[1])
        return np.concatenate([image, above])


def _from_above(points: np.ndarray, side: int) -> np.ndarray:
    """Points [n, 3] from above, ahead is up: uint8 [side, side, 3], the highest ones in front."""
    points = points[points[:, 2].argsort(kind="stable")]
    place = np.floor((1 - points[:, :2] / SEEN) / 2 * side).astype(int)
    inside = ((place >= 0) & (place < side)).all(1)
    view = np.zeros((side, side, 3), np.uint8)
    view[tuple(place[inside].T)] = _coloured(points[inside, 2], *HEIGHTS)
    return view


def _coloured(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colours uint8 [..., 3] of values from low to high."""
    return colormaps["turbo"]((values - low) / (high - low), bytes=True)[..., :3]
