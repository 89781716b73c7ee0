"""Prompts as data, for teachers of sound: batches hold `prompt` int64 [B], its number.

N: sounds; C: channels; T: samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation.samples import check
from distillkit.evaluation.without_data import WithoutData
from distillkit.pipelines.data import PromptData
from domains.music import media
from domains.music.mel import log_mel
from domains.music.pipelines import MusicPipeline

AVERAGES = {"name": "averages of the log-mel spectrogram over parts of the sound, and of its changes"}
PARTS = 4  # of a sound


class Prompts(PromptData):
    """Prompts from a file, and no sounds, see `PromptData`."""

    domain, teacher = "music", MusicPipeline

    def build_evaluator(self, held_out: Sequence[Any]) -> PromptEvaluator:
        return PromptEvaluator(self.event_shape, self.codec.sample_rate)

    @property
    def media(self) -> Any:
        """`domains.music.media` at the pipeline's sample rate."""
        return media.of(self.codec)


class PromptEvaluator(WithoutData):
    """Compares sounds with the teacher's in averages of the log-mel spectrogram and its changes.

    - `distance` (the headline): see `WithoutData`.
    - `loudness`: mean level in dB, of which a full-scale square wave has 0; at least -100.

    Args:
        event_shape: of sounds, (C, T).
        rate: samples a second, in Hz.
    """

    def __init__(self, event_shape: tuple[int, ...], rate: int):
        super().__init__(event_shape)
        self.rate = rate

    def describe(self) -> dict[str, Any]:
        facts = {"domain": "music", "features": AVERAGES, "reference": "the teacher's samples"}
        return facts | {"sample_rate": self.rate}

    def __call__(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """Metrics of sounds [N, C, T] in [-1, 1] by themselves."""
        return {"loudness": self.look(samples)[1]}

    def looked(self, samples: Tensor) -> tuple[Tensor, float]:
        """Features [N, D] of sounds, and their mean loudness."""
        check(samples, self.event_shape)
        features, levels = [], []
        for one in samples.split(1):
            x = one.to(self.device).float().clamp(-1, 1)
            mels = log_mel(x, self.rate).flatten(1, 2)
            parts, changes = F.adaptive_avg_pool1d(mels, PARTS), mels.diff(dim=2, prepend=mels[:, :, :1]).abs().mean(2)
            features.append(torch.cat([parts.flatten(1), changes], 1).double())
            levels.append(10 * x.square().mean().clamp_min(1e-10).log10())
        return torch.cat(features), float(torch.stack(levels).mean())
