"""Sounds at another sample rate.

N: samples of a sound.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit import checks
from domains.music import torchaudio

ZEROS = 24  # zero crossings of the sinc on either side
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
    side, periods = reach(old, new), -(-wanted // new)
    sounds = F.pad(x.reshape(-1, 1, x.shape[-1]), (side, periods * old - x.shape[-1] + side))
    parts = []
    for low in range(0, min(new, wanted), GROUP):
        weights = filters(old, new, low, x.dtype, x.device)
        parts.append(F.conv1d(sounds[..., low * old // new :], weights, stride=old)[..., :periods])
    return torch.cat(parts, 1).mT.flatten(1)[:, :wanted].reshape(*x.shape[:-1], wanted)


def reach(old: int, new: int) -> int:
    """The number of input samples on either side that an output sample is made of."""
    return math.ceil(ZEROS * old / (ROLLOFF * min(old, new)))


@lru_cache(maxsize=8)
def filters(old: int, new: int, low: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The filters [P, 1, taps] of phases `low` to `low + GROUP - 1`, at most to the last one.

    Their first tap is input sample floor(low old / new) - reach.
    """
    side, cutoff = reach(old, new), ROLLOFF * min(old, new) / old  # of half the rate of the input
    with torch.inference_mode(False):  # they are kept for uses with gradients too
        phase = torch.arange(low, min(low + GROUP, new), dtype=torch.float64) * old / new
        start, end = int(phase[0]) - side, int(phase[-1]) + side
        away = (torch.arange(start, end + 1) - phase[:, None]) * cutoff
        window = (away.clamp(-ZEROS, ZEROS) * math.pi / (2 * ZEROS)).cos().square()
        return (cutoff * away.sinc() * window).to(device, dtype)[:, None]
