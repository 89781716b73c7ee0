"""MDT-dist, marginal-data transport distillation (arXiv 2509.04406): the residual of an average velocity.

All of it is written in flow coordinates, which every Gaussian process has: `x = x_t / (alpha + sigma)` and
`tau = sigma / (alpha + sigma)` turn a noised sample into `x = (1 - tau) x_0 + tau eps`, tau in [0, 1]. There the teacher's
probability-flow ODE has the velocity `v = (x - D) / tau`, D its denoised sample; a student that jumps to data in one call
has in the same place the average velocity `phi = (x - D_student) / tau` of its jump.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from distillkit.diffusion.process import Process, expand, expand_mask
from distillkit.losses.reduce import mean

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...], tau [B]) -> [B, ...]


def flow_time(process: Process, t: Tensor) -> Tensor:
    """`tau = sigma / (alpha + sigma)` at t, same shape."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return sigma / (alpha + sigma)


def flow_velocity(denoise: Callable[[Tensor, Tensor], Tensor], process: Process) -> Velocity:
    """`(x - D) / tau` of `denoise(x_t, t) -> D` on any process: v of a teacher, phi of a student."""

    def velocity(x: Tensor, tau: Tensor) -> Tensor:
        t = process.from_ratio(tau / (1 - tau))
        x_t = expand(process.alpha(t) + process.sigma(t), x) * x
        return (x - denoise(x_t, t)) / expand(tau, x)

    return velocity


def difference_quotient(student: Velocity, x: Tensor, tau: Tensor, phi: Tensor, v: Tensor, delta: float) -> Tensor:
    """`dphi/dtau` along the teacher's ODE by a hop towards data: `(phi - phi(x - delta v, tau - delta)) / delta`, [B, ...].

    Args:
        student: the average velocity as a function; called once.
        x, tau: where, [B, ...] and [B]; tau > delta.
        phi, v: the student's and the teacher's velocity there.
        delta: length of the hop.
    """
    return (phi - student(x - delta * v, tau - delta)) / delta


def forward_derivative(student: Velocity, x: Tensor, tau: Tensor, v: Tensor) -> Tensor:
    """`dphi/dtau = d_tau phi + (grad_x phi) v` exactly, in one forward-mode pass, [B, ...].

    Fused attention kernels have no forward-mode rule, so attention runs by PyTorch's plain mathematics.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(student, (x, tau), (v, torch.ones_like(tau)))[1]


def unit_tangent(rate: Tensor, mask: Tensor | None = None) -> Tensor:
    """`d / (|d|_2 + 0.1)`, the norm over all elements of a sample: the released code's `d_norm`.

    It moves the fixed point: `phi + tau d / |d| = v` is not solved by the ODE's jumps but, the more elements a sample has
    the closer, by phi = v, which collapses one step onto the mean.
    """
    valid = rate if mask is None else torch.where(expand_mask(mask, rate), rate, 0)
    return rate / expand(valid.flatten(1).norm(dim=1) + 0.1, rate)


def residual(phi: Tensor, rate: Tensor, v: Tensor, tau: Tensor) -> Tensor:
    """`R = phi + tau dphi/dtau - v`: zero where the student's jumps are those of the teacher's ODE.

    As `tau phi = x - D_student` and `dx/dtau = v`, it is `-dD_student/dtau` along the ODE: what consistency models minimise.
    With the difference quotient of a hop of length delta and `tau - delta` in the place of tau it is exactly
    `(D_student(after the hop) - D_student) / delta`, for `d(tau phi)` then is differenced as a whole.
    """
    return phi + expand(tau, phi) * rate - v


def pull(y: Tensor, push: Tensor, mask: Tensor | None = None) -> Tensor:
    """`mean |y - sg[y] + sg[push]|^2`: its value is the mean square of push, its gradient in y `2 push` over the elements.

    Args:
        y: what moves, [B, ...].
        push: which way it is moved down, [B, ...]; a constant.
        mask: of sets, bool [B, *positions], true where they count.
    """
    return mean((y - y.detach() + push.detach()).square(), mask)
