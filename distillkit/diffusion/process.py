"""Gaussian noising processes `x_t = alpha(t) x_0 + sigma(t) eps`.

`t` grows with noise and keeps each family's native range, so that published schedules can be typed
in as they are. A method needs `alpha`, `sigma`, their derivatives and the map between `t` and the
noise-to-signal ratio `sigma / alpha`. Conversions between predictions live in `denoiser.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from distillkit import checks
from distillkit.spec import Recorded

CLEAN = -1.0  # the level of the datum itself, below every process's times: alpha = 1, sigma = 0


def expand(t: Tensor, like: Tensor) -> Tensor:
    """Returns t, [B] or a scalar, shaped to broadcast against `like` [B, ...]."""
    return t.reshape(-1, *[1] * (like.ndim - 1)) if t.ndim else t


def expand_mask(mask: Tensor, like: Tensor) -> Tensor:
    """A bool mask [B, *positions] shaped to broadcast against `like` [B, *positions, *features]."""
    return mask.reshape(*mask.shape, *[1] * (like.ndim - mask.ndim))


class Process(Recorded, ABC):
    """A Gaussian process; a plain immutable object without tensors, cheap to build and to compare.

    Attributes:
        t_min, t_max: the smallest and the largest time a sampler visits (`t_min` is nearly clean).
    """

    t_min: float
    t_max: float

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale at `t`, same shape as `t`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise standard deviation at `t`, same shape as `t`."""

    @abstractmethod
    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`(alpha'(t), sigma'(t))`."""

    @abstractmethod
    def from_ratio(self, ratio: Tensor) -> Tensor:
        """The time at which `sigma / alpha` equals `ratio` (> 0)."""

    def ratio(self, t: Tensor) -> Tensor:
        """Noise-to-signal ratio `sigma(t) / alpha(t)`, the coordinate that all processes share."""
        return self.sigma(t) / self.alpha(t).clamp_min(1e-6)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`(alpha, sigma)` at t, and (1, 0) at `CLEAN`."""
        clean = t < 0
        inside = torch.where(clean, self.t_min, t)
        return torch.where(clean, 1, self.alpha(inside)), torch.where(clean, 0, self.sigma(inside))

    def jump(self, x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """`alpha_s x_0 + sigma_s (x_t - alpha_t x_0) / sigma_t`: DDIM's step (arXiv 2010.02502).

        Args:
            x_t: samples at level t, [B, ...].
            x_0: what they are denoised to.
            t, s: times, [B] or scalars; s may be `CLEAN`, where the step ends at x_0. The factors
                are computed in their precision and cast to that of x_t.
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.scales(t), self.scales(s)
        keep = sigma_s / sigma_t
        keep, gain = (expand(factor, x_t).to(x_t.dtype) for factor in (keep, alpha_s - keep * alpha_t))
        return keep * x_t + gain * x_0

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """`alpha(t) x_0 + sigma(t) eps`; x_0, eps: [B, ...]; t: [B] or scalar."""
        return expand(self.alpha(t), x_0) * x_0 + expand(self.sigma(t), x_0) * eps

    def travel(self, x_s: Tensor, s: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Noise samples further, from level s to a noisier level t.

        `(alpha_t / alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t sigma_s / alpha_s)^2) eps` keeps the
        marginal: a sample of x_0 noised to s becomes one noised to t (TDM, arXiv 2503.06674; Phased
        DMD, arXiv 2510.27684). With s = t it is the identity, bit for bit, at pure noise too.

        Args:
            x_s: samples at level s, [B, ...].
            s, t: times, [B] or scalars; t at least s, and s may be `CLEAN`. The factors are
                computed in their precision and cast to that of x_s.
            eps: unit Gaussian noise, independent of x_s, like x_s.

        Raises:
            ValueError: t is before s. Times on a GPU are not checked, which would wait for the
                device; the radicand is clamped at zero there.
        """
        if t.device.type == s.device.type == "cpu" and bool((back := t < s - s.abs() * 1e-6).any()):
            first, second = (u.expand_as(back)[back][0].item() for u in (s, t))
            raise ValueError(f"travel goes from a time to a noisier one, got s={first:g} and t={second:g}: swap them")
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.scales(s), self.scales(t)
        still = alpha_s == alpha_t  # no signal is lost; without this 0 / 0 at pure noise
        gain = torch.where(still, 1, alpha_t) / torch.where(still, 1, alpha_s)
        carried = gain * sigma_s
        std = ((sigma_t - carried) * (sigma_t + carried)).clamp_min(0).sqrt()
        gain, std = (expand(factor, x_s).to(x_s.dtype) for factor in (gain, std))
        return gain * x_s + std * eps

    def network_time(self, t: Tensor) -> Tensor:
        """The time as the project's networks get it: a number of order one."""
        return t

    def grid(self, num: int, t_start: float | None = None, t_end: float | None = None) -> Tensor:
        """`num` decreasing times from `t_start` to `t_end`, uniform in t; float64.

        The defaults are `t_max` and `t_min`.
        """
        start = self.t_max if t_start is None else t_start
        end = self.t_min if t_end is None else t_end
        return torch.linspace(start, end, num, dtype=torch.float64)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items() if k[0] != '_')})"

    def __eq__(self, other) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    __hash__ = None


class VarianceExploding(Process):
    """`alpha = 1`, `sigma = t`: the time is the noise level itself (EDM, arXiv 2206.00364).

    Args:
        sigma_min, sigma_max: range of noise levels.
        rho: warp of the sampling grid (EDM eq. 5).
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0):
        checks.positive(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        if sigma_min >= sigma_max:
            raise ValueError(f"sigma_min must lie between 0 and sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def t_max(self) -> float:
        return self.sigma_max

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return t

    def derivatives(self, t):
        return torch.zeros_like(t), torch.ones_like(t)

    def from_ratio(self, ratio):
        return ratio

    def network_time(self, t):
        return t.log() / 4

    def grid(self, num, t_start=None, t_end=None):
        start = (self.t_max if t_start is None else t_start) ** (1 / self.rho)
        end = (self.t_min if t_end is None else t_end) ** (1 / self.rho)
        return torch.linspace(start, end, num, dtype=torch.float64) ** self.rho


class VariancePreserving(Process):
    """`alpha^2 + sigma^2 = 1` with linear beta(t) (score SDE, arXiv 2011.13456), t in [t_min, 1].

    `log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2`, in continuous time.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3, t_max: float = 1.0):
        checks.positive(beta_min=beta_min, beta_max=beta_max, t_min=t_min, t_max=t_max)
        if beta_min >= beta_max:
            raise ValueError(f"beta_min must lie between 0 and beta_max, got {beta_min} and {beta_max}")
        if t_min >= t_max:
            raise ValueError(f"t_min must lie between 0 and t_max, got {t_min} and {t_max}")
        self.beta_min, self.beta_max, self.t_min, self.t_max = beta_min, beta_max, t_min, t_max

    def _log_alpha(self, t):
        return -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def alpha(self, t):
        return self._log_alpha(t).exp()

    def sigma(self, t):
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def derivatives(self, t):
        slope = -(t * (self.beta_max - self.beta_min) + self.beta_min) / 2  # d log alpha / dt
        alpha, sigma = self.alpha(t), self.sigma(t)
        return slope * alpha, -slope * alpha**2 / sigma

    def from_ratio(self, ratio):
        a, b = (self.beta_max - self.beta_min) / 4, self.beta_min / 2
        c = torch.log1p(ratio**2) / 2  # = -log alpha
        return 2 * c / (b + (b**2 + 4 * a * c).sqrt())


class DiscreteVariancePreserving(Process):
    """DDPM's table of `num_steps` noise levels (arXiv 2006.11239), t in [0, num_steps - 1].

    Integer times are the table's own. Between them log(sigma / alpha) is interpolated linearly, so
    that students may use any time.

    Args:
        schedule: `linear` (DDPM), `scaled_linear` (linear in sqrt(beta): latent diffusion) or
            `cosine` (arXiv 2102.09672).
        snr_shift: divisor of the table's signal-to-noise ratios alpha^2 / sigma^2, applied first
            (CogVideoX, arXiv 2408.06072).
        zero_snr: shift and stretch alpha so that it ends at zero SNR (arXiv 2305.08891, algorithm
            1); here at 1e-6, since a ratio must be finite.
    """

    def __init__(
        self,
        num_steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        schedule: str = "linear",
        snr_shift: float = 1.0,
        zero_snr: bool = False,
    ):
        if schedule not in ("linear", "scaled_linear", "cosine"):
            raise ValueError(f"schedule must be linear, scaled_linear or cosine, got {schedule!r}")
        checks.whole(2, 1_000_000, num_steps=num_steps)
        checks.positive(beta_start=beta_start, beta_end=beta_end, snr_shift=snr_shift)
        if not beta_start <= beta_end < 1:
            raise ValueError(f"betas must rise from beta_start and stay below 1, got {beta_start} and {beta_end}")
        self.num_steps, self.beta_start, self.beta_end, self.schedule = num_steps, beta_start, beta_end, schedule
        self.snr_shift, self.zero_snr = snr_shift, zero_snr
        self._table = self._log_ratios()

    @property
    def t_min(self) -> float:
        return 0.0

    @property
    def t_max(self) -> float:
        return float(self.num_steps - 1)

    def _log_ratios(self) -> Tensor:
        """log(sigma / alpha) at the integer times, float64 [num_steps]."""
        if self.schedule == "linear":
            beta = torch.linspace(self.beta_start, self.beta_end, self.num_steps, dtype=torch.float64)
        elif self.schedule == "scaled_linear":
            beta = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_steps, dtype=torch.float64) ** 2
        else:
            u = torch.arange(self.num_steps + 1, dtype=torch.float64) / self.num_steps
            bar = ((u + 0.008) / 1.008 * math.pi / 2).cos() ** 2
            beta = (1 - bar[1:] / bar[:-1]).clamp_max(0.999)
        log_bar = torch.log1p(-beta).cumsum(0)
        log_ratio = (torch.log(-torch.expm1(log_bar)) - log_bar + math.log(self.snr_shift)) / 2
        if not self.zero_snr:
            return log_ratio
        alpha = torch.sigmoid(-2 * log_ratio).sqrt()
        alpha = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).clamp_min(1e-6)
        return torch.log1p(-(alpha**2)) / 2 - alpha.log()

    def _log_ratio(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Interpolated log ratio and its slope in t."""
        table = self._table.to(t.device, t.dtype)
        low = t.detach().floor().clamp(0, self.num_steps - 2).long()
        slope = table[low + 1] - table[low]
        return table[low] + slope * (t - low), slope

    def alpha(self, t):
        return torch.sigmoid(-2 * self._log_ratio(t)[0]).sqrt()

    def sigma(self, t):
        return torch.sigmoid(2 * self._log_ratio(t)[0]).sqrt()

    def ratio(self, t):
        return self._log_ratio(t)[0].exp()

    def derivatives(self, t):
        slope = self._log_ratio(t)[1]
        alpha, sigma = self.alpha(t), self.sigma(t)
        return -slope * alpha * sigma**2, slope * sigma * alpha**2

    def from_ratio(self, ratio):
        table = self._table.to(ratio.device, ratio.dtype)
        log = ratio.log()
        high = torch.searchsorted(table, log.detach().contiguous()).clamp(1, self.num_steps - 1)
        return high - 1 + (log - table[high - 1]) / (table[high] - table[high - 1])

    def network_time(self, t):
        return t / self.num_steps


class DiscreteVarianceExploding(DiscreteVariancePreserving):
    """The noise of DDPM's table around a signal that stays: `alpha = 1`, `sigma = sqrt(1 - abar)`.

    So LiDiff (arXiv 2403.13470) moves each point of a scene about its place. Noise is in the unit
    of the data and ends near 1. Between integer times log(sigma) is interpolated linearly.

    Args:
        num_steps, beta_start, beta_end, schedule: as in `DiscreteVariancePreserving`; the defaults
            are LiDiff's.
    """

    def __init__(
        self,
        num_steps: int = 1000,
        beta_start: float = 3.5e-5,
        beta_end: float = 0.007,
        schedule: str = "linear",
    ):
        super().__init__(num_steps, beta_start, beta_end, schedule)

    def _log_ratios(self):
        return torch.nn.functional.logsigmoid(2 * super()._log_ratios()) / 2

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return self.ratio(t)

    def derivatives(self, t):
        log_ratio, slope = self._log_ratio(t)
        return torch.zeros_like(t), slope * log_ratio.exp()


class RectifiedFlow(Process):
    """`alpha = 1 - t`, `sigma = t`, t in [0, 1] (arXiv 2209.03003); the velocity is `eps - x_0`.

    Args:
        t_min, t_max: range of times.
        shift: shift s of the sampling grid, `t = s u / (1 + (s - 1) u)` with u uniform (arXiv
            2403.03206): above 1 for more steps in noise, below 1 for more near the data.
    """

    def __init__(self, t_min: float = 1e-3, t_max: float = 1.0, shift: float = 1.0):
        checks.finite(t_min=t_min, t_max=t_max)
        if not 0 < t_min < t_max <= 1:
            raise ValueError(f"times must satisfy 0 < t_min < t_max <= 1, got {t_min} and {t_max}")
        checks.positive(shift=shift)
        self.t_min, self.t_max, self.shift = t_min, t_max, shift

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t

    def derivatives(self, t):
        return -torch.ones_like(t), torch.ones_like(t)

    def from_ratio(self, ratio):
        return ratio / (1 + ratio)

    def grid(self, num, t_start=None, t_end=None):
        s, ends = self.shift, (self.t_max if t_start is None else t_start, self.t_min if t_end is None else t_end)
        u = torch.linspace(*(t / (s - (s - 1) * t) for t in ends), num, dtype=torch.float64)
        return s * u / (1 + (s - 1) * u)


class TrigFlow(Process):
    """`alpha = cos t`, `sigma = sigma_data sin t`, t in [0, pi/2] (sCM, arXiv 2410.11081).

    The noise has the data's scale.
    """

    def __init__(self, sigma_data: float = 0.5, t_min: float = 1e-3, t_max: float = math.pi / 2):
        checks.finite(t_min=t_min, t_max=t_max)
        if not 0 < t_min < t_max <= math.pi / 2 + 1e-9:
            raise ValueError(f"times must satisfy 0 < t_min < t_max <= pi/2, got {t_min} and {t_max}")
        checks.positive(sigma_data=sigma_data)
        self.sigma_data, self.t_min, self.t_max = sigma_data, t_min, t_max

    def alpha(self, t):
        return t.cos()

    def sigma(self, t):
        return self.sigma_data * t.sin()

    def derivatives(self, t):
        return -t.sin(), self.sigma_data * t.cos()

    def from_ratio(self, ratio):
        return torch.atan(ratio / self.sigma_data)


class ResShift(Process):
    """The residual process of ResShift (arXiv 2307.12348): `alpha = 1 - t^2`, `sigma = kappa t`.

    The time is sqrt(eta) of the paper. There a clean sample x_0 moves to its observation y,
    `x_t = x_0 + eta (y - x_0) + kappa sqrt(eta) eps`, which is this process on the residual
    `x_0 - y`.

    Args:
        kappa: standard deviation of the noise beside the observation.
        min_noise: noise level of the smallest time, the paper's m; t_min is min(m / kappa, m).
        power: warp p of the sampling grid `t_min (t_max / t_min)^(u^p)`, u uniform from 1 to 0: the
            published table of eta for as many steps as the grid has.
        t_max: the largest time.
    """

    def __init__(self, kappa: float = 2.0, min_noise: float = 0.04, power: float = 0.3, t_max: float = 0.99):
        checks.positive(kappa=kappa, min_noise=min_noise, power=power)
        checks.within("(0, 1)", t_max=t_max)
        self.kappa, self.min_noise, self.power, self.t_max = kappa, min_noise, power, t_max
        if self.t_min >= t_max:
            raise ValueError(f"min_noise={min_noise} starts above t_max={t_max}: lower it")

    @property
    def t_min(self) -> float:
        return min(self.min_noise / self.kappa, self.min_noise)

    def alpha(self, t):
        return 1 - t**2

    def sigma(self, t):
        return self.kappa * t

    def derivatives(self, t):
        return -2 * t, torch.full_like(t, self.kappa)

    def from_ratio(self, ratio):
        # the positive root of ratio t^2 + kappa t - ratio = 0, without a difference of close ones
        return 2 * ratio / (self.kappa + (self.kappa**2 + 4 * ratio**2).sqrt())

    def network_time(self, t):
        return self.ratio(t).log() / 4

    def grid(self, num, t_start=None, t_end=None):
        start, end = self.t_max if t_start is None else t_start, self.t_min if t_end is None else t_end
        u = torch.linspace(1, 0, num, dtype=torch.float64)
        return end * (start / end) ** u**self.power
