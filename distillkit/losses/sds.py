"""Score distillation by the teacher alone: SDS (arXiv 2209.14988) and ASD (arXiv 2407.02040)."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.diffusion.process import expand
from distillkit.losses.delta import delta_loss


def sds_loss(
    x_g: Tensor,
    real: Tensor,
    ratio: Tensor,
    later: Tensor | None = None,
    later_ratio: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`0.5 mean |x_g - sg[x_g - g]|^2` with `g = w (eps_real - eps)`.

    eps is the noise of x_t = alpha x_g + sigma eps and eps_real what the teacher takes for it (SDS,
    eq. 3). eps_later is what it takes for the same noise at a later time, and stands in for eps
    (ASD). In terms of denoised samples, with u = sigma / alpha, `eps_real - eps = (x_g - real) /
    u`. The weight w is sigma^2 of a variance-preserving process, as in both papers: `u^2 / (1 +
    u^2)`, on every process. The gradient in x_g is g divided by the number of elements. The value
    is 0.5 mean g^2, which is no divergence.

    Args:
        x_g: student samples, [B, ...].
        real: the teacher's denoised samples at the noised x_g; a constant, as the next.
        ratio: u of each sample, [B].
        later, later_ratio: the same at the later time; None is SDS.
        mask: mask of sets, bool [B, *positions], true at elements.
    """
    u = expand(ratio, x_g)
    weight = u**2 / (1 + u**2)
    moved, still = weight * (x_g - real) / u, torch.zeros_like(x_g)
    if later is not None:
        still = weight * (x_g - later) / expand(later_ratio, x_g)
    return delta_loss(x_g, moved, still, mask=mask)  # of which only the first argument is no constant
