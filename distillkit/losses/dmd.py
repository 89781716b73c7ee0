"""DMD and DMD2, distribution matching distillation (arXiv 2311.18828, 2405.14867)."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.diffusion.process import expand
from distillkit.losses.reduce import Normalise, distance_scale, mean, mean_per_sample


def dmd_loss(
    x_g: Tensor,
    real: Tensor,
    fake: Tensor,
    normalise: Normalise | None = "sample",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """`0.5 mean |x_g - sg[x_g - g]|^2` with `g = w (fake - real) / n` (DMD eq. 7-8).

    n = mean |x_g - real|, per sample or per batch. The gradient in x_g is g divided by the
    number of elements. The value is 0.5 mean g^2, which is no divergence.

    Args:
        x_g: student samples, [B, ...].
        real, fake: teacher's and fake score's denoised samples at the noised x_g; taken as
            constants.
        normalise: the extent of the mean in n; None leaves n out and gives the plain gradient of
            the closed forms.
        mask: mask of sets, bool [B, *positions], true at elements.
        weight: w of each sample, [B], a constant; None is 1. With `normalise=None`, SwiftBrush's
            weight sigma^2 of noise differences on a variance-preserving process (arXiv
            2312.05239) is `sigma alpha` here.
    """
    with torch.no_grad():
        g = fake - real
        if normalise:
            g = g / distance_scale(x_g, real, normalise, mask)
        if weight is not None:
            g = expand(weight, g) * g
        target = x_g - g
    return 0.5 * mean((x_g - target).square(), mask)


def regression_loss(x_g: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pseudo-Huber distance to the teacher's sample from the same noise (DMD eq. 9), in data space.

    It is `sqrt(mean |x - y|^2 + c^2) - c` per sample with c = 0.03 (arXiv 2310.14189); the paper's
    LPIPS needs weights.

    Args:
        x_g, y: student's and teacher's samples, [B, ...].
        mask: mask of sets, bool [B, *positions], true at elements.
    """
    c = 0.03
    return ((mean_per_sample((x_g - y).square(), mask) + c**2).sqrt() - c).mean()
