"""How well a teacher denoises data, beside its own samples and beside what the data's mean says.

A teacher of other data is worse on them than on its own samples. That alone is no sign: samples
lie where the network puts them, and healthy teachers are up to seven times better there. A teacher
that is worse than a constant guess as well was not trained on such data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distillkit.devices import in_chunks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.process import Process, expand_mask
from distillkit.discrete.noise import fresh
from distillkit.losses.reduce import mean_per_sample

SEED = 8642  # of the noise that is added
RATIOS = (1.0, 2.0, 4.0)  # noise over the deviation of the teacher's samples; with less, networks' own errors count
TIMES = (0.25, 0.5, 0.75)  # of tokens
LEAST = 1e-12  # an error
CERTAIN = 20.0  # nats of a token that is ruled out


class Likeness(NamedTuple):
    """A teacher's error on data at one level.

    Args:
        own: over its error on its own samples.
        guess: over the error of a guess that knows the data's mean and spread, of tokens their
            frequencies.
        itself: its error on its own samples over that of such a guess of them; about 1 if it has
            learnt nothing yet.
    """

    own: float
    guess: float
    itself: float


class Judge:
    """Errors of a teacher at a few levels, all with the same noise.

    Args:
        teacher: the teacher.
        own: its own unguided samples before they are decoded, [N, ...], on the CPU.
        cond: their conditions, on the teacher's device.
        chunk: samples in one network evaluation.
    """

    def __init__(self, teacher: Any, own: Tensor, cond: Cond, chunk: int):
        self.teacher, self.own, self.chunk = teacher, own, chunk
        codec = teacher.codec
        self.cond = codec.conditions(cond, teacher.event_shape)
        self.gaussian = isinstance(teacher.process, Process)
        self.levels = self.gaussian_levels() if self.gaussian else list(TIMES)

    def gaussian_levels(self) -> list[float]:
        """Times of `RATIOS`, within those that the teacher samples at."""
        process, largest = self.teacher.process, float(self.teacher.grid(2)[0])
        std = float(deviation(self.own, self.cond.get("mask")))
        times = (process.from_ratio(torch.tensor(ratio * std, dtype=torch.float64)) for ratio in RATIOS)
        return [min(max(float(t), process.t_min), process.t_max, largest) for t in times]

    def errors(self, x_0: Tensor, cond: Cond | None = None) -> list[Tensor]:
        """The error of each sample at each level, [N]: squared, or nats a noised token."""
        cond = self.cond if cond is None else cond
        error = self.squared(x_0) if self.gaussian else self.nats

        def at(level: float) -> Callable[[slice], Tensor]:
            def part(rows: slice) -> Tensor:
                own = {name: value[rows] for name, value in cond.items()}
                return error(x_0[rows].to(self.teacher.device), level, own, rows)

            return part

        return [in_chunks(at(level), len(x_0), self.chunk).double().clamp_min(LEAST) for level in self.levels]

    def squared(self, x_0: Tensor) -> Callable[[Tensor, float, Cond, slice], Tensor]:
        """`mean |D(alpha x_0 + sigma eps, t, c) - x_0|^2` of some rows of x_0, [B]."""
        eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(SEED))

        def error(x_0: Tensor, level: float, cond: Cond, rows: slice) -> Tensor:
            t = torch.full((len(x_0),), level, device=x_0.device)
            x_t = self.teacher.process.add_noise(x_0, eps[rows].to(x_0), t)
            wrong = self.teacher.denoiser(x_t, t, cond) - x_0
            return mean_per_sample(wrong.square(), cond.get("mask")).flatten()

        return error

    def nats(self, x_0: Tensor, level: float, cond: Cond, rows: slice) -> Tensor:
        """`-log p(x_0^i | x_t)` of the positions that the reversal may change, [B]."""
        process = self.teacher.process
        noise = fresh(SEED, len(x_0), x_0.shape[1], x_0.device, rows.start)(0)
        t = torch.full((len(x_0),), level, device=x_0.device)
        reading = self.teacher.denoiser(process.add_noise(x_0, t, noise), t, cond)
        total = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
        count = torch.zeros_like(total)
        for where in reading.movable():
            surprise = -reading[where].log_mean().gather(-1, x_0[where][..., None])[..., 0].double()
            total.index_add_(0, where[0], surprise.clamp_max(CERTAIN))
            count.index_add_(0, where[0], torch.ones_like(surprise))
        return total * (len(x_0) / count.sum().clamp_min(1))  # so that its mean is one of positions

    def guesses(self, x_0: Tensor) -> list[float]:
        """The error of the best constant guess at each level, scaled by what x_t says."""
        if not self.gaussian:
            return [max(entropy(x_0), LEAST)] * len(self.levels)
        variance = float(deviation(x_0, self.cond.get("mask"))) ** 2
        noise = [float(self.teacher.process.ratio(torch.tensor(t, dtype=torch.float64))) ** 2 for t in self.levels]
        return [max(variance * level / (variance + level), LEAST) for level in noise]

    def likeness(self, x_0: Tensor) -> list[Likeness]:
        """The likeness of clean data [N, ...] to the teacher's samples at each level."""
        real, own = ([float(error.mean()) for error in self.errors(x)] for x in (x_0, self.own))
        levels = zip(real, own, self.guesses(x_0), self.guesses(self.own), strict=True)
        return [Likeness(a / b, a / guess, b / other) for a, b, guess, other in levels]

    def gain(self, x_0: Tensor, cond: Cond) -> float:
        """The largest error under other conditions over that under the right ones."""
        right, other = self.errors(x_0), self.errors(x_0, cond)
        return max(float(b.mean() / a.mean()) for a, b in zip(right, other, strict=True))


def deviation(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The standard deviation of samples [N, ...] about their mean sample, over elements of sets."""
    if mask is None:
        return x.double().var(0, unbiased=False).mean().sqrt()
    seen = expand_mask(mask.cpu(), x).expand_as(x)
    count = seen.sum(0).clamp_min(1)
    mean = torch.where(seen, x.double(), 0).sum(0) / count
    return (torch.where(seen, x.double() - mean, 0).square().sum() / seen.sum().clamp_min(1)).sqrt()


def entropy(tokens: Tensor) -> float:
    """Nats of the frequencies of tokens, of any shape."""
    shares = tokens.flatten().bincount().double() / tokens.numel()
    return float(-torch.xlogy(shares, shares).sum())
