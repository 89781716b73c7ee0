"""Reductions that several losses share."""

from __future__ import annotations

from torch import Tensor


def mean_per_sample(x: Tensor) -> Tensor:
    """Mean over everything but the batch, shaped to broadcast back: [B, 1, ...]."""
    return x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)
