"""Rollouts: samples in a row, each conditioned on the one before.

One `Continuation` says how they follow each other; teacher and student share it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.spec import Recorded


class Continuation(Recorded, ABC):
    """How samples follow each other.

    A domain derives from it; teacher.yaml and student.yaml record it.

    Attributes:
        axis: axis of a batch of samples [B, ...] along which they follow each other; may be
            negative.
    """

    axis: int

    @abstractmethod
    def __call__(self, cond: Cond, x_0: Tensor) -> Cond:
        """The conditioning of the sample after x_0, without gradient.

        Args:
            cond: the conditioning of x_0.
            x_0: the sample [B, ...], decoded.
        """

    def overlap(self, cond: Cond) -> int:
        """Length along `axis` that a sample made for `cond` shares with the one before it.

        Raises:
            ValueError: no sample can follow one that was made for `cond`.
        """
        return 0


def rolled_out(
    sample: Callable[[int, Cond, int], Tensor],
    continuation: Continuation | None,
    cond: Cond,
    rollouts: int,
    seed: int = 0,
) -> Tensor:
    """Samples in a row, joined to one; where two overlap, the earlier one's part stays.

    Args:
        sample: `(n, cond, seed)` to decoded samples [n, ...]: `Student.sample` or
            `Teacher.generate`.
        continuation: that of the model.
        cond: conditioning of the first sample, at least one tensor [n, ...].
        rollouts: number of samples in a row.
        seed: of the noise; every sample in the row has its own.

    Returns:
        [n, ...], longer along the continuation's axis.

    Raises:
        ValueError: the model does not go on, is conditioned on nothing, or goes on along an axis
            that its samples do not have.
    """
    checks.whole(1, rollouts=rollouts)
    if continuation is None:
        raise ValueError("this model does not say what comes after a sample: take one whose teacher proceeds")
    if not cond:
        raise ValueError("this model is conditioned on nothing, so it cannot go on from its own samples")
    num, axis, parts = len(next(iter(cond.values()))), continuation.axis, []
    for k in range(rollouts):
        overlap = continuation.overlap(cond)  # before the sample: it refuses conditions
        made = sample(num, cond, seed * rollouts + k)
        if not axis or not -made.ndim < axis < made.ndim:
            shape = list(made.shape)
            raise ValueError(f"{type(continuation).__name__} cannot go on along axis {axis} of samples {shape}")
        shared = overlap if k else 0
        parts.append(made.narrow(axis, shared, made.shape[axis] - shared))
        cond = continuation(cond, made)
    return torch.cat(parts, dim=axis)
