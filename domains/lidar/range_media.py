"""Pictures of range images, each above its points from above; files of the points.

N: samples; H: beams; W: columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from domains.lidar.media import CELL, Frame, from_above, save_scenes, sheet
from domains.lidar.projection import back_project, metres
from domains.lidar.rays import between_beams

SHOWN = 3  # images in a comparison
SEEN = Frame(25.0, -2.5, 4.0)  # metres from the sensor to the sides of a view, and heights


class RangeMedia:
    """Pictures and files of range images [N, 2, H, W].

    Args:
        elevations: [H], of the beams, in degrees.
        farthest: what is farther, in metres, is no return.
    """

    def __init__(self, elevations: Tensor, farthest: float):
        self.elevations, self.farthest = elevations, farthest

    def picture(self, samples: Tensor, cond: dict[str, Tensor] | None = None, columns: int = 4) -> Image.Image:
        """Samples row by row: ranges by colour, near ones warm, and below the points from above."""
        ranges = self._ranges(samples)
        return sheet([line for i in range(0, len(ranges), columns) for line in self._lines(ranges[i : i + columns])])

    def compare(self, rows: dict[str, Tensor], cond: dict[str, Tensor]) -> Image.Image:
        """The first images: what is given, planes between it, and the sets of samples.

        The student stands between its teacher and the real images.
        """
        if not rows:
            raise ValueError("there is nothing to compare; give at least one row of samples")
        rays = cond["rays"].cpu()
        names = sorted(rows, key=lambda name: (name == "real", name == "student"))
        sets = {"given": rays[:, :2], "between": between_beams(rays, self.farthest)} | {
            name: rows[name] for name in names
        }
        columns = [self._ranges(samples[:SHOWN]) for samples in sets.values()]
        return sheet([line for ranges in zip(*columns, strict=True) for line in self._lines(ranges)], list(sets))

    def save(self, samples: Tensor, cond: dict[str, Tensor], folder: str | Path) -> list[Path]:
        """The points of each image as files and on a page, see `domains.lidar.media.save`."""
        rays = cond["rays"].cpu()
        scans, scenes = ([self._points(ranges) for ranges in self._ranges(x)] for x in (rays[:, :2], samples))
        return save_scenes(scans, scenes, folder)

    def _ranges(self, samples: Tensor) -> Tensor:
        """Ranges [N, H, W] in metres; those of a diverging model are no return."""
        if samples.ndim != 4 or samples.shape[1] != 2 or len(samples) == 0:
            raise ValueError(f"a picture needs range images [N, 2, H, W] with N >= 1, got {list(samples.shape)}")
        return metres(samples[:, 0].detach().float().cpu().nan_to_num(-1.0), self.farthest)

    def _points(self, ranges: Tensor) -> np.ndarray:
        return back_project(ranges, self.elevations)[ranges > 0].numpy()

    def _lines(self, ranges: Sequence[Tensor]) -> list[list[Image.Image]]:
        """Two lines of a sheet, of ranges [H, W] each."""
        views = [from_above(self._points(each), SEEN) for each in ranges]
        return [[self._image(each) for each in ranges], views]

    def _image(self, ranges: Tensor) -> Image.Image:
        """Ranges [H, W] by colour, black without a return."""
        near = 1 - np.log2(ranges.numpy() + 1) / np.log2(self.farthest + 1)
        colours = colormaps["turbo"](near * 1.3, bytes=True)[..., :3] * (ranges.numpy() > 0)[..., None]
        height = max(1, round(2 * CELL * ranges.shape[0] / ranges.shape[1]))  # twice as high as it is
        return Image.fromarray(colours.astype(np.uint8)).resize((CELL, height), Image.Resampling.NEAREST)
