"""Samples in a row: how a model goes on from its own, said by one object that teacher and student share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.spec import Recorded


class Continuation(Recorded, ABC):
    """How samples follow each other. A domain derives from it; teacher.yaml and student.yaml record it.

    Attributes:
        axis: of a batch of samples [B, ...], along which they follow each other; it may be
            negative.
    """

    axis: int

    @abstractmethod
    def __call__(self, cond: Cond, x_0: Tensor) -> Cond:
        """The condition of what comes after x_0 [B, ...], decoded and made for `cond`; without gradient."""

    def overlap(self, cond: Cond) -> int:
        """Length along `axis` of what a sample made for `cond` shares with the one before it.

        Raises:
            ValueError: samples for this condition cannot be gone on from.
        """
        return 0


def rolled_out(
    sample: Callable[[int, Cond, int], Tensor],
    continuation: Continuation | None,
    cond: Cond,
    rollouts: int,
    seed: int = 0,
) -> Tensor:
    """Samples in a row, joined to one of each: where two overlap, it is the earlier one's part that stays.

    Args:
        sample: `(n, cond, seed)` to decoded samples [n, ...]: `Student.sample` or
            `Teacher.generate`.
        continuation: theirs.
        cond: what the first sample is made for, at least one tensor [n, ...].
        rollouts: how many in a row.
        seed: of the noise; every sample in the row has its own.

    Returns:
        [n, ...], longer along the continuation's axis.

    Raises:
        ValueError: the model does not go on, or is conditioned on nothing.
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
        shared = overlap if k else 0
        parts.append(made.narrow(axis, shared, made.shape[axis] - shared))
        cond = continuation(cond, made)
    return torch.cat(parts, dim=axis)
