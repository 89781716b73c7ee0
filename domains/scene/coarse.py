"""A cheap reconstruction: the pixels of the two end views as points, seen along the path.

It has what fast reconstructions have: holes, double contours where the views disagree, and surfaces
that are bent and torn by wrong depths.

B: scenes; F: frames; H, W: height and width in pixels; N: points, those of both views.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.rendering.cameras import pose, project, rays

BEND, SHIFT, ROUGH = 0.3, 0.15, 0.05  # std of log depth: bent surfaces, whole views, single pixels
COARSE = 4  # numbers along the side of a picture between which surfaces are bent
BLUR = 0.8  # std in pixels
BEHIND = 1.05  # depths so many times the nearest in a pixel are hidden
ENOUGH = 0.25  # weight of points from which on a pixel is no hole


def ends(cameras: Tensor) -> Tensor:
    """The first and the last of cameras [B, F, 13]."""
    return cameras[:, [0, -1]]


def damaged(first: Tensor, depth: Tensor, damage: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Colours and depths of the end views as a reconstruction would guess them.

    Args:
        first: the end views, [B, 3, 2, H, W].
        depth: their depths, [B, 1, 2, H, W].
        damage: how bad it is, [B]: 0 leaves them as they are, 1 blurs colours by `BLUR` and bends
            depths by `BEND`.
        seeds: of the errors, int64 [B].
    """
    size = first.shape[-2:]
    generators = [torch.Generator().manual_seed(-1 - int(seed)) for seed in seeds]
    numbers = [torch.randn(2, COARSE**2 + 1 + size.numel(), generator=generator) for generator in generators]
    bend, shift, rough = torch.stack(numbers).split([COARSE**2, 1, size.numel()], -1)
    bend = F.interpolate(bend.unflatten(-1, (COARSE, COARSE)), size, mode="bicubic", align_corners=True)
    error = BEND * bend + SHIFT * shift[..., None] + ROUGH * rough.unflatten(-1, size)
    depth = depth * (damage[:, None, None, None] * error).exp()[:, None]
    return blurred(first, BLUR * damage), depth


def blurred(x: Tensor, std: Tensor) -> Tensor:
    """Pictures [B, C, V, H, W], blurred by Gaussians of these pixels [B]; 0 leaves them."""
    away = torch.arange(-3, 4) / std.clamp_min(1e-6)[:, None]
    kernel = (-away.square() / 2).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(x.shape[1] * x.shape[2], 0)[:, None]
    flat = F.pad(x.flatten(0, 2)[None], (3, 3, 3, 3), "replicate")
    flat = F.conv2d(F.conv2d(flat, kernel[:, :, None], groups=len(kernel)), kernel[..., None], groups=len(kernel))
    return flat[0].reshape(x.shape)


def unprojected(depth: Tensor, cameras: Tensor) -> Tensor:
    """The points that pixels show, [B, V, H, W, 3].

    Args:
        depth: along the cameras' axes, [B, 1, V, H, W].
        cameras: [B, V, 13].
    """
    origin, direction = rays(cameras, *depth.shape[-2:])
    axis = -pose(cameras)[..., None, None, :3, 2]
    return origin[..., None, None, :] + direction * (depth[:, 0] / (direction * axis).sum(-1))[..., None]


def reconstructed(first: Tensor, depth: Tensor, cameras: Tensor) -> Tensor:
    """The pixels of the end views, as points, seen by all cameras of the path.

    A frame takes more from the nearer end. Of the points in a pixel the nearest are seen, each
    spread over the four pixels around it. Holes are 0, the grey in the middle of [-1, 1].

    Args:
        first: the end views, [B, 3, 2, H, W].
        depth: of their pixels, along the cameras' axes, [B, 1, 2, H, W].
        cameras: of the path, [B, F, 13].

    Returns:
        [B, 3, F, H, W], in the range of `first`.
    """
    num, frames, (height, width) = len(first), cameras.shape[1], first.shape[-2:]
    points = unprojected(depth, ends(cameras)).flatten(1, 3)  # [B, N, 3]
    pixels, away = project(cameras, points[:, None].expand(-1, frames, -1, -1), height, width)
    late = torch.linspace(0, 1, frames)
    share = torch.stack([1 - late, late], 1).repeat_interleave(height * width, 1)  # [F, N]

    low = (pixels - 0.5).floor()
    part = pixels - 0.5 - low
    corners = [(dx, dy) for dx in (0, 1) for dy in (0, 1)]
    place = torch.stack([low + low.new_tensor(corner) for corner in corners], -2)  # [B, F, N, 4, 2]
    weight = torch.stack([(part - 1 + low.new_tensor(corner)).abs().prod(-1) for corner in corners], -1)
    seen = (place >= 0).all(-1) & (place[..., 0] < width) & (place[..., 1] < height) & (away > 1e-3)[..., None]
    weight = weight * share[..., None] * seen
    away = away[..., None].expand_as(weight)
    frame = torch.arange(num * frames).reshape(num, frames, 1, 1) * height * width
    index = frame + (place[..., 1] * width + place[..., 0]).where(seen, 0).long()
    index, weight, away = (value.flatten() for value in (index, weight, away))

    solid = weight > 1e-3
    nearest = away.new_full((num * frames * height * width,), torch.inf)
    nearest = nearest.scatter_reduce(0, index[solid], away[solid], "amin")
    weight = weight * (away <= BEHIND * nearest[index])
    colour = first.flatten(2).movedim(1, -1)[:, None, :, None].expand(-1, frames, -1, len(corners), -1).reshape(-1, 3)
    seen = torch.cat([colour, torch.ones_like(colour[:, :1])], 1) * weight[:, None]
    sums = seen.new_zeros(num * frames * height * width, 4).index_add(0, index, seen)
    colours, weights = sums.unflatten(0, (num, frames, height, width)).permute(0, 4, 1, 2, 3).split([3, 1], 1)
    return colours / weights.clamp_min(ENOUGH)
