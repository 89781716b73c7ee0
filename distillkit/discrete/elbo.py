"""Sampling times of the best K-step evidence bound, by dynamic programming (arXiv 2106.03802)."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.discrete.denoiser import DiscreteDenoiser
from distillkit.discrete.noise import Noise


@torch.no_grad()
def step_costs(
    denoiser: DiscreteDenoiser, x_0: Tensor, times: Tensor, noise: Noise, cond: Cond | None = None
) -> Tensor:
    """`E KL(q(x_s | x_t, x_0) || p(x_s | x_t))` of every step, nats, [N, N + 1].

    Entry (i, j) is the step from t = times[i] to s = times[j]; j = N is s = 0, and steps that do
    not lead to less noise cost infinity. The costs of a run sum to its evidence bound on
    `-log p(x_0)` up to a term that all runs share, and so to a bound on KL(data || samples) up to
    the data's entropy. One network evaluation for each time.

    Args:
        x_0: clean tokens [B, d] of the model.
        times: [N] decreasing.
        noise: noise of `process.add_noise`, shared by all times.
    """
    process, num = denoiser.process, len(times)
    costs = torch.full((num, num + 1), torch.inf, dtype=torch.float64)
    earlier = torch.cat([times, torch.zeros_like(times[:1])])
    for i, t in enumerate(times):
        x_t = process.add_noise(x_0, t, noise)
        reading = denoiser(x_t, t, cond)
        total = torch.zeros(num + 1, dtype=torch.float64, device=x_0.device)
        for where in reading.movable():  # elsewhere both laws are certain
            log_mean, x = reading[where].log_mean().double(), x_t[where]
            known = torch.zeros_like(log_mean).scatter_(-1, x_0[where][..., None], 1).log()
            for j in range(i + 1, num + 1):
                alphas = process.alpha(t), process.alpha(earlier[j])
                q, p = process.ancestral(known, x, *alphas), process.ancestral(log_mean, x, *alphas)
                divergence = torch.xlogy(q, q) - torch.xlogy(q, p.clamp_min(1e-300))
                total[j] += divergence.sum()
        costs[i, i + 1 :] = total[i + 1 :] / len(x_0)
    return costs


def cheapest_times(costs: Tensor, times: Tensor, num: int) -> Tensor:
    """The `num` times, times[0] first, whose steps down to 0 have the smallest total cost."""
    size = len(times)
    best = costs[:, size].clone()  # from each time to 0 in one call
    choices = []
    for _ in range(num - 1):
        total, choice = (costs[:, :size] + best).min(1)
        choices.append(choice)
        best = total
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return times[path]
