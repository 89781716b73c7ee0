"""Flow coordinates of every Gaussian process, and derivatives along its probability-flow ODE.

`x = x_t / (alpha + sigma)` and `tau = sigma / (alpha + sigma)` turn a noised sample into
`x = (1 - tau) x_0 + tau eps`, tau in [0, 1]. There the probability-flow ODE of a denoiser D has the
velocity `v = (x - D) / tau`, and the jump of a one-call student to data has the average velocity
`phi = (x - D_student) / tau`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from distillkit.diffusion.process import Process, expand

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...], tau [B]) -> [B, ...]


def flow_time(process: Process, t: Tensor) -> Tensor:
    """`tau = sigma / (alpha + sigma)` at t, same shape."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return sigma / (alpha + sigma)


def noised(x_0: Tensor, tau: Tensor, eps: Tensor) -> Tensor:
    """`(1 - tau) x_0 + tau eps`; x_0, eps: [B, ...]; tau: [B]."""
    return torch.lerp(x_0, eps, expand(tau, x_0))


def flow_velocity(denoise: Callable[[Tensor, Tensor], Tensor], process: Process) -> Velocity:
    """Returns `(x - D) / tau` of `denoise(x_t, t) -> D`: v of a teacher, phi of a student."""

    def velocity(x: Tensor, tau: Tensor) -> Tensor:
        t = process.from_ratio(tau / (1 - tau))
        x_t = expand(process.alpha(t) + process.sigma(t), x) * x
        return (x - denoise(x_t, t)) / expand(tau, x)

    return velocity


def difference_quotient(student: Velocity, x: Tensor, tau: Tensor, phi: Tensor, v: Tensor, delta: float) -> Tensor:
    """Finite difference `dphi/dtau = (phi - phi(x - delta v, tau - delta)) / delta`, [B, ...].

    The step goes along the teacher's ODE towards data.

    Args:
        student: the average velocity as a function; called once.
        x, tau: the state, [B, ...] and [B]; tau > delta.
        phi, v: the student's and the teacher's velocity there.
        delta: length of the step in tau.
    """
    return (phi - student(x - delta * v, tau - delta)) / delta


def value_and_derivative(
    function: Velocity, at: tuple[Tensor, Tensor], towards: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """A function and its exact derivative in one forward-mode pass, [B, ...] each.

    Fused attention kernels have no forward-mode rule, so attention runs on PyTorch's plain maths.

    Args:
        function: of a state x [B, ...] and its level [B].
        at: the state and the level.
        towards: the direction of the derivative, like `at`.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(function, at, towards)


def forward_derivative(student: Velocity, x: Tensor, tau: Tensor, v: Tensor) -> Tensor:
    """Exact `dphi/dtau = d_tau phi + (grad_x phi) v` in one forward-mode pass, [B, ...]."""
    return value_and_derivative(student, (x, tau), (v, torch.ones_like(tau)))[1]
