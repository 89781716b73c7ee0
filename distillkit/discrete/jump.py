"""Jump Your Steps (arXiv 2410.07761): sampling times from a bound on the gain of split steps."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.discrete.denoiser import DiscreteDenoiser
from distillkit.discrete.noise import Noise

GOLDEN = (5**0.5 - 1) / 2


@torch.no_grad()
def split_gain(
    denoiser: DiscreteDenoiser, x_0: Tensor, t: float, middle: float, s: float, noise: Noise, cond: Cond | None = None
) -> float:
    """Upper bound of the gain of splitting the step from t to s at `middle`.

    It is `(middle - s) E sum R_middle (log R_middle - log R_t)`. The states x_t and x_middle are
    clean tokens x_0 [B, d] under the same noise, so that they are nested.
    """
    before, after = (
        denoiser(denoiser.process.add_noise(x_0, time, noise), time, cond)
        for time in torch.tensor([t, middle], dtype=torch.float64, device=x_0.device)
    )
    gain = x_0.new_zeros((), dtype=torch.float64)
    for where in after.movable():  # elsewhere nothing happens
        old, own = (reading[where].rates().double() for reading in (before, after))
        gain += (own * ((own + 1e-8).log() - (old + 1e-8).log())).sum()
    return float((middle - s) * gain / len(x_0))


def jump_your_steps(
    denoiser: DiscreteDenoiser, x_0: Tensor, num: int, noise: Noise, cond: Cond | None = None, t_max: float = 1.0
) -> Tensor:
    """`num` decreasing times, float64: each round splits all intervals where the gain is largest.

    Args:
        x_0: clean tokens [B, d]; 64 are enough for text.
        num: network evaluations; a last round that is not full makes the splits of largest gain
            only.
        noise: the noise, shared by all times.
        t_max: the first time.
    """
    ends = [t_max, 0.0]
    while len(ends) - 1 < num:
        splits = []
        for t, s in zip(ends[:-1], ends[1:], strict=True):
            low, high = s + 0.02 * (t - s), t - 0.02 * (t - s)
            inner = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
            gains = [split_gain(denoiser, x_0, t, m, s, noise, cond) for m in inner]
            while high - low > 0.02 * (t - s):  # golden section
                if gains[0] > gains[1]:
                    high, inner[1], gains[1] = inner[1], inner[0], gains[0]
                    inner[0] = high - GOLDEN * (high - low)
                    gains[0] = split_gain(denoiser, x_0, t, inner[0], s, noise, cond)
                else:
                    low, inner[0], gains[0] = inner[0], inner[1], gains[1]
                    inner[1] = low + GOLDEN * (high - low)
                    gains[1] = split_gain(denoiser, x_0, t, inner[1], s, noise, cond)
            splits.append((max(gains), inner[gains.index(max(gains))]))
        room = num - (len(ends) - 1)
        chosen = sorted(splits, reverse=True)[:room]
        ends = sorted([*ends, *(middle for _, middle in chosen)], reverse=True)
    return torch.tensor(ends[:-1], dtype=torch.float64)
