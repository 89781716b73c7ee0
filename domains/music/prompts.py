"""Prompts as data, for teachers of sound: batches hold `prompt` int64 [B], its number.

N: sounds; C: channels; T: samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation import metrics
from distillkit.evaluation.samples import OUTSIDE, check, out_of_range
from distillkit.evaluation.without_data import WithoutData
from distillkit.pipelines.data import PromptData
from domains.music import measures, media
from domains.music.clap import Clap
from domains.music.mel import log_mel
from domains.music.pipelines import MusicPipeline

AVERAGES = {"name": "averages of the log-mel spectrogram over parts of the sound, and of its changes"}
PARTS = 4  # of a sound


class Prompts(PromptData):
    """Prompts from a file, and no sounds, see `PromptData`.

    Args:
        clap: folder of a CLAP model to measure with, see `Clap`; None leaves it out.
        path, pipeline, size, held_out, download, batch_size: as in `PromptData`.
    """

    domain, teacher = "music", MusicPipeline

    def __init__(
        self,
        path: str,
        pipeline: str | None,
        size: Mapping[str, int | float | None] | None = None,
        held_out: int = 0,
        download: bool = False,
        batch_size: int = 1,
        clap: str | None = None,
    ):
        super().__init__(path, pipeline, size, held_out, download, batch_size)
        self.clap = clap

    def build_evaluator(self, held_out: Sequence[Any]) -> PromptEvaluator:
        clap = Clap(self.clap, self.prompts) if self.clap else None
        return PromptEvaluator(self.event_shape, self.codec.sample_rate, clap)

    @property
    def controls(self) -> dict[str, type]:
        """`domains.music.controls`."""
        from domains.music.controls import CONTROLS

        return CONTROLS

    @property
    def media(self) -> Any:
        """`domains.music.media` at the pipeline's sample rate."""
        return media.of(self.codec)


class PromptEvaluator(WithoutData):
    """Compares sounds with the teacher's in averages of the log-mel spectrogram and its changes.

    - `distance` (the headline): see `WithoutData`.
    - `loudness`: mean level in dB, of which a full-scale square wave has 0; at least -100.
    - `clap_frechet`: Frechet distance between CLAP's embeddings of both, where a model was given.
    - `clap_score`: of sounds and their prompts, likewise.
    - `outside`, `outside_by`: share of values outside of the range of sounds, and how far.

    Args:
        event_shape: of sounds, (C, T).
        rate: samples a second, in Hz.
        clap: the user's CLAP with the prompts, or None.

    Attributes:
        seconds: how long a sound plays.
    """

    def __init__(self, event_shape: tuple[int, ...], rate: int, clap: Clap | None = None):
        super().__init__(event_shape)
        self.rate, self.clap, self.seconds = rate, clap, event_shape[-1] / rate
        self.better = self.better | OUTSIDE | ({"clap_frechet": "lower", "clap_score": "higher"} if clap else {})
        self.heard = lru_cache(maxsize=3)(self._heard)

    def describe(self) -> dict[str, Any]:
        facts = {"domain": "music", "features": AVERAGES, "reference": "the teacher's samples"}
        facts |= {"clap": self.clap.facts} if self.clap else {}
        return facts | {"sample_rate": self.rate}

    def __call__(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """Metrics of sounds [N, C, T] in [-1, 1] by themselves."""
        return {"loudness": self.look(samples)[1], **out_of_range(samples)}

    def paired(self, samples: Tensor, reference: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """Distances from the teacher's sounds, as sets."""
        found = super().paired(samples, reference, cond)
        if self.clap:
            found["clap_frechet"] = metrics.frechet_distance(self.heard(samples), self.heard(reference))
        return found

    def thorough(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """The CLAP score."""
        return {"clap_score": self.clap.score(self.heard(samples).points_ND, cond["prompt"])} if self.clap else {}

    def _heard(self, samples: Tensor) -> metrics.Points:
        """CLAP's embeddings of sounds."""
        self.clap.device = self.device
        return metrics.Points(self.clap.features(samples, self.rate))

    def looked(self, samples: Tensor) -> tuple[Tensor, float]:
        """Features [N, D] of sounds, and their mean loudness."""
        check(samples, self.event_shape)
        features, levels = [], []
        for one in samples.split(1):
            x = one.to(self.device).float().clamp(-1, 1)
            mels = log_mel(x, self.rate).flatten(1, 2)
            parts, changes = F.adaptive_avg_pool1d(mels, PARTS), mels.diff(dim=2, prepend=mels[:, :, :1]).abs().mean(2)
            features.append(torch.cat([parts.flatten(1), changes], 1).double())
            levels.append(measures.level(x))
        return torch.cat(features), float(torch.cat(levels).mean())
