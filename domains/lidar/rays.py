"""The rays that are given of a range image, what lies between them, and the codec of the rest.

`rays` [B, 3, H, W]: range and reflectance of the given rays, -1 elsewhere; then 1 for given, -1 for
not. All rays of a beam are given or none, and one beam is at least. Images are float32
[B, 2, H, W] in [-1, 1], see `projection.image`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from distillkit import checks
from distillkit.codec import Codec
from domains.lidar.projection import NEAR, levels, metres


def given(images: Tensor, every: int, first: Tensor) -> Tensor:
    """Rays [B, 3, H, W] of images [B, 2, H, W]: of each the beams first, first + every ...

    Args:
        images: in [-1, 1].
        every: one beam in so many is given.
        first: the first given beam of each image, int64 [B], in [0, every).
    """
    there = (torch.arange(images.shape[2]) - first[:, None]) % every == 0
    there = there[:, None, :, None].expand(-1, 1, -1, images.shape[3])
    return torch.cat([torch.where(there, images, -1.0), torch.where(there, 1.0, -1.0)], dim=1)


def is_given(rays: Tensor) -> Tensor:
    """Which rays are given, bool [B, H, W]."""
    return rays[:, 2] > 0


def nearest_beam(rays: Tensor) -> Tensor:
    """Images [B, 2, H, W] in which every beam copies the nearest given one, the higher of two."""
    above, below, row = _neighbours(rays)
    return _beams(rays, torch.where(row - above <= below - row, above, below))


def between_beams(rays: Tensor, farthest: float) -> Tensor:
    """Images [B, 2, H, W] between the given beams above and below, as on planes.

    The reciprocal of range is linear in the angle, as it nearly is on planes, and so is
    reflectance. Where one of the two beams has no return, and beyond the outermost ones, it is the
    nearest beam.
    """
    above, below, row = _neighbours(rays)
    share = ((row - above) / (below - above).clamp_min(1))[:, None, :, None].to(rays)
    high, low = _beams(rays, above), _beams(rays, below)
    near, far = (metres(image[:, :1], farthest) for image in (high, low))
    ranges = 1 / torch.lerp(1 / near, 1 / far, share)  # zero where one is
    made = torch.cat([levels(ranges, farthest), torch.lerp(high[:, 1:], low[:, 1:], share)], dim=1)
    return torch.where(ranges > NEAR, made, nearest_beam(rays))


class BetweenRays(Codec):
    """Samples are what images have beyond `between_beams`; given rays stay as they were measured.

    A difference r of log range or reflectance is kept as `sign(r) sqrt(|r|)`. Most differences are
    close to zero, where an error of 0.05 in r itself would be two metres at a distance of 15.

    Args:
        farthest: what is farther, in metres, is no return.
    """

    in_graph = True

    def __init__(self, farthest: float = 50.0):
        checks.positive(farthest=farthest)
        self.farthest = farthest

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        more = batch["data"] - between_beams(batch["rays"], self.farthest)
        return more.sign() * more.abs().sqrt()

    def decode(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        rays = cond["rays"].to(x)
        return torch.where(is_given(rays)[:, None], rays[:, :2], between_beams(rays, self.farthest) + x * x.abs())


def _neighbours(rays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The given beams at or above, and at or below each beam, int64 [B, H], and the beams [H].

    Beyond the outermost given beams both are that one.
    """
    row, there = torch.arange(rays.shape[2], device=rays.device), is_given(rays)[:, None, :, 0]
    height = len(row)
    above = torch.where(there & (row <= row[:, None]), row, -1).amax(-1)
    below = torch.where(there & (row >= row[:, None]), row, height).amin(-1)
    return torch.where(above < 0, below, above), torch.where(below == height, above, below), row


def _beams(rays: Tensor, chosen: Tensor) -> Tensor:
    """Range and reflectance of the beams [B, H], as images [B, 2, H, W]."""
    return rays[:, :2].gather(2, chosen[:, None, :, None].expand(-1, 2, -1, rays.shape[3]))
