"""Consistency training: a model's sample agrees with its own from less noise (arXiv 2303.01469)."""

from __future__ import annotations

from torch import Tensor

from distillkit.losses.reduce import mean


def charbonnier(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """`mean sqrt((x - sg[y])^2 + 1e-12)`: the absolute difference, smooth within 1e-6.

    Its minimiser is the median of y given what x is a function of, of Gaussians also the mean.

    Args:
        x, y: samples, [B, ...].
        mask: mask of sets, bool [B, *positions], true at elements.
    """
    return mean(((x - y.detach()).square() + 1e-12).sqrt(), mask)
