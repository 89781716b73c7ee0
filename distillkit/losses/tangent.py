"""Continuous-time consistency, sCM (arXiv 2410.11081): its residual, its normalisers, its loss.

All is in TrigFlow coordinates, see `diffusion/trig.py`: the student's jump to data is
`f = cos(tau) x - sin(tau) sd F`, `dx` is the velocity dx/dtau of the teacher's ODE at (x, tau), and
`rate` is `cos(tau) sin(tau) dF/dtau` along it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distillkit.diffusion.process import expand, expand_mask
from distillkit.losses.reduce import mean_per_sample

Normaliser = Literal["rms", "norm"]
FLOOR = 0.1  # c of the normalisers


def residual(F: Tensor, rate: Tensor, x: Tensor, tau: Tensor, dx: Tensor, sd: float, r: float = 1.0) -> Tensor:
    """`g = -cos^2 (sd F - dx) - r (cos sin x + sd cos sin dF/dtau)` (sCM, eq. 8), [B, ...].

    With r = 1 it is `cos df/dtau`: zero where the student's jumps are those of the teacher's ODE.
    With r = 0 it is zero where F is the teacher's own.

    Args:
        F, rate, x, dx: [B, ...].
        tau: angles, [B].
        sd: standard deviation of the data.
        r: share of the tangent, in [0, 1].
    """
    cos, sin = (expand(part, x) for part in (tau.cos(), tau.sin()))
    return -(cos**2) * (sd * F - dx) - r * (cos * sin * x + sd * rate)


def normalised(g: Tensor, how: Normaliser | None, mask: Tensor | None = None) -> Tensor:
    """`g / (|g| + 0.1)`: no sample's residual is longer than one, and none that is zero moves.

    Args:
        g: residuals, [B, ...].
        how: |g| is the root mean square over a sample's elements (`rms`: whatever the resolution)
            or the root of their sum of squares (`norm`, as published). None leaves g as it is.
        mask: mask of sets, bool [B, *positions], true at elements.
    """
    if how is None:
        return g
    if how == "rms":
        return g / (mean_per_sample(g.square(), mask).sqrt() + FLOOR)
    inside = g if mask is None else torch.where(expand_mask(mask, g), g, 0)
    return g / (expand(inside.flatten(1).norm(dim=1), g) + FLOOR)


def tangent_loss(
    F: Tensor,
    g: Tensor,
    weight: Tensor | None = None,
    log_variance: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`mean_b [w e^-a mean |F - sg F - sg g|^2 + a]`, whose gradient in F is `-2 w e^-a g / N`.

    N is the number of elements. The minimum in a is at `log E[w mean |g|^2]`.

    Args:
        F: the student's field, [B, ...]; the only part that moves, beside a.
        g: the residual, normalised or not, [B, ...]; a constant.
        weight: prior weight w of the level, [B], a constant; sCM has `1 / (sd tan(tau))`. None is
            1.
        log_variance: a of the level, [B]; None is 0.
        mask: mask of sets, bool [B, *positions], true at elements.
    """
    target = F.detach() + g.detach()
    loss = mean_per_sample((F - target).square(), mask).flatten()
    if weight is not None:
        loss = weight * loss
    if log_variance is not None:
        loss = loss * (-log_variance).exp() + log_variance
    return loss.mean()
