"""A user's prompts as data, for pipelines: `prompt` int64 [B], its number, and `camera` [B, 13]."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

from distillkit import checks
from distillkit.data import TensorData
from domains.image.clip import ClipScore
from domains.image.prompts import Prompts
from domains.text_to_3d.data import ASKS, Orbits
from domains.text_to_3d.pipelines import ViewPipeline


class ViewPrompts(Prompts):
    """Prompts from a file, each seen by cameras around it, and no images.

    Args:
        orbits: the cameras; None means those of `domains.text_to_3d.data.Orbits`.
        seed: of the cameras.
        path, pipeline, size, held_out, download, batch_size, features, clip: as in
            `domains.image.prompts.Prompts`.
    """

    domain, teacher, asks = "text_to_3d", ViewPipeline, ASKS

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
        orbits: Orbits | None = None,
        seed: int = 0,
    ):
        super().__init__(path, pipeline, size, held_out, download, batch_size, features, clip)
        checks.seed(seed=seed)
        self.orbits, self.seed = orbits or Orbits(), seed

    def part(self, rows: Tensor) -> Any:
        return TensorData({"prompt": rows, "camera": self.orbits.draw(len(rows), self.seed + len(rows))})

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.text_to_3d.evaluation import PromptEvaluator

        clip = ClipScore(self.clip, self.prompts) if self.clip else None
        return PromptEvaluator(self.event_shape, self.features, clip)

    @property
    def media(self) -> ModuleType:
        """`domains.text_to_3d.media`."""
        from domains.text_to_3d import media

        return media
