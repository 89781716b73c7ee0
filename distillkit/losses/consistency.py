"""Distances of consistency models: a sample agrees with one from less noise (arXiv 2303.01469)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from distillkit.losses.reduce import mean, mean_per_sample

Distance = Literal["square", "huber", "absolute"]


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


def distance(x: Tensor, y: Tensor, kind: Distance, c: float, mask: Tensor | None = None) -> Tensor:
    """The distance of each sample x to its target y, [B].

    - square: `mean (x - sg[y])^2` over the elements.
    - huber: `sqrt(mean (x - sg[y])^2 + c^2) - c`, the pseudo-Huber distance of whole samples. iCT
      (arXiv 2310.14189) sums over N elements; in sums its c is 0.00054 sqrt(N), so here 0.00054.
    - absolute: `mean (sqrt((x - sg[y])^2 + c^2) - c)`, of each element, as LCM (arXiv 2310.04378)
      with c = 0.001.

    Args:
        x, y: samples, [B, ...].
        kind: the distance.
        c: the difference that counts as near.
        mask: mask of sets, bool [B, *positions], true at elements.
    """
    square = (x - y.detach()).square()
    if kind == "absolute":
        return mean_per_sample((square + c**2).sqrt() - c, mask).flatten()
    square = mean_per_sample(square, mask).flatten()
    return square if kind == "square" else (square + c**2).sqrt() - c
