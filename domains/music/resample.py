"""Sounds at another sample rate.

N: samples of a sound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit import checks
from domains.music import torchaudio

ZEROS = 16  # zero crossings of the sinc on either side
ROLLOFF = 0.945  # the cut-off frequency, of the lower rate's half
GROUP = 256  # phases whose filters are made at once
WHOLE = 2**22  # numbers at most in the filters that torchaudio makes, all at once


def resample(x: Tensor, old: int, new: int) -> Tensor:
    """Sounds [..., ceil(N new / old)] at `new` Hz of sounds [..., N] at `old` Hz.

    The filter is a sinc under a window of Hann's, cut off at 0.945 of half the lower rate; outside
    of a sound there is silence. The user's torchaudio does it where it imports, to the same
    numbers.

    Args:
        x: sounds of floating-point numbers.
        old, new: samples a second, in Hz.
    """
    checks.whole(1, old=old, new=new)
    if not x.is_floating_point():
        raise ValueError(f"resample needs sounds of floating-point numbers in [-1, 1], got {x.dtype}")
    common = math.gcd(old, new)
    old, new = old // common, new // common
    if old == new or not x.shape[-1]:
        return x
    theirs = torchaudio.functional()
    if theirs is not None and old * new <= WHOLE:  # each of its filters is as long as a period
        return theirs.resample(x, old, new, lowpass_filter_width=ZEROS, rolloff=ROLLOFF)
    return polyphase(x, old, new)


def length(num: int, old: int, new: int) -> int:
    """How many samples at rate `new` are `num` samples at rate `old`, rounded up."""
    return -(-num * new // old)


def polyphase(x: Tensor, old: int, new: int) -> Tensor:
    """See `resample`; the rates have no common divisor.

    Output sample k new + p has the same filter for every period k: one strided convolution does all
    periods of a group of neighbouring phases, over the input samples near them.
    """
    wanted = length(x.shape[-1], old, new)
    cutoff = ROLLOFF * min(old, new) / old  # of half the rate of the input
    reach = math.ceil(ZEROS / cutoff)  # input samples on either side
    periods = -(-wanted // new)
    sounds = F.pad(x.reshape(-1, 1, x.shape[-1]), (reach, periods * old - x.shape[-1] + reach))
    parts = []
    for low in range(0, min(new, wanted), GROUP):
        phase = torch.arange(low, min(low + GROUP, new, wanted), dtype=torch.float64) * old / new
        start, taps = int(phase[0]), int(phase[-1]) - int(phase[0]) + 2 * reach + 1
        away = (torch.arange(start - reach, start - reach + taps) - phase[:, None]) * cutoff
        window = (away.clamp(-ZEROS, ZEROS) * math.pi / (2 * ZEROS)).cos().square()
        filters = (cutoff * away.sinc() * window).to(x)
        parts.append(F.conv1d(sounds[..., start:], filters[:, None], stride=old)[..., :periods])
    return torch.cat(parts, 1).mT.flatten(1)[:, :wanted].reshape(*x.shape[:-1], wanted)
