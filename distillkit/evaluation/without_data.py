"""Comparison with the teacher's samples where there are no real data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from distillkit.evaluation import metrics


class WithoutData(ABC):
    """An evaluator whose reference is the teacher at its best.

    The headline is `distance`: energy distance to the teacher's samples, as sets, in features that
    are each in units of their standard deviation over the teacher's. With few samples two draws of
    one law are not 0 apart: the teacher at its best has its distance from its own samples of
    another noise. Whether a sample is what was asked for is not measured.

    Args:
        event_shape: of samples.
    """

    headline, as_sets = "distance", True
    device = torch.device("cpu")  # of all features
    better = {"distance": "lower"}

    def __init__(self, event_shape: Sequence[int]):
        self.event_shape = tuple(event_shape)
        self.look = lru_cache(maxsize=3)(self.looked)  # by identity: the teacher's samples are looked at once

    @abstractmethod
    def looked(self, samples: Tensor) -> Any:
        """What is measured of samples, in a tuple that begins with their features [N, D]."""

    def paired(self, samples: Tensor, reference: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """The distance from the teacher's samples."""
        ours, theirs = (self.look(each)[0] for each in (samples, reference))
        near, far = (metrics.standardise(features, theirs) for features in (ours, theirs))
        return {"distance": metrics.energy_distance(near, far)}

    def floor(self, num_samples: int = 0) -> dict[str, float]:
        """Empty: there are no real data."""
        return {}
