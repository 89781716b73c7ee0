"""Distributions of noise levels in training, each a map from uniform numbers to times.

They are stated in the ratio sigma / alpha (or in t where the literature does) and work on every
process through `Process.from_ratio`, so a sampler tuned for EDM can be used on a flow. The student
and the teacher side of a method choose their own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.process import DiscreteVariancePreserving, Process
from distillkit.spec import Recorded


class Times(Recorded, ABC):
    """A distribution over times: `sampler(u, process)` maps u in (0, 1), [B], to times [B].

    Attributes:
        changes: whether it depends on the share of the run that has passed.
    """

    changes = False

    def __call__(self, u: Tensor, process: Process, done: float | None = None) -> Tensor:
        """The times.

        Args:
            u: uniform numbers, [B].
            process: the noising process.
            done: the share of the run that has passed, in [0, 1]; None where a method does not say
                it.

        Raises:
            ValueError: levels change and `done` is None.
        """
        return self.times(u, process).clamp(process.t_min, process.t_max)

    @abstractmethod
    def times(self, u: Tensor, process: Process) -> Tensor:
        """The times before they are clamped to the range of the process."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items() if k[0] != '_')})"


def _spread(mean: float, std: float) -> None:
    """Refuse a normal law of logarithms that covers no process's noise levels."""
    checks.within("[-30, 30]", mean=mean)
    checks.within("(0, 30]", std=std)


def _part(low: float, high: float) -> None:
    """Refuse bounds that are no part of the unit interval."""
    checks.within("[0, 1]", low=low, high=high)
    if low >= high:
        raise ValueError(f"low must lie below high, got {low} and {high}")


class LogNormal(Times):
    """`log(sigma / alpha) ~ N(mean, std^2)`: EDM's training levels (-1.2, 1.2), EDM2's (-0.4, 1.0).

    Args:
        mean, std: of the logarithm; for data of another scale add log(2 sigma_data) to EDM's mean.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2):
        _spread(mean, std)
        self.mean, self.std = mean, std

    def times(self, u, process):
        normal = math.sqrt(2) * torch.erfinv(2 * u.clamp(1e-6, 1 - 1e-6) - 1)
        return process.from_ratio((self.mean + self.std * normal).exp())


class KarrasUniform(Times):
    """Uniform in EDM's warped level `sigma^(1/rho)`, over the part [low, high] of its range.

    The range is sigma_min .. sigma_max. SiD's student side uses (0, 0.8): sigma in [0.002, 24.4],
    median 0.97; DMD2 uses (0.02, 0.98).
    """

    def __init__(
        self, low: float = 0.0, high: float = 0.8, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ):
        _part(low, high)
        checks.positive(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        if sigma_min >= sigma_max:
            raise ValueError(f"sigma_min must lie below sigma_max, got {sigma_min} and {sigma_max}")
        self.low, self.high, self.sigma_min, self.sigma_max, self.rho = low, high, sigma_min, sigma_max, rho

    def times(self, u, process):
        small, large = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        first, last = process.ratio(torch.tensor([process.t_min, process.t_max], dtype=torch.float64)) ** (1 / self.rho)
        # only the part that the process has: times outside it are not piled up on its ends
        low = max(small + self.low * (large - small), float(first))
        high = min(small + self.high * (large - small), float(last))
        return process.from_ratio((low + (high - low) * u) ** self.rho)


class Uniform(Times):
    """Uniform in t over the part [low, high] of the process's range.

    SiD-LSG and DMD2 use (0.02, 0.98) on VP.
    """

    def __init__(self, low: float = 0.02, high: float = 0.98):
        _part(low, high)
        self.low, self.high = low, high

    def times(self, u, process):
        return process.t_min + (self.low + (self.high - self.low) * u) * (process.t_max - process.t_min)


class TableUniform(Times):
    """Uniform in the index of Stable Diffusion's table of levels, over its part [low, high].

    So published ranges of that model's steps mean the same noise on every process: (0.02, 0.98) is
    sigma / alpha from 0.138 to 13.0.
    """

    def __init__(self, low: float = 0.02, high: float = 0.98):
        _part(low, high)
        self.low, self.high = low, high
        self._table = DiscreteVariancePreserving(beta_start=0.00085, beta_end=0.012, schedule="scaled_linear")

    def times(self, u, process):
        return process.from_ratio(self._table.ratio((self.low + (self.high - self.low) * u) * self._table.t_max))


class LogitNormal(Times):
    """`t = sigmoid(mean + std n)` on flows, scaled to [0, t_max] (SD3, arXiv 2403.03206).

    SiD-DiT uses (ln 2, 1.6).
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        _spread(mean, std)
        self.mean, self.std = mean, std

    def times(self, u, process):
        normal = math.sqrt(2) * torch.erfinv(2 * u.clamp(1e-6, 1 - 1e-6) - 1)
        return process.t_max * torch.sigmoid(self.mean + self.std * normal)


class ShiftedUniform(Times):
    """Uniform time with the resolution shift of large flows: `t = k u / (1 + (k - 1) u)`.

    It is clamped to the parts [low, high] of `t_max`; Wan uses k = 5.
    """

    def __init__(self, shift: float = 5.0, low: float = 0.02, high: float = 0.98):
        checks.positive(shift=shift)
        _part(low, high)
        self.shift, self.low, self.high = shift, low, high

    def times(self, u, process):
        t = self.shift * u / (1 + (self.shift - 1) * u)
        return process.t_max * t.clamp(self.low, self.high)


class LogUniform(Times):
    """`t = t_max low^(1 - u) high^u`: uniform in log t, for protein backbones (arXiv 2510.03095).

    Args:
        low, high: parts of `t_max`; the paper moves draws below 0.02 to 0.02; that is left
            out here.
    """

    def __init__(self, low: float = 0.02, high: float = 0.98):
        checks.positive(low=low)
        _part(low, high)
        self.low, self.high = low, high

    def times(self, u, process):
        return process.t_max * self.low * (self.high / self.low) ** u


class Annealed(Times):
    """Levels that change in the course of the run: quantiles go from one distribution to another.

    From U[a, b] to U[c, d] both ends move linearly, as in ScaleDreamer (arXiv 2407.02040).

    Args:
        first, last: the distributions before and after the change.
        begin, end: the shares of the run between which it changes; equal ones change it at once
            (ProlificDreamer, arXiv 2305.16213).

    Raises:
        ValueError: a share is out of range, or `end` lies before `begin`.
    """

    changes = True

    def __init__(self, first: Times, last: Times, begin: float = 0.0, end: float = 1.0):
        checks.within("[0, 1]", begin=begin, end=end)
        if end < begin:
            raise ValueError(f"levels cannot have changed before they begin to, got begin={begin} and end={end}")
        self.first, self.last, self.begin, self.end = first, last, begin, end

    def __call__(self, u, process, done=None):
        if done is None:
            raise ValueError(
                "this method does not let its noise levels change in the course of a run: give levels that stay"
            )
        if done < self.begin:
            return self.first(u, process)
        if done >= self.end:
            return self.last(u, process)
        share = (done - self.begin) / (self.end - self.begin)
        return (1 - share) * self.first(u, process) + share * self.last(u, process)

    def times(self, u, process):
        return self(u, process)
