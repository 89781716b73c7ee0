"""Losses of two-time flow maps: MeanFlow (arXiv 2505.13447) and TwinFlow (arXiv 2512.05150).

They are written in flow coordinates, see `diffusion/flow.py`. `u(x, tau, r)` is the student's
average velocity on the way from level tau down to level r, so its jump ends at
`x - (tau - r) u`; v is the velocity of the ODE at (x, tau), `du/dtau` the derivative along the ODE
with r fixed. The jump follows the ODE if and only if `R = u + (tau - r) du/dtau - v` is zero, which
is `losses.mdt.residual` with the span `tau - r`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distillkit.diffusion.process import expand
from distillkit.losses.reduce import mean_per_sample


def jump(x: Tensor, tau: Tensor, r: Tensor, u: Tensor) -> Tensor:
    """`x - (tau - r) u`: from level tau to level r; x, u: [B, ...]; tau, r: [B]."""
    return x - expand(tau - r, x) * u


def hop_residual(u: Tensor, v: Tensor, x: Tensor, after: Tensor, tau: Tensor, r: Tensor, hop: Tensor) -> Tensor:
    """`R = ((tau - r) u - I) / hop - v`, the residual of RCGM, [B, ...].

    `I` is the displacement from the end of a hop `x - hop v` to `after`, so R is the distance
    between the two ends, that of the jump and that of the hop with the jumps behind it, over the
    hop's length: `(after - jump) / hop`. It tends to `u + (tau - r) du/dtau - v`. A hop that leads
    to r itself leaves `u - v`.

    Args:
        u, v: the student's average velocity and the ODE's, at (x, tau).
        x, tau, r: the state, [B, ...], its level and the level of the jump's end, [B].
        after: where the jumps behind the hop end at level r, [B, ...].
        hop: length of the hop in tau, [B], at most `tau - r`.
    """
    ahead = expand(tau - r > hop, u)
    length = torch.where(tau - r > hop, hop, 1)  # no division by zero in the branch that is not taken
    return torch.where(ahead, (after - jump(x, tau, r, u)) / expand(length, u), u - v)


def adaptive_weight(R: Tensor, power: float, floor: float, mask: Tensor | None = None) -> Tensor:
    """`1 / (mean R^2 + floor)^power`, detached, [B, 1, ...].

    Power 1 is MeanFlow's weight. Power 1/2 is Barron's robust loss with alpha = 1 and
    `c^2 = floor` (arXiv 1701.03077), as in TwinFlow: the loss is then about |R|. Their |R|^2 is the
    sum over a sample, here it is the mean, so `floor` is the same for every size.
    """
    return (mean_per_sample(R.detach().square(), mask) + floor) ** -power


def span_weight(tau: Tensor, r: Tensor) -> Tensor:
    """TwinFlow's weight `1 + tan((1 - (tau - r)) pi / 2.5)`: 1 for the whole way, 4.08 for none."""
    return 1 + torch.tan((1 - (tau - r)) * math.pi / 2.5)


def rectifying(own: Tensor, data: Tensor, clamp: float) -> Tensor:
    """The direction that own samples descend in TwinFlow's rectification, [B, ...]; a constant.

    It is `-clamp(own - data)`. As u is the start less the sample, u down is the sample up: fitting
    u to `sg[u - clamp(own - data)]` moves the sample by `+ clamp(own - data)`. In denoised samples
    that is `(D_data - D_own) / tau`, DMD's direction.

    Args:
        own, data: velocities of the trajectories of own samples and of data at the same noised
            sample, [B, ...].
        clamp: largest absolute value of an element.
    """
    return -(own - data).detach().clamp(-clamp, clamp)


def weighted_pull(y: Tensor, push: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    """`mean w |y - sg[y] + sg[push]|^2`: the gradient `2 w push / N` in y; N elements.

    Args:
        y: the tensor that is moved, [B, ...].
        push: the direction that y descends, [B, ...]; a constant.
        weight: weights of the samples, [B, 1, ...]; a constant.
        mask: mask of sets, bool [B, *positions], true at elements.
    """
    moved = mean_per_sample((y - y.detach() + push.detach()).square(), mask)
    return (weight.detach() * moved).mean()
