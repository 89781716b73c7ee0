"""MDT-dist, marginal-data transport distillation (arXiv 2509.04406): its residual.

It is written in flow coordinates, see `diffusion/flow.py`: v is the velocity of the teacher's
probability-flow ODE at (x, tau), phi the average velocity of the student's jump from there to data,
`dphi/dtau` its derivative along the ODE.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.diffusion.process import expand, expand_mask
from distillkit.losses.reduce import mean


def unit_tangent(rate: Tensor, mask: Tensor | None = None) -> Tensor:
    """`d / (|d|_2 + 0.1)`, the norm over all elements of a sample: the released code's `d_norm`.

    It moves the fixed point: the ODE's jumps do not solve `phi + tau d / |d| = v`. The more
    elements a sample has, the closer its solution is to phi = v, which collapses one step onto the
    mean.
    """
    valid = rate if mask is None else torch.where(expand_mask(mask, rate), rate, 0)
    return rate / expand(valid.flatten(1).norm(dim=1) + 0.1, rate)


def residual(phi: Tensor, rate: Tensor, v: Tensor, tau: Tensor) -> Tensor:
    """`R = phi + tau dphi/dtau - v`: zero where the student's jumps are those of the teacher's ODE.

    As `tau phi = x - D_student` and `dx/dtau = v`, it is `-dD_student/dtau` along the ODE: the
    quantity that consistency models minimise. With the difference quotient of a step of length
    delta, and `tau - delta` instead of tau, it is exactly
    `(D_student(after the step) - D_student) / delta`: `d(tau phi)` is differenced as a whole.
    """
    return phi + expand(tau, phi) * rate - v


def pull(y: Tensor, push: Tensor, mask: Tensor | None = None) -> Tensor:
    """`mean |y - sg[y] + sg[push]|^2`: the value mean |push|^2 with the gradient `2 push / N` in y.

    N is the number of elements.

    Args:
        y: the tensor that is moved, [B, ...].
        push: the direction that y descends, [B, ...]; a constant.
        mask: mask of sets, bool [B, *positions], true at elements.
    """
    return mean((y - y.detach() + push.detach()).square(), mask)
