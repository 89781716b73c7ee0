"""Latents of sounds as data: `latent` [B, C, ...] and `prompt` int64 [B]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distillkit.pipelines.latents import LatentData
from domains.music.clap import Clap
from domains.music.data import MusicData
from domains.music.evaluation import MusicEvaluator
from domains.music.pipelines import MusicPipeline


class Latents(MusicData, LatentData):
    """Latents of sounds, see `LatentData`; samples are compared with the held-out sounds.

    Args:
        clap: folder of a CLAP model to measure with, see `Clap`; None leaves it out.
        path, pipeline, download, batch_size, size: as in `LatentData`.
    """

    teacher, pictured = MusicPipeline, LatentData.pictured

    def __init__(
        self,
        path: str,
        pipeline: str | None,
        download: bool = False,
        batch_size: int = 1,
        clap: str | None = None,
        size: dict[str, int | float | None] | None = None,
    ):
        LatentData.__init__(self, path, pipeline, download, batch_size, size)
        self.clap, self.rate = clap, self.codec.sample_rate

    def build_evaluator(self, held_out: Sequence[Any]) -> MusicEvaluator:
        clap = Clap(self.clap, self.prompts) if self.clap else None
        return MusicEvaluator(None, held_out, self.classes, self.rate, clap=clap)
