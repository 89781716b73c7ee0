"""Latents of images as data: `latent` [B, C, H', W'], and `prompt` or `label` int64 [B]."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from distillkit.pipelines.latents import LatentData
from domains.image.clip import ClipScore
from domains.image.evaluation import ImageEvaluator
from domains.image.pipelines import ImagePipeline


class Latents(LatentData):
    """Latents of images, see `LatentData`; samples are compared with the held-out images.

    Args:
        features: `pixels`, or `inception:/path/to/weights`, see `ImageEvaluator`.
        clip: folder of a CLIP model, see `ClipScore`; None leaves the metric out.
        path, pipeline, download, batch_size, size: as in `LatentData`.
    """

    domain, teacher = "image", ImagePipeline

    def __init__(
        self,
        path: str,
        pipeline: str | None,
        download: bool = False,
        batch_size: int = 1,
        features: str = "pixels",
        clip: str | None = None,
        size: dict[str, int | float | None] | None = None,
    ):
        super().__init__(path, pipeline, download, batch_size, size)
        self.features, self.clip = features, clip

    def build_evaluator(self, held_out: Sequence[Any]) -> ImageEvaluator:
        clip = ClipScore(self.clip, self.prompts) if self.clip and self.prompts else None
        return ImageEvaluator(None, held_out, {}, self.features, clip)

    @property
    def media(self) -> ModuleType:
        """`domains.image.media`."""
        from domains.image import media

        return media
