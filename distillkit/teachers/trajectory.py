"""The trajectories of a teacher's sampler: the states it visits, and how straight they are."""

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
    """The states `(x_t, t, x_0)` at which `teacher.sample` with these arguments calls the denoiser, see `Recording`."""
    recording = Recording(teacher.solver(solver))
    teacher.sample(noise, cond, solver=recording, kappa=kappa, times=times)
    return recording.states


def straightness(teacher: Teacher, noise: Tensor, cond: Cond, steps: int = 100, kappa: float = 1.0) -> Tensor:
    """`S = E int |(x_1 - x_0) - v(x_tau, tau)|^2 dtau` along the teacher's own trajectories (rectified flow, arXiv 2209.03003).

    It is zero where each trajectory has one velocity, so that a single step of Euler's method is
    exact. Everything is in flow coordinates, which every process has: `x = x_t / (alpha + sigma)`,
    `tau = sigma / (alpha + sigma)`, `v = (x - D) / tau`. In them DDIM is Euler's method, and the
    last call's `x_0` lies at tau = 0. The integral is the mean over tau between there and the first
    time, where tau is 1 if sampling starts without signal. Of a Gaussian N(m, C) it is `(2 - pi /
    2) tr C^(1/2)`.

    Args:
        noise: unit Gaussian, [B, *event_shape].
        cond: one condition per sample; what its `mask` leaves out does not count.
        steps: of DDIM; the error falls as 1 / steps.
        kappa: guidance scale, 1 = none.

    Returns:
        A scalar: the sum over the elements of a sample, its mean over samples.
    """
    process = teacher.process
    states = visited(teacher, noise, cond, teacher.grid(steps).to(noise.device), "ddim", kappa)
    tau = torch.stack([flow_time(process, t) for _, t, _ in states])
    share = (-tau.diff(append=tau.new_zeros(1)) / tau[0]).to(noise.dtype)  # of the way to data, by call
    x = torch.stack([x_t / (process.alpha(t) + process.sigma(t)).to(x_t.dtype) for x_t, t, _ in states])
    x_0 = torch.stack([x_0 for *_, x_0 in states])
    v = (x - x_0) / expand(tau.to(x.dtype), x)
    bend = (expand(share, v) * (v - (x[0] - x_0[-1]) / tau[0].to(x.dtype)).square()).sum(0)
    if (mask := cond.get("mask")) is not None:
        bend = torch.where(expand_mask(mask, bend), bend, 0)
    return bend.flatten(1).sum(1).mean()
