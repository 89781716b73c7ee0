"""Hops of consistency methods: pairs of neighbouring noise levels, and the steps between them.

On Gaussian data the law of what a chain of hops leaves is known. With the angle of a level
`theta = atan(sigma / (alpha S))`, S the standard deviation of the data, a step of DDIM multiplies
what is normal by `cos(theta_t - theta_s)` and leaves the mean exact. So a chain ends with the
standard deviation `S prod cos(theta_t - theta_s)`, whatever the process.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import velocity_from_x0
from distillkit.diffusion.process import CLEAN, Process, expand
from distillkit.diffusion.sampling import Denoise
from distillkit.diffusion.times import LogNormal, Times
from distillkit.spec import Recorded


class Hops(Recorded, ABC):
    """A law of hops `t -> s`, which may change in the course of a run."""

    changes: bool  # whether it does

    @abstractmethod
    def __call__(self, u: Tensor, process: Process, start: float, done: float) -> tuple[Tensor, Tensor]:
        """Times `(t, s)` of hops, [B] each, t above s; s is `CLEAN` where a hop ends at the datum.

        Args:
            u: uniform numbers in [0, 1), [B].
            process: the noising process.
            start: the largest time.
            done: the share of the run that has passed, in [0, 1].
        """

    @abstractmethod
    def edges(self, process: Process, start: float, segments: int) -> Tensor:
        """The lower ends of the segments from `start` down, [segments]; the last is `CLEAN`.

        Raises:
            ValueError: these hops cannot be cut so.
        """


class Grid(Hops):
    """The hops of the process's own grid of N levels and the datum, as a sampler of N steps takes.

    Args:
        num: N, or N at the beginning of the run.
        last: N at its end; None means that it stays.
        doubling: N becomes twice as large (or half) in equal parts of the run (iCT, arXiv
            2310.14189), else it goes through all numbers in equal parts.
        times: the law of the level that a hop passes; None means that every hop is as likely. iCT
            has `LogNormal(-1.1, 2.0)`.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, num: int = 64, last: int | None = None, doubling: bool = False, times: Times | None = None):
        checks.whole(1, 10_000, num=num)
        if last is not None:
            checks.whole(1, 10_000, last=last)
        self.num, self.last, self.doubling, self.times = num, last, doubling, times

    @property
    def changes(self):
        return self.last not in (None, self.num)

    def now(self, done: float) -> int:
        """N after this share of the run."""
        if not self.changes:
            return self.num
        few, many = sorted((self.num, self.last))
        parts = 1 + (math.ceil(math.log2(many / few)) if self.doubling else many - few)
        part = min(int(parts * done), parts - 1)
        if not self.doubling:
            return self.num + part if self.last > self.num else self.num - part
        return min(self.num * 2**part, self.last) if self.last > self.num else max(self.num // 2**part, self.last)

    def levels(self, process: Process, start: float, done: float = 0.0) -> Tensor:
        """The ends of all hops, falling, float32 [N + 1]; the last is `CLEAN`."""
        levels = process.grid(self.now(done) + 1, start).to(torch.float32)
        return torch.cat([levels[:-1], levels.new_tensor([CLEAN])])

    def __call__(self, u, process, start, done):
        levels = self.levels(process, start, done).to(u.device)
        num = len(levels) - 1
        if self.times is None:
            hop = (u * num).long().clamp_max(num - 1)
        else:
            passed = self.times(u, process).clamp_max(start)
            hop = num - torch.searchsorted(levels.flip(0), passed.contiguous()).clamp(1, num)
        return levels[hop], levels[hop + 1]

    def edges(self, process, start, segments):
        if self.changes and segments > 1:
            raise ValueError(f"{segments} segments need hops that stay: leave model.hops.last null")
        if self.num % segments:
            raise ValueError(
                f"{segments} segments do not divide {self.num} hops: give model.hops.num a multiple of {segments}"
            )
        return self.levels(process, start)[self.num // segments :: self.num // segments]


class Shrinking(Hops):
    """Hops that begin at the datum and shrink in the course of the run (ECT, arXiv 2406.14548).

    In the ratio r = sigma / alpha a hop goes from r to `r - r (1 - p) (1 + k sigmoid(-b r))`, at
    least to the datum, where `p = 1 - q^-(stage + 1)`. The first stage's hops are from r to about
    r / q; those of small r end at the datum.

    Args:
        times: the law of t; None means `LogNormal(-1.1, 2.0)`.
        stages: number of stages, equal parts of the run.
        q: factor by which the hops of a stage are shorter than those of the one before.
        k, b: of the formula.

    Raises:
        ValueError: a number is out of range.
    """

    changes = True

    def __init__(self, times: Times | None = None, stages: int = 8, q: float = 2.0, k: float = 8.0, b: float = 1.0):
        checks.whole(1, 64, stages=stages)
        checks.within("(1, 1000]", q=q)
        checks.not_negative(k=k, b=b)
        self.times, self.stages, self.q, self.k, self.b = times or LogNormal(-1.1, 2.0), stages, q, k, b

    def __call__(self, u, process, start, done):
        stage = min(int(self.stages * done), self.stages - 1)
        t = self.times(u, process).clamp_max(start).to(u.dtype)
        ratio = process.ratio(t)
        kept = 1 - self.q ** -(stage + 1.0)
        less = ratio * (1 - (1 - kept) * (1 + self.k * torch.sigmoid(-self.b * ratio)))
        first = process.ratio(torch.tensor(process.t_min, dtype=torch.float64))
        s = process.from_ratio(less.clamp_min(float(first))).to(t.dtype)
        return t, torch.where(less <= float(first), CLEAN, s)

    def edges(self, process, start, segments):
        levels = process.grid(segments + 1, start).to(torch.float32)
        return torch.cat([levels[1:-1], levels.new_tensor([CLEAN])])


def edge_below(t: Tensor, edges: Tensor) -> Tensor:
    """The end of each time's segment, [B]: the largest edge below t.

    A time that lies on an edge begins the segment below it.

    Args:
        t: times, [B].
        edges: the ends of the segments, decreasing, the last `CLEAN`.
    """
    rising = edges.flip(0).to(t)
    return rising[torch.searchsorted(rising, t.contiguous()) - 1]


Hop = Literal["ddim", "heun", "data"]


def hop(kind: Hop, denoise: Denoise, process: Process, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """A teacher's step from t to s, [B, ...].

    Args:
        kind: `ddim`, or `heun` in the process's own time, which ends at a datum by a step of DDIM
            (EDM, arXiv 2206.00364, algorithm 1).
        denoise: the teacher; one call, of `heun` two.
        process: the noising process.
        x_t: samples at level t.
        t, s: times, [B]; s may be `CLEAN`.
    """
    x_0 = denoise(x_t, t)
    first = process.jump(x_t, x_0, t, s)
    if kind == "ddim":
        return first
    inside = torch.where(s < 0, t, s)  # where the second call has no part, any level does
    slope = _velocity(process, x_t, x_0, t)
    ahead = x_t + expand(inside - t, x_t) * slope
    slope = (slope + _velocity(process, ahead, denoise(ahead, inside), inside)) / 2
    return torch.where(expand(s < 0, x_t), first, x_t + expand(inside - t, x_t) * slope)


def _velocity(process: Process, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
    return velocity_from_x0(x_t, x_0, *(expand(scale, x_t) for scale in (*process.scales(t), *process.derivatives(t))))
