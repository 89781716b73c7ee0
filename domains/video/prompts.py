"""Prompts as data, for video teachers: batches hold `prompt` int64 [B], its number.

Those of image-to-video teachers hold `image` too, float [B, 3, H, W] in [-1, 1], the first frame.
N: clips; F, H, W: frames, height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from distillkit import checks
from distillkit.evaluation.samples import check, eight_bits
from distillkit.evaluation.without_data import WithoutData
from distillkit.pipelines.data import PromptData
from domains.video import media
from domains.video.first_frames import FirstFrames, captioned
from domains.video.look import AVERAGES, Look, averages, look, motion_apart
from domains.video.pipelines import VideoPipeline


class Prompts(PromptData):
    """Prompts from a file, and no videos.

    An image-to-video teacher needs a folder of images with captions, see `first_frames.captioned`;
    then `held_out` counts images.

    Args:
        fps: frames a second at which clips are shown.
        frames, height, width: the size, as folders of earlier versions say it.
        path, pipeline, size, held_out, download, batch_size: as in `PromptData`.
    """

    domain, teacher = "video", VideoPipeline

    def __init__(
        self,
        path: str,
        pipeline: str | None,
        size: dict[str, int | float | None] | None = None,
        held_out: int = 0,
        fps: float = 16.0,
        download: bool = False,
        batch_size: int = 1,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ):
        size = size or {"frames": frames, "height": height, "width": width}
        super().__init__(path, pipeline, size, held_out, download, batch_size)
        checks.positive(fps=fps)
        self.fps = fps
        if self.context:  # of an image with several captions all are held out
            files, asked = self.first.files, self.asked.tolist()
            away = {files[i] for i in asked} if held_out else set()
            kept = [i for i in self.trained.tolist() if files[i] not in away]
            if not kept:
                raise ValueError(f"held_out must leave an image to train on, got {held_out}: hold out fewer")
            self.trained = torch.tensor(kept)

    asks = {"image": "the first frame of each clip, [3, H, W] in [-1, 1]"}

    def read(self, path):
        if not self.context:
            return super().read(path)
        self.first = FirstFrames(captioned(Path(path).expanduser(), self.prompts), self.event_shape[2:])
        return len(self.first)

    def part(self, rows):
        return self.first.at(rows) if self.context else super().part(rows)

    def build_evaluator(self, held_out: Sequence[Any]) -> PromptEvaluator:
        return PromptEvaluator(self.event_shape)

    @property
    def media(self) -> Any:
        """`domains.video.media` at these frames a second."""
        at = {"film": partial(media.film, fps=self.fps), "save": partial(media.save, fps=self.fps)}
        return SimpleNamespace(picture=media.picture, compare=media.compare, **at)


class PromptEvaluator(WithoutData):
    """Compares clips with the teacher's in averages over parts of a clip and of its changes.

    - `distance` (the headline): see `WithoutData`.
    - `motion_gap` and `spectrum`: as in `evaluation.VideoEvaluator`, against the teacher's clips.
    - `motion` and `flicker`: of the clips themselves.

    Args:
        event_shape: of clips, (3, F, H, W).
    """

    better = WithoutData.better | {"motion_gap": "lower", "spectrum": "lower"}

    def describe(self) -> dict[str, Any]:
        facts = {"domain": "video", "features": AVERAGES, "reference": "the teacher's samples"}
        return facts | {"pixels": "decoded, rounded to 8 bits"}

    def __call__(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """Metrics of clips [N, 3, F, H, W] in [-1, 1] by themselves."""
        look = self.look(samples)
        return {"motion": float(look.change.mean()), "flicker": float(look.flicker.mean())}

    def paired(self, samples: Tensor, reference: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """Distances from the teacher's clips, as sets."""
        found = super().paired(samples, reference, cond)
        return found | motion_apart(self.look(samples), self.look(reference))

    def looked(self, samples: Tensor) -> Look:
        check(samples, self.event_shape)
        return look((eight_bits(one.to(self.device)) for one in samples.split(1)), averages)
