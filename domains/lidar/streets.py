"""The embedded streets: scans of a procedural town, shipped as range images.

`domains.lidar.ship` made them, and `scenes/README.md` says how. H: beams; W: columns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distillkit import checks
from domains.lidar.views import Scan, View
from domains.lidar.voxels import thinned

PLACE = Path(__file__).parent / "scenes"
PARTS = ("train", "val", "test")
REACH, LOW, HIGH = 50.0, -4.0, 4.4  # of a truth, in metres: its radius and its z (LiDiff's protocol)
NOISE, LOST = 0.015, 0.02  # of a range in metres (standard deviation), and the share of returns that are lost


class Panorama(NamedTuple):
    """A scan as an image: a row for each beam, from the highest, and a column for each azimuth.

    Column c looks at azimuth pi (1 - (2 c + 1) / W): the middle ahead, the left half to the left.

    Attributes:
        ranges: [H, W] float32 in metres, 0 where nothing returned.
        reflectance: [H, W] float32 in [0, 1].
        elevations: [H] float64, of the beams, in degrees.
        pose: [4] float64: x, y, z of the sensor in its scene, in metres, and its yaw in radians.
        name: scene and scan: `train-03/1`.
    """

    ranges: Tensor
    reflectance: Tensor
    elevations: Tensor
    pose: Tensor
    name: str

    @property
    def scan(self) -> Scan:
        """The returns as points, beam by beam."""
        seen = self.ranges > 0
        points = self.ranges[..., None] * directions(self.elevations, self.ranges.shape[1]).float()
        return Scan(points[seen], self.reflectance[seen], seen.nonzero()[:, 0])


def load(part: str, seed: int = 0) -> list[View]:
    """The views of a part: one for each scan, with the map of its scene as its truth.

    Args:
        part: `train`, `val` or `test`; no scene is in two of them.
        seed: of the noise and the losses of the scans.

    Raises:
        ValueError: there is no such part, or a shipped file is not as it was.
    """
    views: list[View] = []
    scenes: dict[str, list[Panorama]] = {}
    for each in panoramas(part, seed):
        scenes.setdefault(each.name.split("/")[0], []).append(each)
    for shots in scenes.values():
        scans = [each.scan for each in shots]
        scene = thinned(torch.cat([abroad(s.points, p.pose) for s, p in zip(scans, shots, strict=True)]))
        for scan, shot in zip(scans, shots, strict=True):
            truth = home(scene, shot.pose)
            near = (truth.norm(dim=1) < REACH) & (truth[:, 2] > LOW) & (truth[:, 2] < HIGH)
            views.append(View(scan, truth[near], shot.name))
    return views


def panoramas(part: str, seed: int = 0) -> list[Panorama]:
    """The range images of a part; arguments and errors as in `load`."""
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    checks.seed(seed=seed)
    facts = json.loads((PLACE / "streets.json").read_text(encoding="utf-8"))
    poses, elevations = np.array(facts["poses"][part]), torch.tensor(facts["elevations"], dtype=torch.float64)
    shape = (*poses.shape[:2], len(elevations), facts["columns"])
    ranges = _image(f"{part}_range.png", shape) * np.float32(facts["step"])
    reflectance = _image(f"{part}_reflectance.png", shape) / np.float32(255)
    rng = np.random.default_rng([seed, PARTS.index(part)])
    there = (ranges > 0) & (rng.random(shape, np.float32) >= LOST)
    ranges = np.where(there, ranges + NOISE * rng.standard_normal(shape, np.float32), 0)
    return [
        Panorama(
            torch.from_numpy(ranges[scene, shot]),
            torch.from_numpy(np.where(there, reflectance, 0)[scene, shot]),
            elevations,
            torch.from_numpy(poses[scene, shot]),
            f"{part}-{scene:02}/{shot}",
        )
        for scene, shot in np.ndindex(*shape[:2])
    ]


def _image(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A grey image below `PLACE` as an array of a shape [scenes, scans, H, W]."""
    try:
        with Image.open(PLACE / name, formats=("PNG",)) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{PLACE / name} cannot be read ({error}): install distillkit again") from None
    height, width = int(np.prod(shape[:-1])), shape[-1]
    if pixels.shape != (height, width):
        raise ValueError(
            f"{PLACE / name} is {' x '.join(map(str, pixels.shape))} instead of {height} x {width}: install distillkit again"
        )
    return pixels.reshape(shape)


def directions(elevations: Tensor, width: int) -> Tensor:
    """Unit vectors [H, W, 3] along the rays, in the sensor's frame."""
    azimuth = torch.pi * (1 - (2 * torch.arange(width, dtype=torch.float64) + 1) / width)
    up, around = torch.meshgrid(torch.deg2rad(elevations), azimuth, indexing="ij")
    return torch.stack((up.cos() * around.cos(), up.cos() * around.sin(), up.sin()), -1)


def abroad(points: Tensor, pose: Tensor) -> Tensor:
    """Points [..., 3] of a sensor's frame in the frame of its scene; `pose` as in `Panorama`."""
    return (points.double() @ _turn(pose).T + pose[:3]).to(points)


def home(points: Tensor, pose: Tensor) -> Tensor:
    """The inverse of `abroad`."""
    return ((points.double() - pose[:3]) @ _turn(pose)).to(points)


def _turn(pose: Tensor) -> Tensor:
    cos, sin = float(pose[3].cos()), float(pose[3].sin())
    return pose.new_tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
