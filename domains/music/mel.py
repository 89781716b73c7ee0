"""Mel spectrograms by plain torch, and the way back by Griffin and Lim's algorithm.

N: sounds; C: channels; T: samples; M: bands; F: frames; S: frequencies.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from domains.music import torchaudio

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
    return logarithm(magnitudes(x, size, size // 4), bands(rate, size, device=x.device))


def logarithm(magnitude: Tensor, bands_MS: Tensor, floor: float = FLOOR) -> Tensor:
    """The logarithm of magnitudes [..., S, F] in bands [..., M, F], at least log(floor)."""
    return (bands_MS @ magnitude).clamp_min(floor).log()


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


@cache
def bands(
    rate: int,
    size: int,
    num: int = BANDS,
    low: float = 0.0,
    high: float | None = None,
    slaney: bool = False,
    device: torch.device | None = None,
) -> Tensor:
    """The weights [num, size / 2 + 1] of frequencies in bands from `low` to `high` (rate / 2).

    With `slaney` bands are those of Slaney's Auditory Toolbox, and of librosa: evenly spaced up to
    1 kHz and in the logarithm above, of equal area.
    """
    with torch.inference_mode(False):  # they are kept for uses with gradients too
        high = high or rate / 2
        if (theirs := torchaudio.functional()) is not None:
            kind = {"norm": "slaney", "mel_scale": "slaney"} if slaney else {"norm": None, "mel_scale": "htk"}
            return theirs.melscale_fbanks(size // 2 + 1, low, high, num, rate, **kind).T.to(device)
        scale, back = (slaney_mel, slaney_hertz) if slaney else (htk_mel, htk_hertz)
        start, end = scale(torch.tensor([low, high], dtype=torch.float64)).tolist()
        edges = back(torch.linspace(start, end, num + 2, dtype=torch.float64))
        left, middle, right = (edges[i : i + num, None] for i in range(3))
        f = torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64)
        weights = torch.minimum((f - left) / (middle - left), (right - f) / (right - middle)).clamp_min(0)
        return (weights * 2 / (right - left) if slaney else weights).float().to(device)


def htk_mel(hertz: Tensor) -> Tensor:
    """Frequencies in Hz on the HTK scale."""
    return 2595 * (1 + hertz / 700).log10()


def htk_hertz(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)


def slaney_mel(hertz: Tensor) -> Tensor:
    return torch.where(hertz < 1000, hertz * 3 / 200, 15 + 27 / math.log(6.4) * (hertz / 1000).clamp_min(1).log())


def slaney_hertz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel * 200 / 3, 1000 * ((mel - 15) * math.log(6.4) / 27).exp())


def unbanded(mels: Tensor, bands_MS: Tensor, steps: int = 20) -> Tensor:
    """Magnitudes [..., S, F], not negative, whose bands are nearly `mels` [..., M, F].

    Multiplicative steps of non-negative matrix factorisation for the Kullback-Leibler divergence
    (Lee and Seung, 2001), which fits quiet bands as well as loud ones.
    """
    share = bands_MS.sum(0)[:, None].clamp_min(SMALL)
    m = (bands_MS.mT @ mels).clamp_min(SMALL)
    for _ in range(steps):
        m = m * (bands_MS.mT @ (mels / (bands_MS @ m).clamp_min(SMALL))) / share
    return m


def griffin_lim(
    magnitude: Tensor, hop: int, steps: int = 16, momentum: float = 0.99, first: Tensor | None = None
) -> Tensor:
    """Sounds [N, C, (F - 1) hop] with nearly these magnitudes [N, C, S, F].

    Griffin and Lim's algorithm with momentum (Perraudin et al., 2013). The phases begin as those of
    a fixed draw, so the same magnitudes give the same sound. The gradient is that of the magnitudes
    at the phases found, which are not differentiated.

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
        return x.unflatten(0, magnitude.shape[:2])

    def held(x: Tensor) -> Tensor:
        return x if first is None else torch.cat([first.to(x), x[..., first.shape[-1] :]], -1)

    with torch.no_grad():
        for _ in range(steps):
            found = spectrum(held(sound(phase)), window, hop)
            ahead = found - momentum / (1 + momentum) * before
            phase, before = ahead / ahead.abs().clamp_min(1e-16), found
    return sound(phase) if first is None else gone_on(first, sound(phase), hop // 4)


def gone_on(first: Tensor, made: Tensor, fade: int) -> Tensor:
    """The sound `made` [N, C, T] with the beginning `first` [N, C, K] in place of its own.

    There is no step behind the beginning: what was replaced differed from it by some amount, which
    is added on in reverse for `fade` samples, ever less of it.
    """
    num, first = first.shape[-1], first.to(made)
    fade = min(fade, num, made.shape[-1] - num)
    less = torch.linspace(1, 0, fade + 1, device=made.device)[:fade]
    behind = (first - made[..., :num])[..., num - fade :].flip(-1) * less
    return torch.cat([first, made[..., num : num + fade] + behind, made[..., num + fade :]], -1)
