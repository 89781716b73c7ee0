"""Reductions that several losses share."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Normalise = Literal["sample", "batch"]


def mean_per_sample(x: Tensor) -> Tensor:
    """Mean over everything but the batch, shaped to broadcast back: [B, 1, ...]."""
    return x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)


def distance_scale(x_g: Tensor, real: Tensor, over: Normalise) -> Tensor:
    """`sg[mean |x_g - real|]`, at least 1e-5: the scale by which score distillation losses are divided.

    Args:
        x_g, real: student samples and the teacher's denoised ones, [B, ...].
        over: the mean of each `sample` (DMD, SiD: fine for thousands of elements) or of the whole `batch` (for samples of
            a few numbers, where one sample's mean is close to zero by chance and would give that sample all the weight).
    """
    distance = (x_g - real).abs().detach()
    return (mean_per_sample(distance) if over == "sample" else distance.mean()).clamp_min(1e-5)
