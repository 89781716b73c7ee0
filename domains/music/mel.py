"""Mel spectrograms by plain torch.

N: sounds; C: channels; T: samples; M: bands; F: frames.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

BANDS = 64
WINDOW = 0.05  # seconds, about: 1024 samples at 16 kHz, 2048 at 44.1 kHz
FLOOR = 1e-5  # of magnitudes, of which a full-scale sine has 1: -100 dB


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
    window = torch.hann_window(size, device=x.device)
    waves = torch.stft(
        x.float().flatten(0, 1), size, size // 4, window=window, pad_mode="constant", return_complex=True
    )
    mels = bands(size, rate).to(x.device) @ (2 / window.sum() * waves.abs())
    return mels.clamp_min(FLOOR).log().unflatten(0, x.shape[:2])


@cache
def bands(size: int, rate: int) -> Tensor:
    """The weights [M, size / 2 + 1] of frequencies in the bands."""
    mel = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, mel, BANDS + 2, dtype=torch.float64) / 2595) - 1)
    low, middle, high = (edges[i : i + BANDS, None] for i in range(3))
    f = torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64)
    rising, falling = (f - low) / (middle - low), (high - f) / (high - middle)
    return torch.minimum(rising, falling).clamp_min(0).float()
