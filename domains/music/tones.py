"""Notes, chords and rhythms by formulas: waves from tables, envelopes in closed form.

N: clips; V: voices of a clip; R: voices of all clips; T: samples.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from domains.music.clip import CHORD, EIGHTH, LOWEST, PITCHES, RATE, RHYTHMS, SAMPLES, TIMBRES, frequency

KEYS = PITCHES + max(CHORD)  # that are heard
TABLE = 2048  # samples of one period
HIGHEST = 3_800.0  # Hz: no overtone lies above
ATTACK, RELEASE = 0.01, 0.02  # seconds
FADES = (1.0, 1.0, 1.0, 5.0)  # of each timbre, 1 / s: a note falls by exp(-fade * seconds)
BRIGHT = 8.0  # 1 / s: the overtones of a plucked string fall so much faster than its lowest two
LEVELS = (-12.0, 0.0)  # dB, the range of loudness
LOUD = 0.15  # root mean square of the loudest wave
BAR = 6  # eighths from a note, or a chord, to the next
DELAY = 0.1  # seconds at most before the first note
LATEST = 3.0  # seconds into the music at which a clip that goes on may begin


def tones(timbre: Tensor, pitch: Tensor, rhythm: Tensor, seeds: Tensor, going_on: bool = False) -> Tensor:
    """Clips of music, [N, 1, T] in [-1, 1].

    - `note`: one note, again after six eighths;
    - `chord`: the major chord on the note, likewise;
    - `pulse`: the note on every eighth;
    - `arpeggio`: root, third, fifth and octave in turn, one on every eighth.

    Tempo (90 to 140 beats a minute), loudness (12 dB), the phases and the beginning are random. A
    clip begins at most 0.1 s before the first note, or, if it goes on, up to 3 s after it.

    Args:
        timbre, pitch, rhythm: classes int64 [N], see `domains.music.clip`.
        seeds: int64 [N]; a clip is a function of its classes and its seed.
        going_on: whether clips begin somewhere in the music.
    """
    drawn = torch.stack([torch.rand(8, generator=torch.Generator().manual_seed(int(s))) for s in seeds])
    row, voice = used(rhythm).nonzero(as_tuple=True)  # R voices of all clips
    timbre, key, chosen = timbre[row], pitch[row] + torch.tensor(CHORD)[voice], drawn[row]
    begins = chosen[:, 2:3] * (DELAY + LATEST * going_on) - DELAY
    eighth = EIGHTH[0] + (EIGHTH[1] - EIGHTH[0]) * chosen[:, :1]
    age, length = ages(rhythm[row, None], voice[:, None], eighth, torch.arange(SAMPLES) / RATE + begins)
    fade = torch.tensor(FADES)[timbre, None]
    envelope = torch.minimum(age / ATTACK, (length - age) / RELEASE).clamp(0, 1) * (-fade * age).exp()
    hertz = torch.tensor([frequency(LOWEST + key) for key in range(KEYS)])[key]
    phase = (hertz[:, None] * torch.arange(SAMPLES) / RATE + chosen.gather(1, 4 + voice[:, None])) % 1
    waves = read(tables()[0][timbre, key], phase)
    plucked = timbre == TIMBRES.index("pluck")
    if plucked.any():
        dull = read(tables()[1][key[plucked]], phase[plucked])
        waves[plucked] = dull + (waves[plucked] - dull) * (-BRIGHT * age[plucked]).exp()
    level = LOUD * 10 ** ((LEVELS[0] + (LEVELS[1] - LEVELS[0]) * drawn[:, 1]) / 20)
    level = level * torch.where(rhythm == RHYTHMS.index("chord"), 3**-0.5, 1.0)
    return (torch.zeros(len(seeds), SAMPLES).index_add(0, row, envelope * waves) * level[:, None])[:, None]


def used(rhythm: Tensor) -> Tensor:
    """Which of the voices of a chord with its octave a rhythm [N] has, [N, V]."""
    last = torch.tensor([1, 3, 1, 4])[rhythm]
    return torch.arange(len(CHORD)) < last[:, None]


def ages(rhythm: Tensor, voice: Tensor, eighth: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """How long ago a voice was struck, negative before its first note, and how long its notes are.

    Args:
        rhythm, voice: [R, 1].
        eighth: seconds, [R, 1].
        time: seconds from the beginning of the music, [R, T].

    Returns:
        seconds [R, T] and [R, 1]; a voice is silent where it was struck longer ago than that.
    """
    pulse, arpeggio = (rhythm == RHYTHMS.index(name) for name in ("pulse", "arpeggio"))
    period = eighth * torch.where(pulse, 1, torch.where(arpeggio, len(CHORD), BAR))
    length = eighth * torch.where(pulse | arpeggio, 1, BAR)
    since = time - arpeggio * voice * eighth
    return torch.where(since < 0, since, since % period), length


def read(table: Tensor, phase: Tensor) -> Tensor:
    """Waves [..., T] of one period each, `table` [..., TABLE], at a phase in [0, 1), [..., T]."""
    place = phase * TABLE
    low = place.long().clamp_max(TABLE - 1)
    a, b = table.gather(-1, low), table.gather(-1, (low + 1) % TABLE)
    return a + (b - a) * (place - low)


@cache
def tables() -> tuple[Tensor, Tensor]:
    """One period of every timbre and key [4, keys, TABLE], and of a plucked string's lowest two.

    Root mean square 1; no overtone lies above `HIGHEST`. A sawtooth's overtone k has the strength
    1 / k, a square wave has the odd ones of them, and a plucked string begins as a sawtooth.
    """
    hertz = torch.tensor([frequency(LOWEST + key) for key in range(KEYS)])
    k = torch.arange(1, 1 + int(HIGHEST / hertz[0]))
    heard = (k * hertz[:, None] <= HIGHEST) / k
    strengths = torch.stack([heard * (k == 1), heard, heard * (k % 2), heard, heard * (k <= 2)])
    waves = strengths @ torch.sin(2 * math.pi * k[:, None] * torch.arange(TABLE) / TABLE)
    waves = waves / waves.square().mean(-1, keepdim=True).sqrt()
    return waves[:4], waves[4]
