"""The trajectories of a teacher's sampler: their states and their straightness."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.flow import flow_time
from distillkit.diffusion.process import expand, expand_mask
from distillkit.diffusion.sampling import Recording
from distillkit.teachers.base import Teacher


def visited(
    teacher: Teacher,
    noise: Tensor,
    cond: Cond,
    times: Tensor | None = None,
    solver: Any = None,
    kappa: float = 1.0,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The states `(x_t, t, x_0)` of the denoiser's calls in `teacher.sample`, see `Recording`.

    Args:
        teacher: the teacher that samples.
        noise, cond, times, solver, kappa: the arguments of `teacher.sample`.
    """
    recording = Recording(teacher.solver(solver))
    teacher.sample(noise, cond, solver=recording, kappa=kappa, times=times)
    return recording.states


def straightness(teacher: Teacher, noise: Tensor, cond: Cond, steps: int = 100, kappa: float = 1.0) -> Tensor:
    """The straightness of the teacher's trajectories (rectified flow, arXiv 2209.03003).

    `S = E int |(x_1 - x_0) - v(x_tau, tau)|^2 dtau` is zero where each trajectory has one velocity,
    so that a single step of Euler's method is exact. All is in flow coordinates, which every
    process has: `x = x_t / (alpha + sigma)`, `tau = sigma / (alpha + sigma)`, `v = (x - D) / tau`.
    In them DDIM is Euler's method, and the last call's `x_0` lies at tau = 0. The integral is the
    mean over tau from 0 to the first time, where tau is 1 if sampling starts without signal. For a
    Gaussian N(m, C) S is `(2 - pi / 2) tr C^(1/2)`.

    Args:
        teacher: the teacher that samples.
        noise: unit Gaussian, [B, *event_shape].
        cond: conditioning of the samples; elements that its `mask` leaves out do not count.
        steps: number of DDIM steps; the error falls as 1 / steps.
        kappa: guidance scale, 1 = none.

    Returns:
        A scalar: the sum over the elements of a sample, averaged over samples.
    """
    process = teacher.process
    states = visited(teacher, noise, cond, teacher.grid(steps).to(noise.device), "ddim", kappa)
    tau = torch.stack([flow_time(process, t) for _, t, _ in states])
    share = (-tau.diff(append=tau.new_zeros(1)) / tau[0]).to(noise.dtype)  # share of the way to data, per call
    x = torch.stack([x_t / (process.alpha(t) + process.sigma(t)).to(x_t.dtype) for x_t, t, _ in states])
    x_0 = torch.stack([x_0 for *_, x_0 in states])
    v = (x - x_0) / expand(tau.to(x.dtype), x)
    bend = (expand(share, v) * (v - (x[0] - x_0[-1]) / tau[0].to(x.dtype)).square()).sum(0)
    if (mask := cond.get("mask")) is not None:
        bend = torch.where(expand_mask(mask, bend), bend, 0)
    return bend.flatten(1).sum(1).mean()
