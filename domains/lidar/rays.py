"""The rays that are given of a range image, and the codec that keeps them.

`rays` [B, 3, H, W]: range and reflectance of the given rays, -1 elsewhere; then 1 for given, -1 for
not. Images are float32 [B, 2, H, W] in [-1, 1], see `projection.image`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from distillkit.codec import Codec


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


class KeptRays(Codec):
    """Samples are images; given rays stay as they were measured."""

    in_graph = True

    def decode(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        return torch.where(is_given(cond["rays"])[:, None], cond["rays"][:, :2].to(x), x)


def nearest_beam(rays: Tensor) -> Tensor:
    """Images [B, 2, H, W] in which every beam copies the nearest given one, the higher of two."""
    return torch.stack([ray[:2, _nearest(*_beams(ray))] for ray in rays])


def between_beams(rays: Tensor) -> Tensor:
    """Images [B, 2, H, W] interpolated linearly between the given beams above and below.

    Where one of the two has no return, and beyond the outermost beams, it is the nearest beam.
    """
    images = []
    for ray, near in zip(rays, nearest_beam(rays), strict=True):
        beams, row = _beams(ray)
        below = torch.searchsorted(beams, row).clamp(1, len(beams) - 1) if len(beams) > 1 else torch.zeros_like(row)
        high, low = beams[(below - 1).clamp_min(0)], beams[below]
        share = ((row - high) / (low - high).clamp_min(1)).clamp(0, 1)[:, None]
        ends = ray[:2, high], ray[:2, low]
        both = (ends[0][0] > -1) & (ends[1][0] > -1)
        images.append(torch.where(both, torch.lerp(*ends, share.to(ray)), near))
    return torch.stack(images)


def _beams(ray: Tensor) -> tuple[Tensor, Tensor]:
    """The given beams of one image's rays [3, H, W], at least one, and all beams [H]."""
    return (ray[2, :, 0] > 0).nonzero()[:, 0], torch.arange(ray.shape[1])


def _nearest(beams: Tensor, row: Tensor) -> Tensor:
    return beams[(row[:, None] - beams).abs().argmin(1)]
