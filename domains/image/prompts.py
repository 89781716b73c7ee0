"""Prompts as data, for image teachers: batches hold `prompt` int64 [B], its number.

N: images; C, H, W: channels, height, width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation import metrics
from distillkit.evaluation.samples import check, eight_bits, outside
from distillkit.pipelines.data import PromptData
from domains.image.pipelines import ImagePipeline

AVERAGES = {"name": "averages over parts of the image and of its edges"}


class Prompts(PromptData):
    """Prompts from a file, and no images, see `PromptData`."""

    domain, teacher = "image", ImagePipeline

    def build_evaluator(self, held_out: Sequence[Any]) -> PromptEvaluator:
        return PromptEvaluator(self.event_shape)

    @property
    def media(self) -> ModuleType:
        """`domains.image.media`."""
        from domains.image import media

        return media


class PromptEvaluator:
    """Compares images with the teacher's at its best, where there are no real images.

    - `distance` (the headline): energy distance to the teacher's images in averages over parts of
      an image and of its edges, each in units of its standard deviation over the teacher's images.
      With few images two draws of one law are not 0 apart: the teacher at its best has its distance
      from its own images of another noise.
    - `detail`: mean difference of neighbouring pixels, of the images themselves.
    - `outside`: share of values outside of the range of images.

    Args:
        event_shape: of images, (C, H, W).
    """

    headline = "distance"
    device = torch.device("cpu")  # of all features
    better = {"distance": "lower"}

    def __init__(self, event_shape: tuple[int, ...]):
        self.event_shape = tuple(event_shape)
        self.look = lru_cache(maxsize=3)(self._looked)  # by identity: the teacher's images are looked at once

    def describe(self) -> dict[str, Any]:
        facts = {"domain": "image", "features": AVERAGES, "reference": "the teacher's samples"}
        return facts | {"pixels": "decoded, rounded to 8 bits"}

    def __call__(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """Metrics of images [N, C, H, W] in [-1, 1] by themselves."""
        return {"detail": self.look(samples)[1], "outside": outside(samples)}

    def paired(self, samples: Tensor, reference: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """The distance from the teacher's images, as sets."""
        ours, theirs = (self.look(each)[0] for each in (samples, reference))
        near, far = (metrics.standardise(features, theirs) for features in (ours, theirs))
        return {"distance": metrics.energy_distance(near, far)}

    def floor(self, num_samples: int = 0) -> dict[str, float]:
        """Empty: there are no real images."""
        return {}

    def _looked(self, samples: Tensor) -> tuple[Tensor, float]:
        """Features [N, D] of images, and their mean detail."""
        check(samples, self.event_shape)
        features, detail = [], []
        for one in samples.split(1):
            x = eight_bits(one.to(self.device))
            edges = [x.diff(dim=axis).abs() for axis in (-1, -2)]
            pooled = [F.adaptive_avg_pool2d(x, 8), *(F.adaptive_avg_pool2d(edge, 4) for edge in edges)]
            features.append(torch.cat([part.flatten(1) for part in pooled], 1).double())
            detail.append(sum(edge.mean() for edge in edges) / 2)
        return torch.cat(features), float(torch.stack(detail).mean())
