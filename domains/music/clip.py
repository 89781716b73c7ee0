"""The embedded clips: their sizes, their classes and their tuning."""

from __future__ import annotations

import torch
from torch import Tensor

RATE = 8_000  # samples a second
SAMPLES = 8_192  # of a clip: 1.024 seconds
TIMBRES = ("sine", "saw", "square", "pluck")
PITCHES = 24  # semitones, from A3 up to G sharp 5
LOWEST = 57  # the MIDI number of A3; 69 is A4, 440 Hz
RHYTHMS = ("note", "chord", "pulse", "arpeggio")
CLASSES = {"timbre": len(TIMBRES), "pitch": PITCHES, "rhythm": len(RHYTHMS)}
CHORD = (0, 4, 7, 12)  # semitones of a major chord above its root, with the octave
EIGHTH = (0.214, 0.333)  # seconds, the range of eighths at 140 and at 90 beats a minute


def frequency(midi: float) -> float:
    """The frequency in Hz of a pitch in equal temperament, A4 = 440 Hz."""
    return 440 * 2 ** ((midi - 69) / 12)


def shuffled(total: int, num: int) -> Tensor:
    """Row numbers [num] of `total` in a fixed random order, again from the first after the last."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[torch.arange(num) % total]
