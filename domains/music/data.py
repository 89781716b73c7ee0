"""Music data: `data` [B, C, N] float32 in [-1, 1], sounds, and classes int64 [B].

For teachers that go on from a beginning batches also have `first`, its sound [B, C, K].
B: batch; C: channels; N: samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from distillkit import checks
from distillkit.data import Batch, DistillData, column
from domains.music import media
from domains.music.clip import CLASSES, LOWEST, PITCHES, RATE, RHYTHMS, SAMPLES, TIMBRES, shuffled
from domains.music.notes import note
from domains.music.tones import tones

APART = 1_000_000_007  # between the seeds of two data sets
PART = 100_000_000  # between the seeds of a data set's parts


class MusicData(DistillData):
    """Base of all music data: how it is measured and shown, and the beginnings.

    Args:
        given: number of samples at the beginning of a clip that teachers are given; batches then
            have them as `first`, [B, C, given].
        batch_size: clips in a batch.
        clap: folder of a CLAP model to measure with, see `domains.music.clap`; None leaves it out.

    Attributes:
        rate: samples a second, in Hz.
        pitches: the MIDI numbers of the classes `pitch`, if there are such.
    """

    domain = "music"
    pictured = 12
    asks = {"first": "the beginning of each sound, numbers in [-1, 1] of shape [n, channels, samples]"}
    rate: int
    pitches: Sequence[int] | None = None

    def __init__(self, given: int = 0, batch_size: int = 32, clap: str | None = None):
        super().__init__(batch_size)
        checks.whole(0, given=given)
        self.given, self.context, self.clap = given, ("first",) if given else (), clap

    def with_first(self, batch: Batch) -> Batch:
        """The batch with its beginnings, if any are asked for."""
        return batch | ({"first": batch["data"][..., : self.given]} if self.given else {})

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.music.clap import Clap
        from domains.music.evaluation import MusicEvaluator

        clap = Clap(self.clap, getattr(self, "prompts", None)) if self.clap else None
        return MusicEvaluator(self.train, held_out, self.classes, self.rate, self.pitches, clap)

    def conditions(self, num: int) -> Batch:
        """Those of held-out clips in a fixed random order.

        Classes in turn would not do: the first and the third of `timbre` 4, `pitch` 24, `rhythm` 4
        would always be the same, and folders do not have every pitch of every instrument.
        """
        self.setup()
        rows = shuffled(len(self.test), num)
        if not self.context:
            return {name: column(self.test, name)[rows] for name in self.classes}
        batch = self.test[rows]
        return {name: batch[name] for name in (*self.classes, *self.context)}

    def real(self, num: int) -> Batch:
        """The held-out clips whose conditions `conditions(num)` are."""
        self.setup()
        return self.test[shuffled(len(self.test), num)]

    @property
    def controls(self) -> dict[str, type]:
        """`domains.music.controls`."""
        from domains.music.controls import CONTROLS

        return CONTROLS

    @property
    def shown(self) -> dict[str, int]:
        """The sample rate."""
        return {"rate": self.rate}

    @property
    def media(self) -> SimpleNamespace:
        """`domains.music.media` at the data's sample rate."""
        return media.at(self.rate)


class Tones(MusicData):
    """Notes, chords and rhythms by formulas, [1, 8192] at 8 kHz: 1.024 seconds.

    Classes: `timbre` (4), `pitch` (24 semitones from A3) and `rhythm` (4), see
    `domains.music.tones`. All are procedural. A clip is a function of the seed and its number, so
    nothing is stored; all triples of classes come in turn.

    Args:
        train, val, test: number of clips.
        seed: of tempo, loudness and beginnings.
        given, batch_size, clap: as in `MusicData`; with beginnings, clips are from anywhere in the
            music.
    """

    rate, pitches = RATE, range(LOWEST, LOWEST + PITCHES)
    names = {"timbre": TIMBRES, "rhythm": RHYTHMS, "pitch": [*map(note, pitches)]}

    def __init__(
        self,
        train: int = 20_000,
        val: int = 768,
        test: int = 768,
        seed: int = 0,
        given: int = 0,
        batch_size: int = 32,
        clap: str | None = None,
    ):
        super().__init__(given, batch_size, clap)
        checks.whole(1, PART, train=train, val=val, test=test)
        checks.seed(seed=seed)
        if given >= SAMPLES:
            raise ValueError(f"given must leave something of the {SAMPLES} samples to make, got {given}")
        self.sizes, self.seed = (train, val, test), seed
        self.event_shape, self.classes = (1, SAMPLES), dict(CLASSES)

    def load(self) -> tuple[Clips, Clips, Clips]:
        first = self.seed * APART
        return tuple(
            Clips(size, first + part * PART, self.with_first, self.given > 0) for part, size in enumerate(self.sizes)
        )


class Clips:
    """Clips as a data set: `clips[indices]` makes them.

    Args:
        size: their number.
        first: the seed of the first one.
        with_first, going_on: see `MusicData.with_first` and `tones`.
    """

    def __init__(self, size: int, first: int, with_first: Any, going_on: bool):
        self.first, self.with_first, self.going_on = first, with_first, going_on
        rows = torch.arange(size)
        self.timbre, self.rhythm, self.pitch = rows % 4, rows // 4 % 4, rows // 16 % 24

    def __len__(self) -> int:
        return len(self.pitch)

    def __getitem__(self, indices: Tensor) -> Batch:
        classes = {name: getattr(self, name)[indices] for name in CLASSES}
        return self.with_first(
            {"data": tones(**classes, seeds=self.first + indices, going_on=self.going_on), **classes}
        )
