"""TrigFlow coordinates of every Gaussian process, and derivatives along its ODE (sCM).

With the scale `n = sqrt(alpha^2 + sigma^2 / sd^2)` and sd the standard deviation of the data,
`x = x_t / n` and the angle `tau = atan(sigma / (alpha sd))` turn a noised sample into
`x = cos(tau) x_0 + sin(tau) sd eps`, tau in [0, pi / 2] (arXiv 2410.11081). A denoiser D is there
`F = (cos(tau) x - D) / (sd sin(tau))`. The probability-flow ODE is `dx/dtau = sd F`, and a jump to
data is `D = cos(tau) x - sin(tau) sd F`.

Derivatives are those in the logarithm of the ratio sigma / alpha, `cos sin dF/dtau`: what sCM needs
and what stays bounded where tau nears pi / 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from distillkit.diffusion.flow import value_and_derivative
from distillkit.diffusion.process import Process, expand

Field = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...], tau [B]) -> [B, ...]
Tangent = Literal["jvp", "quotient"]

LARGEST = math.pi / 2 - 1e-4  # no ratio is infinite


def angle(process: Process, t: Tensor, sd: float) -> Tensor:
    """`tau = atan(sigma / (alpha sd))` at t, same shape."""
    return torch.atan2(process.sigma(t), sd * process.alpha(t)).clamp_max(LARGEST)


def native(process: Process, tau: Tensor, sd: float) -> Tensor:
    """The process's time at the angle tau, same shape."""
    return process.from_ratio(sd * tau.tan())


def scale(process: Process, t: Tensor, sd: float) -> Tensor:
    """`n = sqrt(alpha^2 + sigma^2 / sd^2)` at t, same shape: `x = x_t / n`."""
    return (process.alpha(t) ** 2 + (process.sigma(t) / sd) ** 2).sqrt()


def noised(x_0: Tensor, tau: Tensor, eps: Tensor, sd: float) -> Tensor:
    """`cos(tau) x_0 + sin(tau) sd eps`; x_0, eps: [B, ...]; tau: [B]."""
    return expand(tau.cos(), x_0) * x_0 + expand(sd * tau.sin(), x_0) * eps


def trig_field(denoise: Field, process: Process, sd: float) -> Field:
    """Returns `F = (cos(tau) x - D) / (sd sin(tau))` of `denoise(x_t, t) -> D`."""

    def field(x: Tensor, tau: Tensor) -> Tensor:
        t = native(process, tau, sd)
        D = denoise(expand(scale(process, t, sd), x) * x, t)
        return (expand(tau.cos(), x) * x - D) / expand(sd * tau.sin(), x)

    return field


def hop(x: Tensor, dx: Tensor, step: Tensor) -> Tensor:
    """DDIM's step `cos(step) x - sin(step) dx/dtau` to the angle `tau - step`; step: [B]."""
    return expand(step.cos(), x) * x - expand(step.sin(), x) * dx


def exact_rate(F: Field, x: Tensor, tau: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    """`(F, cos sin dF/dtau)` along the ODE by one forward-mode pass, [B, ...] each.

    Args:
        F: the field.
        x, tau: the state, [B, ...] and [B].
        dx: dx/dtau there.
    """
    pace = tau.cos() * tau.sin()
    return value_and_derivative(F, (x, tau), (expand(pace, x) * dx, pace))


def quotient_rate(
    F: Field, x: Tensor, tau: Tensor, dx: Tensor, delta: float, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """`(F, cos sin dF/dtau)` from the field on both sides of the state, [B, ...] each.

    Both sides lie `delta` away in log(sigma / alpha), on the tangent of the ODE: an error of second
    order. At the ends of the range the far side is the state itself: an error of first order.

    Args:
        F: the field; called twice.
        x, tau, dx: as in `exact_rate`.
        delta: the length of either side.
        low, high: the smallest and the largest angle at which F is known, scalars.
    """
    level, pace = tau.tan().log(), tau.cos() * tau.sin()
    ends = []
    for side in (-delta, delta):
        there = (level + side).exp().atan().clamp(low, high)
        way = torch.where(there == tau, 0, there.tan().log() - level)
        ends.append((way, F(x + expand(way * pace, x) * dx, there)))
    (behind, F_behind), (ahead, F_ahead) = ends
    rate = (F_ahead - F_behind) / expand(ahead - behind, x)
    return F_behind - expand(behind, x) * rate, rate
