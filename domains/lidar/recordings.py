"""Real scans of a folder, each with the static scene around it.

n, m: points of a scan and of its scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillkit import checks
from domains.lidar import maps
from domains.lidar.files import read_scan
from domains.lidar.rings import rings
from domains.lidar.trees import Frame, find
from domains.lidar.views import FARTHEST, NEAREST, Scan, View

LOW, HIGH = -4.0, 4.4  # metres above the sensor between which a scene is wanted
CELL = 10.0  # metres of a cell; a scene is wanted where the scan has a point in it
KEPT = 64  # views; one has 5 MB


class Recordings:
    """Views of the scans in a folder, see `trees.find`; each is made when it is asked for.

    The scene of a scan with a pose is its sequence's map (`maps`), of one without the scan itself.
    Both are without what moves, where labels tell, and without what is nearer than 3.5 m. A scene
    lies within the largest range, between 4 m below the sensor and 4.4 m above, and in cells of
    10 m in which the scan has a point (LiDiff's protocol). Rings that no file gives are estimated.

    Args:
        path: the folder.
        sequences: names of the sequences that are wanted; None for all.
        max_range: metres from the sensor within which a scene is wanted.

    Attributes:
        frames: of all sequences, by number.
        sequences: their names.
        scan: the scan of a view by number, without its scene; raises as views do where its file
            cannot be read.

    Raises:
        ValueError: as `trees.find`.
    """

    def __init__(self, path: str | Path, sequences: Sequence[str] | None = None, max_range: float = FARTHEST):
        checks.positive(max_range=max_range)
        self.max_range = max_range
        self._found = find(path, sequences)
        self.sequences = [*self._found]
        self.frames = [(name, frame) for name, frames in self._found.items() for frame in frames]
        self._map = lru_cache(None)(lambda name: maps.of_sequence(name, self._found[name]))
        self.scan = lru_cache(KEPT)(self._scan)
        self._view = lru_cache(KEPT)(self._make)

    def of(self, sequences: Sequence[str]) -> list[int]:
        """The numbers of the scans of some sequences."""
        return [number for number, (name, _) in enumerate(self.frames) if name in sequences]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: int) -> View:
        """The view of a scan.

        Raises:
            ValueError: its file cannot be read, or the poses of its sequence are wrong; names them.
        """
        return self._view(range(len(self))[number])

    def _scan(self, number: int) -> Scan:
        _, frame = self.frames[number]
        scan = far(read_scan(frame.scan, frame.labels))
        if len(scan.points) == 0:
            raise ValueError(f"{frame.scan} has no point farther than {NEAREST} m that stands still")
        return scan if scan.ring is not None else scan._replace(ring=rings(scan.points))

    def _make(self, number: int) -> View:
        name, frame = self.frames[number]
        scan = self.scan(number)
        truth = scan.points if frame.pose is None else self._around(name, frame)
        return View(scan, scene(truth, scan.points, self.max_range), frame.name)

    def _around(self, name: str, frame: Frame) -> Tensor:
        """The map around a frame's sensor, in the sensor's frame."""
        pose = np.linalg.inv(self._found[name][0].pose) @ frame.pose
        points = self._map(name).near(pose[:3, 3], self.max_range)
        return torch.from_numpy(maps.moved(points.numpy(), np.linalg.inv(pose)).astype(np.float32))


def far(scan: Scan) -> Scan:
    """A scan without the points that are nearer than 3.5 m, of the car that carries the sensor."""
    kept = scan.points.norm(dim=1) > NEAREST
    return Scan(*(None if each is None else each[kept] for each in scan))


def scene(points: Tensor, scan: Tensor, max_range: float) -> Tensor:
    """The points [m, 3] of a scene that completions of a scan [n, 3] are compared with."""
    points = points[(points.norm(dim=1) < max_range) & (points[:, 2] > LOW) & (points[:, 2] < HIGH)]
    corner = scan.amin(0) - CELL / 2  # as Open3D lays its grids

    def cells(of: Tensor) -> Tensor:
        x, y, z = ((of - corner) / CELL).floor().long().unbind(1)
        return (x << 42) + (y << 21) + z

    return points[torch.isin(cells(points), cells(scan).unique())]
