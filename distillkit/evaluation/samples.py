"""Samples as evaluators take them: refused if damaged, rounded like a file, thinned out evenly.

N: samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from distillkit.errors import Failure

OUTSIDE = {"outside": "lower", "outside_by": "lower"}  # which way the metrics of `out_of_range` are good
BEYOND = 0.1  # how far outside of [-1, 1] a value must lie to count as `outside`: a twentieth of the range


class Diverged(Failure):
    """Samples of which nothing can be measured, since their model has lost its numbers."""


def check(samples: Tensor, event_shape: tuple[int, ...]) -> None:
    """Refuse samples [N, *event_shape] of another shape, or that hold NaN or infinity."""
    if tuple(samples.shape[1:]) != tuple(event_shape):
        got, expected = list(samples.shape[1:]), list(event_shape)
        raise ValueError(f"samples have shape {got}, but this data has {expected}; give samples in data space")
    check_finite(samples)


def check_finite(samples: Tensor) -> None:
    """Raises Diverged for samples [N, ...] that hold NaN or infinity."""
    if not samples.isfinite().all():
        bad = int((~samples.isfinite().flatten(1).all(1)).sum())
        raise Diverged(
            f"{bad} of {len(samples)} samples hold NaN or infinity, so their model has diverged: train it anew with a lower "
            f"model.student.lr"
        )


def eight_bits(x: Tensor) -> Tensor:
    """Pixels as a file would keep them: clamped to [-1, 1] and rounded to 256 levels."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def out_of_range(x: Tensor) -> dict[str, float]:
    """How many values lie clearly outside of [-1, 1], and how far; for values before any are cut.

    Returns:
        `outside`: their share.
        `outside_by`: their mean distance from it in units of its width, 2; 0 if there are none.
    """
    return beyond(x.abs().flatten() - 1, BEYOND, 2)


def beyond(excess: Tensor, tolerated: float, width: float) -> dict[str, float]:
    """`out_of_range` of another range.

    Args:
        excess: how far each value lies beyond the range, [n]; negative within it.
        tolerated: excess up to which a value counts as within it.
        width: of the range.
    """
    far = excess.double()[excess > tolerated]
    return {"outside": len(far) / max(len(excess), 1), "outside_by": float(far.mean()) / width if len(far) else 0.0}


def spread(total: int, most: int) -> Tensor:
    """Indices [min(most, total)] int64, spread evenly over `total`."""
    return torch.linspace(0, total - 1, min(most, total), dtype=torch.float64).round().long()


def batches(data: Any, size: int, most: int | None = None) -> Iterator[dict[str, Tensor]]:
    """The whole data in order, or `most` items evenly spread over it, in batches of `size`."""
    for rows in spread(len(data), most or len(data)).split(size):
        yield data[rows]
