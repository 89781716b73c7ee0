"""Measures of how videos move, from the pixels alone.

x: [N, C, T, H, W] in [-1, 1], T >= 3; N: clips; T: frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = (2 / 255) ** 2 / 12  # variance of the error of rounding to 8 bits: power below it says nothing


def change(x: Tensor) -> Tensor:
    """Root mean square difference of each frame from the one before, [N, T - 1]."""
    return x.diff(dim=2).square().mean((1, 3, 4)).sqrt()


def flicker(x: Tensor) -> Tensor:
    """Mean square of second differences in time over that of first ones, [N]; 0 for a still.

    0 for brightness that changes evenly, 2 for something seen in one frame only, 3 for noise, up to
    4 for frames that alternate.
    """
    first, second = (x.diff(n=n, dim=2).square().mean((1, 2, 3, 4)) for n in (1, 2))
    return torch.where(first > ROUNDING, second / first.clamp_min(ROUNDING), 0)


def spectrum(x: Tensor) -> Tensor:
    """Mean power of the pixels at temporal frequencies k / T, k = 1 ... T // 2: [T // 2] decibels.

    Never below the power of rounding to 8 bits.

    Not below that of rounding to 8 bits.
    """
    power = torch.fft.rfft(x, dim=2, norm="ortho").abs().square()[:, :, 1:].mean((0, 1, 3, 4))
    return 10 * power.clamp_min(ROUNDING).log10()
