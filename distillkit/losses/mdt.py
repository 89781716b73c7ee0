"""MDT-dist, marginal-data transport distillation (arXiv 2509.04406): the residual of an average velocity.

All of it is written in flow coordinates, see `diffusion/flow.py`: v is the velocity of the
teacher's probability-flow ODE at (x, tau), phi the average velocity of the student's jump to data
from there, `dphi/dtau` its rate along the ODE.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.diffusion.process import expand, expand_mask
from distillkit.losses.reduce import mean


def unit_tangent(rate: Tensor, mask: Tensor | None = None) -> Tensor:
    """`d / (|d|_2 + 0.1)`, the norm over all elements of a sample: the released code's `d_norm`.

    It moves the fixed point: `phi + tau d / |d| = v` is not solved by the ODE's jumps but, the more
        elements a sample has
    the closer, by phi = v, which collapses one step onto the mean.
    """
    valid = rate if mask is None else torch.where(expand_mask(mask, rate), rate, 0)
    return rate / expand(valid.flatten(1).norm(dim=1) + 0.1, rate)


def residual(phi: Tensor, rate: Tensor, v: Tensor, tau: Tensor) -> Tensor:
    """`R = phi + tau dphi/dtau - v`: zero where the student's jumps are those of the teacher's ODE.

    As `tau phi = x - D_student` and `dx/dtau = v`, it is `-dD_student/dtau` along the ODE: what
    consistency models minimise. With the difference quotient of a hop of length delta and `tau -
    delta` in the place of tau it is exactly `(D_student(after the hop) - D_student) / delta`, for
    `d(tau phi)` then is differenced as a whole.
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
