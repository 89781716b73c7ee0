"""How often the data's reward prefers one student's samples to another's."""

from __future__ import annotations

import torch

from distillkit.data import DistillData
from distillkit.students.base import Student


@torch.no_grad()
def win_rate(data: DistillData, one: Student, other: Student, num_samples: int = 1000, seed: int = 1234) -> float:
    """The share of samples in which `one` beats `other`, in [0, 1]; a draw counts as half.

    Both sample from the same noise, for the conditions of held-out samples; beyond their number
    these repeat.

    Args:
        data: data that provide `reward`.
        one, other: students on one device.
        num_samples: samples of each.
        seed: seed of the noise.

    Raises:
        ValueError: the data have no reward.
    """
    if "reward" not in data.provides:
        raise ValueError(f"{type(data).__name__} has no reward, by which samples could win: give data that provide one")
    data.setup()
    batch = data.test[torch.arange(num_samples) % len(data.test)]
    samples = (student.sample(num_samples, student.condition(batch), seed).cpu() for student in (one, other))
    ours, theirs = (data.reward(x, batch) for x in samples)
    return float((ours > theirs).float().mean() + (ours == theirs).float().mean() / 2)
