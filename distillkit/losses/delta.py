"""The delta score: two samples under one noise, told apart by one denoiser (arXiv 2304.07090).

With D a denoiser and eps shared, `D(alpha x_g + sigma eps) - D(alpha y + sigma eps)` is zero where
x_g = y, whatever the noise and whatever D gets wrong. If D is that of N(m, S^2), it is
`a (x_g - y)` with `a = alpha^2 S^2 / (alpha^2 S^2 + sigma^2)`: no noise is left in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.losses.reduce import mean


def delta_loss(
    x_g: Tensor, moved: Tensor, still: Tensor, scale: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """`0.5 mean |x_g - sg[x_g - g]|^2` with `g = (moved - still) / n`.

    The gradient in x_g is g divided by the number of elements: it moves x_g towards the reference.
    The value is 0.5 mean g^2, which is no divergence.

    Args:
        x_g: student samples, [B, ...].
        moved, still: one denoiser's samples at the noised x_g and at the reference noised alike,
            like x_g; taken as constants.
        scale: n, positive, broadcasts against x_g (`distance_scale` gives such); a constant. None
            is 1.
        mask: mask of sets, bool [B, *positions], true at elements.
    """
    with torch.no_grad():
        g = moved - still
        if scale is not None:
            g = g / scale
        target = x_g - g
    return 0.5 * mean((x_g - target).square(), mask)
