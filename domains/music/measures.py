"""Pitch, onsets and levels of sounds by formulas.

N: sounds; C: channels; T: samples; K: candidates of a pitch; V: voices; M: bands; F: frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.music.mel import bands, magnitudes

QUIETEST = 1e-10  # of mean squares: -100 dB

WINDOW = 0.25  # seconds, about, in which a pitch is sought
FINER = 4  # steps of the spectrum where windows have one
HARMONICS, WEAKER = 8, 0.6  # of a note that are summed; the weight of each over that of the one below
CENTS = 5  # between candidates of a pitch
BESIDE = 12  # semitones beyond the asked pitches in which one is sought
NEAR = 50.0  # cents: half a semitone

STEP = 0.008  # seconds, about, between frames in which onsets are sought
WIDE = 8  # steps of a window
LAG = 8  # steps over which a rise is measured
SMOOTH = 9  # steps over which rises are averaged
FEW = 24  # bands
QUIET = 3e-3  # of the loudest band: -50 dB, below which nothing rises
SILENT = 1e-4  # of magnitudes: -80 dB, below which no band is loud
RISE = 0.1  # an onset rises by so much of the strongest rise in its sound
LATE = 0.012  # seconds from an onset to its peak, the mean of the embedded sounds
TOLERANCE = 0.05  # seconds, of onsets
FINE = 0.02  # seconds between the rhythms that are tried


def level(x: Tensor) -> Tensor:
    """The level of sounds [N, C, T] in dB, [N]; a full-scale square wave has 0, silence -100."""
    return 10 * x.double().square().mean((1, 2)).clamp_min(QUIETEST).log10()


def decibels(natural: Tensor) -> Tensor:
    """Natural logarithms of magnitudes in dB."""
    return 20 / math.log(10) * natural


def log_spectral_distance(mels: Tensor, others: Tensor) -> Tensor:
    """Distance of log-mel spectra in dB, [N], of logarithms of magnitudes [N, C, M, F].

    It is the root mean square over the bands of a frame, averaged over frames and channels.
    """
    return decibels(mels - others).square().mean(-2).sqrt().mean((1, 2))


def pitch(x: Tensor, rate: int, lowest: float, highest: float, voices: Sequence[int] = (0,)) -> Tensor:
    """MIDI numbers of sounds [N, C, T], real, [N], A4 = 69 = 440 Hz: the root of `voices`.

    The root is where the sum over voices and harmonics h of the roots of magnitudes at the
    frequencies h f, each with the weight 0.6^(h - 1), is largest (subharmonic summation, Hermes
    1988). Magnitudes are averaged over the sound.

    Args:
        rate: samples a second, in Hz.
        lowest, highest: MIDI numbers between which a root is sought.
        voices: semitones above the root that sound with it or in turn.
    """
    size = min(2 ** round(math.log2(WINDOW * rate)), 2 ** int(math.log2(x.shape[-1])))
    window = torch.hann_window(size, device=x.device)
    frames = x.float().mean(1).unfold(-1, size, size // 4)
    spectrum = torch.fft.rfft(frames * window, FINER * size).abs().mean(1).sqrt()  # [N, FINER size / 2 + 1]
    midi = torch.arange(round(100 * (highest - lowest) / CENTS) + 1, device=x.device) * (CENTS / 100) + lowest
    above = torch.tensor(voices, device=x.device)
    hertz = 440 * 2 ** ((midi[:, None] + above - 69) / 12)  # [K, V]
    score = 0
    for h in range(1, 1 + HARMONICS):
        place = h * hertz * (FINER * size / rate)
        heard = (place < spectrum.shape[1] - 1) * WEAKER ** (h - 1)
        low = place.long().clamp_max(spectrum.shape[1] - 2)
        part = place - low
        score = score + (heard * (spectrum[:, low] * (1 - part) + spectrum[:, low + 1] * part)).sum(-1)
    best = score.argmax(1).clamp(1, len(midi) - 2)
    a, b, c = (score.gather(1, best[:, None] + i)[:, 0] for i in (-1, 0, 1))
    bend = (a - 2 * b + c).clamp_max(-1e-12)  # of a parabola through the three best candidates
    return midi[best] + CENTS / 100 * ((a - c) / (2 * bend)).clamp(-0.5, 0.5)


def onsets(x: Tensor, rate: int) -> Tensor:
    """Times in seconds at which notes begin in sounds [N, C, T], [N, K], infinite after the last.

    They are the peaks of the mean rise of the log-mel spectrum (spectral flux, Bello et al. 2005);
    before a sound there is silence.
    """
    hop = max(1, round(STEP * rate))
    size = WIDE * hop
    sound = F.pad(x.float().mean(1, keepdim=True), (size, 0))
    mels = bands(rate, size, FEW).to(sound) @ magnitudes(sound, size, hop)[:, 0, :, : -(WIDE // 2)]
    mels = (mels / mels.amax((1, 2), keepdim=True).clamp_min(SILENT) + QUIET).log()
    rise = F.pad((mels[..., LAG:] - mels[..., :-LAG]).clamp_min(0).mean(1), (LAG, 0))  # [N, F]
    rise = F.avg_pool1d(rise[:, None], SMOOTH, 1, SMOOTH // 2, count_include_pad=False)
    near = round(TOLERANCE * rate / hop)
    peak = (rise == F.max_pool1d(rise, 2 * near + 1, 1, near))[:, 0]
    peak = peak & ~F.pad(peak[:, :-1], (1, 0))  # the first of equal ones
    rise = rise[:, 0]
    found = peak & (rise > 0) & (rise >= RISE * rise.amax(1, keepdim=True))
    times = (torch.arange(rise.shape[1], device=x.device) * hop - size) / rate - LATE
    return torch.where(found, times, torch.inf).sort(1).values[:, : int(found.sum(1).max())]


def onset_f(found: Tensor, periods: Sequence[float], seconds: float) -> Tensor:
    """F-measure of onsets [N, K] in seconds against the evenly spaced ones that fit best, [N].

    It is 2 hits / (found + expected); a hit is an expected onset with one found at most 50 ms away.

    Args:
        found: infinite after the last.
        periods: seconds between two onsets, the shortest and the longest.
        seconds: length of the sounds.
    """
    shortest, longest = periods
    found, best = found.cpu().double(), torch.zeros(len(found), dtype=torch.double)
    number = found.isfinite().sum(1, keepdim=True)
    for period in torch.arange(shortest, longest + FINE, FINE).tolist():
        first = torch.arange(0, min(period, seconds), FINE, dtype=torch.double)  # G rhythms of this tempo
        expected = first[:, None] + period * torch.arange(1 + int(seconds / period))  # [G, E]
        inside = expected < seconds
        near = ((found[:, None, :, None] - expected[:, None]).abs() <= TOLERANCE).any(2) & inside
        best = torch.maximum(best, (2 * near.sum(2) / (number + inside.sum(1))).amax(1))
    return best
