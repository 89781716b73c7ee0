"""Reductions that losses share; elements outside of the mask of a set count nowhere."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distillkit.diffusion.process import expand_mask

Normalise = Literal["sample", "batch"]


def mean_per_sample(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over everything but the batch, shaped to broadcast back: [B, 1, ...].

    Args:
        x: [B, ...].
        mask: bool [B, *positions], true at elements that count; a sample without any has mean zero.
            With None everything counts.
    """
    dims = tuple(range(1, x.ndim))
    if mask is None:
        return x.mean(dim=dims, keepdim=True)
    valid = expand_mask(mask, x).expand_as(x)
    return torch.where(valid, x, 0).sum(dims, keepdim=True) / valid.sum(dims, keepdim=True).clamp_min(1)


def mean(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the batch of the samples' means: every sample weighs the same, however large."""
    return x.mean() if mask is None else mean_per_sample(x, mask).mean()


def distance_scale(x_g: Tensor, real: Tensor, over: Normalise, mask: Tensor | None = None) -> Tensor:
    """`sg[mean |x_g - real|]`, at least 1e-5: the normaliser of score distillation losses.

    Args:
        x_g, real: student samples and the teacher's denoised ones, [B, ...].
        over: the extent of the mean: each `sample` (DMD, SiD: fine for thousands of elements) or
            the whole `batch` (for samples of a few numbers, where one sample's mean is close to
            zero by chance and would give that sample all the weight).
        mask: as in `mean_per_sample`.
    """
    distance = (x_g - real).abs().detach()
    scale = mean_per_sample(distance, mask) if over == "sample" else mean(distance, mask)
    return scale.clamp_min(1e-5)
