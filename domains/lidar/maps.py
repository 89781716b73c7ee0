"""Maps of sequences: their scans put together by their poses, one point in each voxel.

M: points of a map. A map lies in the frame of the sequence's first scan, in metres.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.spatial import cKDTree
from torch import Tensor

from distillkit import cache
from distillkit.files import write_atomic
from distillkit.progress import progress
from distillkit.sources import listed
from domains.lidar.files import STATIC, read_scan
from domains.lidar.trees import Frame
from domains.lidar.views import NEAREST

VOXEL, TILE = 0.1, 100  # metres; voxels along a tile, which is read at once
HALF = 2**20  # voxels on each side of the origin that a key has room for: 104 km
PAIRS, AROUND, ASKED = 3, 30.0, 5000  # of the check of poses: pairs of scans, metres, points asked for in each
TINY, BETTER = 0.02, 0.8  # metres by which poses may be worse than none; share of the distance that settles it
CAMERA = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # from a LiDAR to a camera
FORMAT = 1  # of what is kept


class Map:
    """The points of a map, by square tiles, read where they are asked for.

    Args:
        points: float32 [M, 3], tile after tile; anything whose slices are tensors.
        tiles: int64 [tiles, 2], x and y of each tile that has points, sorted.
        starts: int64 [tiles + 1], where the points of each tile begin, and M.
    """

    def __init__(self, points: Any, tiles: Tensor, starts: Tensor):
        self.points, self.starts = points, starts.numpy()
        self.keys = _key(tiles.numpy())

    def __len__(self) -> int:
        return int(self.starts[-1])

    def near(self, place: np.ndarray, radius: float) -> Tensor:
        """The points [m, 3] of all tiles within `radius` of a place in x and y, and some beyond."""
        low, high = np.floor((np.stack([place[:2] - radius, place[:2] + radius])) / (VOXEL * TILE)).astype(np.int64)
        columns = np.arange(low[0], high[0] + 1)
        first, last = (
            self.starts[np.searchsorted(self.keys, _key(np.stack([columns, np.full_like(columns, y)], 1)))]
            for y in (low[1], high[1] + 1)
        )
        return torch.cat([self.points[a:b] for a, b in zip(first, last, strict=True) if b > a] or [torch.zeros(0, 3)])


class Builder:
    """A map that grows scan by scan; a scan costs what lies around it, not what the map holds."""

    def __init__(self):
        self.known: dict[tuple[int, int], np.ndarray] = {}  # sorted keys of the voxels of each tile
        self.points: dict[tuple[int, int], list[np.ndarray]] = {}

    def add(self, points: np.ndarray) -> None:
        """Add points [n, 3]; the first one in a voxel stays."""
        voxels = np.floor(points / VOXEL).astype(np.int64)
        if (np.abs(voxels) >= HALF).any():
            raise ValueError(f"lies {np.abs(points).max() / 1000:,.0f} km from the first scan; give poses in metres")
        tiles = voxels[:, :2] // TILE
        keys, first = np.unique(_key(voxels), return_index=True)
        order = np.argsort(_key(tiles[first]), kind="stable")  # keys stay sorted within a tile
        keys, first = keys[order], first[order]
        tiles = tiles[first]
        edges = [0, *np.flatnonzero((tiles[1:] != tiles[:-1]).any(1)) + 1, len(tiles)] if len(tiles) else []
        for a, b in pairwise(edges):
            tile, new = tuple(tiles[a].tolist()), keys[a:b]
            known = self.known.get(tile, new[:0])
            places = np.searchsorted(known, new)
            fresh = np.append(known, -1)[places] != new  # no key is negative
            self.known[tile] = np.insert(known, places[fresh], new[fresh])
            self.points.setdefault(tile, []).append(points[first[a:b][fresh]].astype(np.float32))

    def arrays(self) -> dict[str, Tensor]:
        """What `Map` takes; the builder is empty then, so that points are in memory once."""
        tiles = sorted(self.known)
        starts = np.cumsum([0, *(len(self.known[tile]) for tile in tiles)])
        self.known.clear()
        points = np.empty((starts[-1], 3), np.float32)
        for tile, a, b in zip(tiles, starts[:-1], starts[1:], strict=True):
            points[a:b] = np.concatenate(self.points.pop(tile))
        named = {"points": points, "tiles": np.array(tiles, np.int64).reshape(-1, 2), "starts": starts.astype(np.int64)}
        return {name: torch.from_numpy(each) for name, each in named.items()}


def of_sequence(name: str, frames: Sequence[Frame]) -> Map:
    """The map of a sequence: its static points farther than 3.5 m from the sensor.

    It is kept in the cache of samples, where there is one, and made anew when a scan, a label or a
    pose has changed. Scans that cannot be read are named in a warning and left out.

    Raises:
        ValueError: the poses contradict the scans, see `check_poses`.
    """
    kept = cache.current()
    if kept is None:
        return Map(**_build(name, frames))
    key = json.dumps(_facts(frames), sort_keys=True)
    file = kept.folder / f"{hashlib.sha256(key.encode()).hexdigest()}{cache.END}"
    if (found := _opened(file)) is not None:
        return found
    made = _build(name, frames)
    try:
        _keep(file, made, kept.limit)
    except Exception as error:  # a full disk is no OSError of safetensors
        warnings.warn(f"the map of {name} is not kept in {kept.folder} ({error}), so every run makes it", stacklevel=2)
        return Map(**made)
    return _opened(file) or Map(**made)


def check_poses(name: str, frames: Sequence[Frame]) -> None:
    """Compare neighbouring scans with and without their poses.

    The mean distance of a scan's points to the nearest ones of the scan before, within 30 m, is
    less if the second scan is moved to the first by their poses.

    Raises:
        ValueError: it is more, and less under another convention, which is named. A warning says
            that it is more where no convention explains it.
    """
    steps = [np.linalg.norm(after.pose[:3, 3] - before.pose[:3, 3]) for before, after in pairwise(frames)]
    order = np.argsort(steps)[len(steps) // 2 :]  # where it moves
    distances = []
    for number in order[np.linspace(0, len(order) - 1, min(PAIRS, len(order))).astype(int)] if len(order) else ():
        first, second = frames[number], frames[number + 1]
        try:
            here, there = (_around(read_scan(frame.scan, frame.labels).points.numpy()) for frame in (first, second))
        except ValueError:  # named when the map is made
            continue
        if len(here) and len(there):
            tree, asked = cKDTree(here), there[:: -(-len(there) // ASKED)]
            step = np.linalg.inv(first.pose) @ second.pose
            ways = [np.eye(4), step, first.pose @ np.linalg.inv(second.pose), np.linalg.inv(CAMERA) @ step @ CAMERA]
            distances.append([tree.query(moved(asked, way))[0].mean() for way in ways])
    if not distances:
        return
    without, given, *others = np.mean(distances, 0)
    if given <= without + TINY:
        return
    why = (
        "they seem to be the inverse, from the world to the sensor: give those from the sensor to the world",
        "they seem to be a camera's: give its calib.txt with a line Tr: beside them",
    )[int(np.argmin(others))]
    said = f"the poses of {name} move its scans apart ({without:.2f} m between neighbours without them, {given:.2f} m with)"
    if min(others) < BETTER * given and min(others) <= without:
        raise ValueError(f"{said}; {why}")
    warnings.warn(f"{said}: its map is blurred", stacklevel=2)


def _build(name: str, frames: Sequence[Frame]) -> dict[str, Tensor]:
    """The arrays of a sequence's map."""
    check_poses(name, frames)
    builder, faults, origin = Builder(), [], np.linalg.inv(frames[0].pose)
    with progress(f"putting the map of {name} together", len(frames)) as activity:
        for frame in frames:
            try:
                points = read_scan(frame.scan, frame.labels).points.numpy()
                builder.add(moved(points[np.linalg.norm(points, axis=1) > NEAREST], origin @ frame.pose))
            except ValueError as error:
                faults.append(f"{frame.scan} {str(error).removeprefix(f'{frame.scan} ')}")
            activity.advance()
    if faults:
        warnings.warn(f"left out of the map of {name}: {listed(faults)}", stacklevel=2)
    return builder.arrays()


def _facts(frames: Sequence[Frame]) -> dict[str, Any]:
    """All that a map depends on, as plain data."""
    files = [path for frame in frames for path in (frame.scan, frame.labels) if path is not None]
    stats = [path.stat() for path in files]
    return {
        "map": [FORMAT, VOXEL, TILE, NEAREST, *STATIC],
        "files": [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in zip(files, stats, strict=True)],
        "poses": hashlib.sha256(np.stack([frame.pose for frame in frames]).tobytes()).hexdigest(),
    }


def _keep(file: Path, made: Mapping[str, Tensor], most: float) -> None:
    """Write a map; refuses one that has no room in a cache of `most` bytes."""
    if (size := sum(each.nbytes for each in made.values())) > cache.ROOM * most:
        raise ValueError(f"its {size / 2**30:.1f} GiB have no room in the cache's {most / 2**30:.1f} GiB")
    write_atomic(file, lambda temporary: save_file(dict(made), temporary))


def _opened(file: Path) -> Map | None:
    """The map in a file, whose points stay there; None where there is none or a damaged one."""
    try:
        opened = safe_open(file, "pt")
        points, tiles, starts = opened.get_slice("points"), opened.get_tensor("tiles"), opened.get_tensor("starts")
        if points.get_shape() != [int(starts[-1]), 3] or len(tiles) + 1 != len(starts):
            return None
        os.utime(file)
    except (OSError, SafetensorError):
        return None
    return Map(points, tiles, starts)


def _around(points: np.ndarray) -> np.ndarray:
    distance = np.linalg.norm(points, axis=1)
    return points[(distance > NEAREST) & (distance < AROUND)]


def moved(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points [n, 3] by a pose [4, 4], float64."""
    return points @ pose[:3, :3].T + pose[:3, 3]


def _key(cells: np.ndarray) -> np.ndarray:
    """Numbers [n, 2 or 3] of cells as one int64 each, which sorts as they do."""
    key = np.zeros(len(cells), np.int64)
    for axis in range(cells.shape[1]):
        key = (key << 21) | (cells[:, axis] + HALF)
    return key
