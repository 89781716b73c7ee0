"""Schedules of discrete diffusion: `alpha(t) = exp(-sigma(t))` is the probability of no event."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor

from distillkit import checks
from distillkit.spec import Recorded


class Schedule(Recorded, ABC):
    """A noise schedule: the total noise `sigma(t)` of a position, t in [0, 1]."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The probability that a position is untouched at t, `exp(-sigma)`."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """`sigma'(t) = -alpha'(t) / alpha(t)`: events per unit of time."""

    @abstractmethod
    def from_alpha(self, alpha: Tensor) -> Tensor:
        """The time at which `alpha(t)` equals `alpha`."""

    def sigma(self, t: Tensor) -> Tensor:
        """Total noise, `-log alpha`."""
        return -self.alpha(t).log()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items() if k[0] != '_')})"

    def __eq__(self, other) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    __hash__ = None


def _untouched(eps: float) -> None:
    checks.within("(0, 1)", "the probability of being untouched at t = 1", eps=eps)


class LogLinear(Schedule):
    """`alpha = 1 - (1 - eps) t` (SEDD, RADD, MDLM and Duo's default)."""

    def __init__(self, eps: float = 1e-3):
        _untouched(eps)
        self.eps = eps

    def alpha(self, t):
        return 1 - (1 - self.eps) * t

    def rate(self, t):
        return (1 - self.eps) / self.alpha(t)

    def from_alpha(self, alpha):
        return (1 - alpha) / (1 - self.eps)


class Geometric(Schedule):
    """`sigma = sigma_min^(1-t) sigma_max^t` (SEDD with uniform noise)."""

    def __init__(self, sigma_min: float = 1e-4, sigma_max: float = 20.0):
        checks.positive(sigma_min=sigma_min, sigma_max=sigma_max)
        if sigma_min >= sigma_max:
            raise ValueError(f"sigma_min must lie between 0 and sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    @property
    def _log_span(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t):
        return self.sigma_min * (self._log_span * t).exp()

    def alpha(self, t):
        return (-self.sigma(t)).exp()

    def rate(self, t):
        return self.sigma(t) * self._log_span

    def from_alpha(self, alpha):
        return (-alpha.log() / self.sigma_min).log() / self._log_span


class MDLMCosine(Schedule):
    """`alpha = eps + (1 - eps) cos(pi t / 2)` (the cosine of MDLM)."""

    def __init__(self, eps: float = 1e-3):
        _untouched(eps)
        self.eps = eps

    def alpha(self, t):
        return self.eps + (1 - self.eps) * (math.pi / 2 * t).cos()

    def rate(self, t):
        return math.pi / 2 * (1 - self.eps) * (math.pi / 2 * t).sin() / self.alpha(t)

    def from_alpha(self, alpha):
        return 2 / math.pi * ((alpha - self.eps) / (1 - self.eps)).acos()


class DuoCosine(Schedule):
    """`alpha = 1 - cos(pi/2 (1 - (1 - eps) t))` (the cosine of Duo).

    The rate is the derivative of this alpha; Duo's own code leaves out a factor 1 - eps there.
    """

    def __init__(self, eps: float = 1e-3):
        _untouched(eps)
        self.eps = eps

    def _angle(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (1 - (1 - self.eps) * t)

    def alpha(self, t):
        return 2 * (self._angle(t) / 2).sin() ** 2  # 1 - cos, without cancellation near t = 1

    def rate(self, t):
        return math.pi / 2 * (1 - self.eps) * self._angle(t).sin() / self.alpha(t)

    def from_alpha(self, alpha):
        return (1 - 2 / math.pi * (1 - alpha).acos()) / (1 - self.eps)
