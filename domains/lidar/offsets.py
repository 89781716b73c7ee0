"""LiDiff's own sampler, which moves points by their offsets from the repeated scan.

The network learns the noise eps of `x_t = x_0 + sigma_t eps`, so its denoised sample is
`x_t - sigma_t eps`. The published sampler reads the same noise another way. It takes the offsets
`d = x - a` from the scan's points a for samples of a variance preserving process of the same table,
`d_t = alpha_t d_0 + sigma_t eps`. Early steps then move points farther than the network says, by
1 / alpha, and later steps bring them back. LiDiff's results are those of this sampler; a small
network does better without it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.process import DiscreteVarianceExploding, DiscreteVariancePreserving
from distillkit.diffusion.sampling import SOLVERS, Denoise, Noise, dpm_solver_sde


def vp(
    denoise: Denoise,
    process: DiscreteVarianceExploding,
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
    *,
    anchor: Tensor,
) -> Tensor:
    """SDE-DPM-Solver++(2M) on offsets, from noise of unit variance, whatever sigma is at first.

    Args:
        denoise, process, x, times, noise: as for any solver.
        anchor: a, the points [B, N, 3] from which x was noised.
    """
    preserving = DiscreteVariancePreserving(process.num_steps, process.beta_start, process.beta_end, process.schedule)

    def offset(d: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (scale(t).to(d.dtype) for scale in (preserving.alpha, preserving.sigma))
        eps = (anchor + d - denoise(anchor + d, t)) / sigma
        return (d - sigma * eps) / alpha

    first = (x - anchor) / process.sigma(times[0]).to(x.dtype)
    return anchor + dpm_solver_sde(offset, preserving, first, times, noise)


class Offsets:
    """Mixin of teachers whose start is a scan: `vp` is one of their solvers."""

    solvers = SOLVERS | {"vp": vp}

    def solve(
        self,
        noise: Tensor,
        cond: Cond,
        solver: Callable,
        times: Tensor,
        kappa: float | Tensor = 1.0,
        draw: Callable[[int], Tensor] | None = None,
    ) -> Any:
        """See `Teacher.solve`; `vp` learns where the points started."""
        if solver is vp:
            still = torch.zeros_like(noise)
            solver = partial(vp, anchor=self.start(self.process, still, times[0].to(noise.device), cond))
        return super().solve(noise, cond, solver, times, kappa, draw)
