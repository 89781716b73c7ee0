"""Scans as range images, a row for each beam and a column for each direction, and back.

Row 0 is the highest beam. Column 0 looks backwards, the middle ahead; the columns before the middle
are on the left. Elevations are degrees above the horizon, azimuths radians from x towards y.

n: points; H: beams; W: columns.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from domains.lidar.views import Scan

NEAR = 1.45  # metres; what is nearer is no return (R2DM, arXiv 2309.09256)


def columns(points: Tensor, width: int) -> Tensor:
    """The column of each point [n, 3], int64 [n]: `floor(((-azimuth / pi + 1) / 2 mod 1) W)`."""
    turn = (1 - torch.atan2(points[:, 1], points[:, 0]).double() / math.pi) / 2
    return ((turn % 1) * width).long().clamp_max(width - 1)


def directions(elevations: Tensor, width: int) -> Tensor:
    """Unit vectors through the middles of pixels, float64 [H, W, 3]; elevations [H]."""
    azimuth = math.pi * (1 - 2 * (torch.arange(width, dtype=torch.float64) + 0.5) / width)
    up, around = torch.meshgrid(torch.deg2rad(elevations.double()), azimuth, indexing="ij")
    return torch.stack([up.cos() * around.cos(), up.cos() * around.sin(), up.sin()], -1)


def rows(points: Tensor, elevations: Tensor) -> Tensor:
    """The beam of nearest elevation for each point [n, 3], int64 [n]; elevations [H] fall."""
    seen = torch.rad2deg(torch.atan2(points[:, 2], points[:, :2].norm(dim=1))).double()
    up = elevations.double().flip(0)
    return len(up) - 1 - torch.bucketize(seen, (up[1:] + up[:-1]) / 2)


def project(points: Tensor, row: Tensor, height: int, width: int) -> Tensor:
    """The number of the nearest point in each pixel, int64 [H, W]; -1 where there is none.

    Args:
        points: [n, 3] in metres.
        row: the beam of each point, int64 [n], below H.
        height, width: H and W.
    """
    order = points.square().sum(1).argsort(descending=True, stable=True)
    seen = np.full((height, width), -1)
    seen[row[order].numpy(), columns(points, width)[order].numpy()] = order.numpy()  # the last one stays
    return torch.from_numpy(seen)


def back_project(ranges: Tensor, elevations: Tensor) -> Tensor:
    """The points [..., H, W, 3] of ranges [..., H, W] in metres, at the middles of pixels."""
    return ranges[..., None] * directions(elevations, ranges.shape[-1]).to(ranges)


def levels(ranges: Tensor, farthest: float) -> Tensor:
    """Ranges in metres as `2 log2(d + 1) / log2(R + 1) - 1`, in [-1, 1].

    What does not lie between `NEAR` and the farthest range R is -1, no return.
    """
    there = (ranges > NEAR) & (ranges < farthest)
    return torch.where(there, 2 * torch.log2(ranges + 1) / math.log2(farthest + 1) - 1, -1.0)


def metres(level: Tensor, farthest: float) -> Tensor:
    """The ranges of `levels`, at most R; zero where there is no return."""
    ranges = torch.exp2((level.clamp(-1, 1) + 1) / 2 * math.log2(farthest + 1)) - 1
    return torch.where(ranges > NEAR, ranges, 0.0)


def image(ranges: Tensor, reflectance: Tensor, farthest: float) -> Tensor:
    """Levels and reflectance as float32 [..., 2, H, W] in [-1, 1], both -1 without a return.

    Args:
        ranges: metres [..., H, W].
        reflectance: [..., H, W] in [0, 1].
        farthest: R, in metres.
    """
    level = levels(ranges.float(), farthest)
    return torch.stack([level, torch.where(level > -1, 2 * reflectance.float() - 1, -1.0)], -3)


def scan_image(scan: Scan, elevations: Tensor, width: int, farthest: float) -> Tensor:
    """The image [2, H, W] of a scan, by its rings, or without them by the beams' elevations [H]."""
    row = rows(scan.points, elevations) if scan.ring is None else scan.ring
    if len(row) and int(row.max()) >= len(elevations):
        raise ValueError(
            f"the scan has {int(row.max()) + 1} beams, more than the {len(elevations)} elevations: give all"
        )
    seen = project(scan.points, row, len(elevations), width)
    ranges = torch.where(seen >= 0, scan.points.norm(dim=1)[seen], 0.0)
    bright = torch.zeros(len(scan.points)) if scan.intensity is None else scan.intensity
    return image(ranges, bright[seen], farthest)
