"""The embedded streets: scans of a procedural town, shipped as range images.

`domains.lidar.ship` made them, and `scenes/README.md` says how. H: beams; W: columns.
"""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distillkit import checks
from domains.lidar.maps import Builder, moved
from domains.lidar.projection import back_project
from domains.lidar.recordings import scene
from domains.lidar.views import FARTHEST, Scan, View

PLACE = Path(__file__).parent / "scenes"
PARTS = ("train", "val", "test")
NOISE, LOST = 0.015, 0.02  # of a range in metres (standard deviation), and the share of returns that are lost


class Panorama(NamedTuple):
    """A scan as an image, see `projection`: row 0 is the highest beam, the middle column ahead.

    Attributes:
        ranges: [H, W] float32 in metres, 0 where nothing returned.
        reflectance: [H, W] float32 in [0, 1].
        elevations: [H] float64, of the beams, in degrees, falling.
        pose: [4, 4] float64, from the sensor's frame to that of its scene, in metres.
        name: scene and scan: `train-03/1`.
    """

    ranges: Tensor
    reflectance: Tensor
    elevations: Tensor
    pose: np.ndarray
    name: str

    @property
    def scan(self) -> Scan:
        """The returns as points, beam by beam."""
        seen = self.ranges > 0
        return Scan(back_project(self.ranges, self.elevations)[seen], self.reflectance[seen], seen.nonzero()[:, 0])


@lru_cache(len(PARTS))
def kept(part: str, seed: int = 0) -> tuple[View, ...]:
    """The views of `load`, made once in a process; their tensors are nobody's to change."""
    return tuple(load(part, seed))


def load(part: str, seed: int = 0) -> list[View]:
    """The views of a part: one for each scan, with the map of its scene as its truth.

    Args:
        part: `train`, `val` or `test`; no scene is in two of them.
        seed: of the noise and the losses of the scans.

    Raises:
        ValueError: there is no such part, or a shipped file is not as it was.
    """
    views: list[View] = []
    for _, group in groupby(panoramas(part, seed), lambda shot: shot.name.split("/")[0]):
        shots = [*group]
        scans, builder = [shot.scan for shot in shots], Builder()
        builder.add(
            np.concatenate([moved(scan.points.numpy(), shot.pose) for scan, shot in zip(scans, shots, strict=True)])
        )
        whole = builder.arrays()["points"].numpy()
        for scan, shot in zip(scans, shots, strict=True):
            around = torch.from_numpy(moved(whole, np.linalg.inv(shot.pose))).float()
            views.append(View(scan, scene(around, scan.points, FARTHEST), shot.name))
    return views


def panoramas(part: str, seed: int = 0) -> list[Panorama]:
    """The range images of a part; arguments and errors as in `load`."""
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    checks.seed(seed=seed)
    facts = json.loads((PLACE / "streets.json").read_text(encoding="utf-8"))
    places, elevations = np.array(facts["poses"][part]), torch.tensor(facts["elevations"], dtype=torch.float64)
    shape = (*places.shape[:2], len(elevations), facts["columns"])
    ranges = _image(f"{part}_range.png", shape) * np.float32(facts["step"])
    reflectance = _image(f"{part}_reflectance.png", shape) / np.float32(255)
    rng = np.random.default_rng([seed, PARTS.index(part)])
    there = (ranges > 0) & (rng.random(shape, np.float32) >= LOST)
    ranges = np.where(there, ranges + NOISE * rng.standard_normal(shape, np.float32), 0)
    images = torch.from_numpy(ranges), torch.from_numpy(np.where(there, reflectance, 0))
    return [
        Panorama(*(image[at] for image in images), elevations, pose(*places[at]), f"{part}-{at[0]:02}/{at[1]}")
        for at in np.ndindex(*shape[:2])
    ]


def pose(x: float, y: float, z: float, yaw: float) -> np.ndarray:
    """The pose [4, 4] of a level sensor at a place in metres, turned by `yaw` in radians."""
    made = np.eye(4)
    made[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    made[:3, 3] = x, y, z
    return made


def _image(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A grey image below `PLACE` as an array of a shape [scenes, scans, H, W]."""
    try:
        with Image.open(PLACE / name, formats=("PNG",)) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{PLACE / name} cannot be read ({error}): install distillkit again") from None
    height, width = int(np.prod(shape[:-1])), shape[-1]
    if pixels.shape != (height, width):
        size = " x ".join(map(str, pixels.shape))
        raise ValueError(f"{PLACE / name} is {size} instead of {height} x {width} pixels: install distillkit again")
    return pixels.reshape(shape)
