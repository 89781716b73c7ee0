"""How good music is.

N: sounds; C: channels; T: samples; D: features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation import metrics
from distillkit.evaluation.samples import check
from domains.music.mel import log_mel


class MusicEvaluator:
    """Compares sounds with held-out ones.

    - `frechet` (the headline): Frechet audio distance.

    Args:
        train: the training data.
        held_out: one or two data sets, see `domains.video.evaluation`.
        classes: `{name: number of classes}`.
        rate: samples a second, in Hz.
    """

    headline = "frechet"
    device = torch.device("cpu")

    def __init__(self, train: Any, held_out: Sequence[Any], classes: dict[str, int], rate: int):
        self.train, self.reference, self.real, self.classes, self.rate = train, held_out[0], held_out[-1], classes, rate
        self.event_shape = tuple(self.reference[torch.zeros(1, dtype=torch.long)]["data"].shape[1:])

    better = {"frechet": "lower"}

    def describe(self) -> dict[str, Any]:
        return {"domain": "music", "features": {"name": "averages"}, "reference": "validation data"}

    def __call__(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        check(samples, self.event_shape)
        real = self.reference[torch.arange(min(512, len(self.reference)))]["data"]
        return {"frechet": metrics.frechet_distance(self.features(samples), self.features(real))}

    def features(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(log_mel(x, self.rate), (8, 4)).flatten(1).double()

    def floor(self, num_samples: int = 250) -> dict[str, float]:
        batch = self.real[torch.arange(num_samples) % len(self.real)]
        return self(batch["data"], batch)
