"""Exact laws of samplers in small worlds: steps act on distributions over all sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distillkit.discrete.denoiser import DiscreteDenoiser
from distillkit.discrete.sampling import DENOISE, Step, plan
from distillkit.discrete.worlds import outer, sequences


def law(denoiser: DiscreteDenoiser, length: int, times: Tensor, step: Step | Sequence[Step]) -> Tensor:
    """The exact law of `sample`: the probability of every sequence, [S, ..., S], `length` axes.

    It is feasible for `C^d` up to a few thousand, and differentiable in the times and in the
    parameters of the steps and the denoiser.
    """
    process = denoiser.process
    everything = sequences(process.num_states, length)
    weights = outer(process.prior().expand(1, length, -1))[0]
    for rule, t, s in [*plan(step, times), (DENOISE, times[-1], torch.zeros_like(times[-1]))]:
        reached = weights > 0
        weights = rule.push(denoiser, everything[reached], weights[reached], t, s)
    return weights.reshape([process.num_states] * length)[(slice(process.num_tokens),) * length]


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the sum of absolute differences, in [0, 1]."""
    return (p - q).abs().sum() / 2


def kl(p: Tensor, q: Tensor) -> Tensor:
    """`sum p log(p / q)` in nats; infinite where q is zero and p is not."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum()


def entropy(p: Tensor) -> Tensor:
    """Entropy `-sum p log p`, nats."""
    return -torch.xlogy(p, p).sum()


def total_correlation(p: Tensor) -> Tensor:
    """Sum of the entropies of the axes minus the joint entropy, nats: the loss of independence."""
    axes = range(p.ndim)
    return sum(entropy(p.sum([j for j in axes if j != i]) if p.ndim > 1 else p) for i in axes) - entropy(p)
