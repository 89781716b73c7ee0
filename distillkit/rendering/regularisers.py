"""What is asked of scenes beside their looks: that they are smooth, sparse and solid."""

from __future__ import annotations

from torch import Tensor

SURE = 1e-3  # opacities within it of 0 and 1 are sure enough


def total_variation(grid: Tensor, axes: int = 3) -> Tensor:
    """The mean absolute difference between neighbours, summed over the last `axes` (a scalar).

    Args:
        grid: voxels [..., R, R, R], or planes [..., R, R] with `axes` 2.
        axes: number of its axes in space.
    """
    return sum(grid.diff(dim=-1 - axis).abs().mean() for axis in range(axes))


def sparsity(opacity: Tensor) -> Tensor:
    """The mean opacity of views [B, 1, H, W] (a scalar): fog in front of nothing costs."""
    return opacity.mean()


def binarisation(opacity: Tensor) -> Tensor:
    """The mean entropy of opacities in [0, 1], in nats (a scalar): half-transparent pixels cost."""
    opacity = opacity.clamp(SURE, 1 - SURE)
    return -(opacity * opacity.log() + (1 - opacity) * (1 - opacity).log()).mean()
