"""Resampling by a windowed sinc. C: channels; N: samples; K: taps."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

ZEROS = 16  # zero crossings of the sinc on each side
ROLL_OFF = 0.945  # of the lower Nyquist frequency
PIECE = 2**15  # samples that are made at once


def resample(x: Tensor, old: int, new: int) -> Tensor:
    """A sound [C, N] at another sample rate, [C, ceil(N new / old)]; outside of it there is silence.

    Sample j is the one at time j / new, low-passed at 0.945 of the lower Nyquist frequency.

    Args:
        x: the sound.
        old, new: samples a second.
    """
    if old == new:
        return x
    taps = table(old, new).to(x)
    phases, width = taps.shape[0], taps.shape[1] // 2 - 1
    length = -(-x.shape[-1] * new // old)
    x = F.pad(x, (width, width + 1))
    made = []
    for j in torch.arange(length, device=x.device).split(PIECE):
        windows = x.unfold(-1, taps.shape[1], 1)[:, j * old // new]
        made.append(torch.einsum("cnk,nk->cn", windows, taps[j % phases]))
    return torch.cat(made, -1) if made else x[:, :0]


@cache
def table(old: int, new: int) -> Tensor:
    """The weights [new / gcd, K] of the samples around that at floor(j old / new), for j by phase."""
    unit = math.gcd(old, new)
    cut = ROLL_OFF * min(1, new / old)  # in cycles of two old samples
    width = math.ceil(ZEROS / cut)
    j = torch.arange(new // unit, dtype=torch.float64)[:, None]
    ahead = (j * old / new).floor() - j * old / new + torch.arange(-width, width + 2, dtype=torch.float64)
    places = (cut * ahead).clamp(-ZEROS, ZEROS)
    return (cut * torch.sinc(places) * torch.cos(math.pi / 2 * places / ZEROS) ** 2).float()
