"""RFD4-Proteina's own sampler, with a schedule for positions and one for latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distillkit.diffusion.process import Process
from distillkit.diffusion.sampling import Denoise, Noise
from domains.protein.pipelines.network import taus


class Schedule(NamedTuple):
    """The schedule of one modality.

    Attributes:
        tau: its times, rising to 1, float32 as in the pipeline, on the CPU.
        k, sigma: of the rescaling: how low the temperature gets, and how early.
        noise: `1/t` or `tan`, the shape of the noise.
        low, high: the times between which there is noise.
    """

    tau: Tensor
    k: float
    sigma: float
    noise: str
    low: float
    high: float

    @classmethod
    def of(cls, settings: Mapping[str, Any], steps: int) -> Schedule:
        """The schedule of a scheduler of the pipeline with these settings."""
        names = ("tsr_k", "tsr_sigma", "noise_mode", "t_lim_ode_below", "t_lim_ode")
        return cls(taus(settings, steps).float(), *(settings[name] for name in names))

    def step(self, i: int, x: Tensor, v: Tensor, draw: Tensor) -> Tensor:
        """The state [B, N, ...] after step i, from velocities and unit noise of its shape.

        The score of the flow is multiplied by `r = (1 + s^2 q) / (1 + s^2 q / k)` with the
        signal-to-noise ratio q (temporal score rescaling). Between `low` and `high` the step is one
        of the SDE whose noise is g; there g is divided by r twice, and the drift has the rescaled
        score.
        """
        tau, dt = self.tau[i], self.tau[i + 1] - self.tau[i]
        told = (tau / (1 - tau) * self.sigma) ** 2
        rescale = (told + 1) / (told / self.k + 1)
        score = rescale * (tau * v - x) / (1 - tau)
        drift = (x + (1 - tau) * score) / tau
        if not self.low <= tau <= self.high:
            return x + drift * dt
        if self.noise == "tan":
            angle = (1 - tau) * torch.pi / 2
            g = torch.pi / 2 * angle.sin() / (angle.cos() + 0.01)
        else:
            g = 1 / (tau + 0.01)
        g = g / rescale**2
        return x + (drift + g * score) * dt + (2 * g * dt).sqrt() * draw


def tsr(
    denoise: Denoise,
    process: Process,
    x: Tensor,
    times: Tensor,
    noise: Noise,
    apart: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    velocities: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]],
    together: Callable[[Tensor, Tensor], Tensor],
    schedules: Sequence[Schedule],
    alive: Tensor,
) -> Tensor:
    """The pipeline's sampler: each modality steps on its own schedule, with a common call.

    Unlike other solvers it does not end with a denoised sample but with its last step.

    Args:
        denoise, process, x, times, noise: as of any solver; of the times only their number counts.
        apart: positions and latents of a noised sample.
        velocities: of step i, positions and latents.
        together: the sample of positions and latents.
        schedules: that of positions and that of latents.
        alive: bool, like x: what is designed; the rest is and stays zero.
    """
    own, other = schedules
    positions, latents = apart(x, times[0])
    for i in range(len(times)):
        draw = alive * noise(i + 1)
        v, v_latents = velocities(i, positions, latents)
        positions = own.step(i, positions, v, draw[..., :3])
        latents = other.step(i, latents, v_latents, draw[..., 3:])
    return together(positions, latents)
