"""Consistency training: a model's sample agrees with its own from less noise (arXiv 2303.01469)."""

from __future__ import annotations

from torch import Tensor

from distillkit.losses.reduce import mean


def charbonnier(x: Tensor, y: Tensor, eps: float = 1e-12, mask: Tensor | None = None) -> Tensor:
    """`mean sqrt((x - sg[y])^2 + eps)`: absolute for far samples, a square near y.

    Its minimiser lies between the median and the mean of y given what x is a function of, which
    are one for Gaussians.

    Args:
        x, y: samples, [B, ...].
        eps: the square of the distance that is near.
        mask: mask of sets, bool [B, *positions], true at elements.
    """
    return mean(((x - y.detach()).square() + eps).sqrt(), mask)
