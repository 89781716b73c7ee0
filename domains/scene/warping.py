"""Frames seen from other frames' cameras, by the true depths.

B: clips; F: frames; C: channels; H, W: height and width in pixels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from distillkit.rendering.cameras import project
from domains.scene.coarse import unprojected

SAME = 0.03  # relative difference of depths up to which two pixels show one place


def warped(clips: Tensor, cameras: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Each frame but the first as the frame before shows it.

    Args:
        clips: [B, C, F, H, W].
        cameras: [B, F, 13].
        depth: true depths along the cameras' axes, [B, 1, F, H, W].

    Returns:
        [B, C, F - 1, H, W], and where the frame before shows the place, bool [B, 1, F - 1, H, W]:
        it lies in its picture, and nothing is in front of it.
    """
    num, frames, (height, width) = len(clips), cameras.shape[1], clips.shape[-2:]
    points = unprojected(depth, cameras)[:, 1:]
    pixels, away = project(cameras[:, :-1], points.flatten(2, 3), height, width)
    grid = (pixels / pixels.new_tensor([width, height]) * 2 - 1).reshape(num * (frames - 1), height, width, 2)

    def sampled(x: Tensor, mode: str) -> Tensor:
        flat = x[:, :, :-1].transpose(1, 2).flatten(0, 1)
        found = F.grid_sample(flat, grid.to(flat), mode, "border", align_corners=False)
        return found.unflatten(0, (num, frames - 1)).transpose(1, 2)

    away = away.reshape(num, 1, frames - 1, height, width)
    inside = (grid.abs() <= 1).all(-1).reshape(away.shape)
    seen = sampled(depth, "nearest")
    return sampled(clips, "bilinear"), inside & (away > 0) & ((away - seen).abs() <= SAME * seen)


def warp_error(clips: Tensor, cameras: Tensor, depth: Tensor) -> Tensor:
    """Root mean square difference [B] of neighbouring frames where they show the same place.

    Args:
        clips, cameras, depth: as in `warped`. A clip none of whose places is seen twice has NaN.
    """
    before, seen = warped(clips, cameras, depth)
    gap = (clips[:, :, 1:] - before).double().square().mean(1, keepdim=True)
    return ((gap * seen).flatten(1).sum(1) / seen.flatten(1).sum(1)).sqrt()
