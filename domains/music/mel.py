"""Mel spectrograms by plain torch, and the way back by Griffin and Lim's algorithm.

N: sounds; C: channels; T: samples; M: bands; F: frames; S: frequencies.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

BANDS = 64
WINDOW = 0.05  # seconds, about: 1024 samples at 16 kHz, 2048 at 44.1 kHz
FLOOR = 1e-5  # of magnitudes, of which a full-scale sine has 1: -100 dB
SMALL = 1e-8  # of magnitudes: none is taken for smaller


def log_mel(x: Tensor, rate: int) -> Tensor:
    """The logarithm of mel magnitudes [N, C, M, F] of sounds [N, C, T], at least log(FLOOR).

    A window of Hann's moves by a quarter of its length; outside of a sound there is silence. The
    bands are triangles of equal height between 0 and rate / 2, evenly spaced on the HTK scale
    `2595 log10(1 + f / 700)`.

    Args:
        x: sounds in [-1, 1].
        rate: samples a second, in Hz.
    """
    size = 2 ** round(math.log2(WINDOW * rate))
    return logarithm(magnitudes(x, size, size // 4), bands(rate, size))


def logarithm(magnitude: Tensor, bands_MS: Tensor, floor: float = FLOOR) -> Tensor:
    """The logarithm of magnitudes [..., S, F] in bands [..., M, F], at least log(floor)."""
    return (bands_MS.to(magnitude) @ magnitude).clamp_min(floor).log()


def magnitudes(x: Tensor, size: int, hop: int) -> Tensor:
    """Magnitudes [N, C, S, F] of sounds [N, C, T]; that of a full-scale sine is 1.

    Frame k is centred at sample k * hop, F = T // hop + 1.
    """
    window = hann(size, x.device)
    return (2 / window.sum() * spectrum(x, window, hop)).abs()


def spectrum(x: Tensor, window: Tensor, hop: int) -> Tensor:
    """The short-time Fourier transform [N, C, S, F] of sounds [N, C, T] in float32."""
    waves = torch.stft(
        x.float().flatten(0, 1), len(window), hop, window=window, pad_mode="constant", return_complex=True
    )
    return waves.unflatten(0, x.shape[:2])


def hann(size: int, device: torch.device) -> Tensor:
    return torch.hann_window(size, device=device)


def mel(hertz: float) -> float:
    """A frequency on the HTK scale."""
    return 2595 * math.log10(1 + hertz / 700)


@cache
def bands(rate: int, size: int, num: int = BANDS, low: float = 0.0, high: float | None = None) -> Tensor:
    """The weights [num, size / 2 + 1] of frequencies in bands from `low` to `high` (rate / 2)."""
    start, end = mel(low), mel(high or rate / 2)
    edges = 700 * (10 ** (torch.linspace(start, end, num + 2, dtype=torch.float64) / 2595) - 1)
    low, middle, high = (edges[i : i + num, None] for i in range(3))
    f = torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64)
    rising, falling = (f - low) / (middle - low), (high - f) / (high - middle)
    return torch.minimum(rising, falling).clamp_min(0).float()


def unbanded(mels: Tensor, bands_MS: Tensor, steps: int = 30) -> Tensor:
    """Magnitudes [..., S, F], not negative, whose bands are nearly `mels` [..., M, F].

    The least-squares solution, cut at zero, then multiplicative steps of non-negative matrix
    factorisation (Lee and Seung, 2001) for the squared error.
    """
    weights = bands_MS.to(mels)
    m, wanted, gram = torch.linalg.pinv(weights) @ mels, weights.mT @ mels, weights.mT @ weights
    m = m.clamp_min(SMALL)
    for _ in range(steps):
        m = m * (wanted / (gram @ m + SMALL))
    return m


def griffin_lim(
    magnitude: Tensor, hop: int, steps: int = 32, momentum: float = 0.99, first: Tensor | None = None
) -> Tensor:
    """Sounds [N, C, (F - 1) hop] with nearly these magnitudes [N, C, S, F].

    Griffin and Lim's algorithm with momentum (Perraudin et al., 2013). The phases begin as those of
    a fixed draw, so the same magnitudes give the same sound.

    Args:
        magnitude: as of `magnitudes`.
        hop: samples between two frames.
        steps: number of iterations.
        momentum: of the estimate.
        first: sounds [N, C, K] with which the result begins; the phases after them follow.
    """
    size, length = 2 * (magnitude.shape[-2] - 1), (magnitude.shape[-1] - 1) * hop
    window = hann(size, magnitude.device)
    size_of = magnitude * (window.sum() / 2)
    turns = torch.rand(magnitude.shape[-2:], generator=torch.Generator().manual_seed(0)).to(magnitude)
    phase, before = torch.polar(torch.ones_like(turns), 2 * math.pi * turns), 0.0

    def sound(phase: Tensor) -> Tensor:
        x = torch.istft((size_of * phase).flatten(0, 1), size, hop, window=window, length=length)
        x = x.unflatten(0, magnitude.shape[:2])
        return x if first is None else torch.cat([first.to(x), x[..., first.shape[-1] :]], -1)

    for _ in range(steps):
        found = spectrum(sound(phase), window, hop)
        ahead = found - momentum / (1 + momentum) * before
        phase, before = ahead / ahead.abs().clamp_min(1e-16), found
    return sound(phase)
