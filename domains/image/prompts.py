"""Prompts as data, for image teachers: batches hold `prompt` int64 [B], its number.

N: images; C, H, W: channels, height, width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation import metrics
from distillkit.evaluation.samples import OUTSIDE, check, eight_bits, out_of_range
from distillkit.evaluation.without_data import WithoutData
from distillkit.pipelines.data import PromptData
from domains.image.clip import ClipScore
from domains.image.evaluation import Extractor, inception
from domains.image.pipelines import ImagePipeline

AVERAGES = {"name": "averages over parts of the image and of its edges"}


class Prompts(PromptData):
    """Prompts from a file, and no images, see `PromptData`.

    Args:
        features: `averages`, or `inception:/path/to/weights` for the Frechet distance too.
        clip: folder of a CLIP model, see `ClipScore`; None leaves the metric out.
        path, pipeline, size, held_out, download, batch_size: as in `PromptData`.
    """

    domain, teacher = "image", ImagePipeline

    def __init__(
        self,
        path: str,
        pipeline: str | None,
        size: dict[str, int | float | None] | None = None,
        held_out: int = 0,
        download: bool = False,
        batch_size: int = 1,
        features: str = "averages",
        clip: str | None = None,
    ):
        super().__init__(path, pipeline, size, held_out, download, batch_size)
        self.features, self.clip = features, clip

    def build_evaluator(self, held_out: Sequence[Any]) -> PromptEvaluator:
        clip = ClipScore(self.clip, self.prompts) if self.clip else None
        return PromptEvaluator(self.event_shape, self.features, clip)

    @property
    def media(self) -> ModuleType:
        """`domains.image.media`."""
        from domains.image import media

        return media


class PromptEvaluator(WithoutData):
    """Compares images with the teacher's in averages over parts of an image and of its edges.

    - `distance` (the headline): see `WithoutData`.
    - `detail`: mean difference of neighbouring pixels, of the images themselves.
    - `outside`, `outside_by`: share of values outside of the range of images, and how far.
    - `frechet`: between Gaussians fitted to Inception's features of both, where its weights were
      given.
    - `clip`: the CLIP score of images and their prompts, where a model was given.

    Args:
        event_shape: of images, (C, H, W).
        features: `averages`, or `inception:/path/to/weights`.
        clip: the CLIP score of the prompts, or None.
    """

    def __init__(self, event_shape: tuple[int, ...], features: str = "averages", clip: ClipScore | None = None):
        kind, _, path = features.partition(":")
        if (kind, bool(path)) not in (("averages", False), ("inception", True)):
            raise ValueError(f"features must be averages or inception:/path/to/weights, got {features!r}")
        super().__init__(event_shape)
        self.clip, self.path = clip, Path(path).expanduser() if path else None
        self.better = (
            self.better | OUTSIDE | ({"frechet": "lower"} if path else {}) | ({"clip": "higher"} if clip else {})
        )
        self.inception_of = lru_cache(maxsize=3)(self._seen)

    def describe(self) -> dict[str, Any]:
        facts = {"domain": "image", "features": AVERAGES, "reference": "the teacher's samples"}
        facts |= {"inception": self.inception.facts} if self.path else {}
        facts |= {"clip": self.clip.facts} if self.clip else {}
        return facts | {"pixels": "decoded, rounded to 8 bits"}

    def __call__(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """Metrics of images [N, C, H, W] in [-1, 1] by themselves."""
        return {"detail": self.look(samples)[1], **out_of_range(samples)}

    def paired(self, samples: Tensor, reference: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """Distances from the teacher's images, as sets."""
        found = super().paired(samples, reference, cond)
        if self.path:
            found["frechet"] = metrics.frechet_distance(self.inception_of(samples), self.inception_of(reference))
        return found

    def thorough(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """The CLIP score, whose model is large."""
        if self.clip is None:
            return {}
        self.clip.device = self.device
        return {"clip": self.clip(samples, cond["prompt"])}

    @cached_property
    def inception(self) -> Extractor:
        """Inception's features."""
        return inception(self.path, self.device)

    @torch.no_grad()
    def _seen(self, samples: Tensor) -> metrics.Points:
        """Inception's features of images."""
        return metrics.Points(torch.cat([self.inception(eight_bits(one.to(self.device))) for one in samples.split(16)]))

    def looked(self, samples: Tensor) -> tuple[Tensor, float]:
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
