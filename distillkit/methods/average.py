"""Exponential moving averages of a module, in float32 and never trained."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def average_of(module: nn.Module) -> nn.Module:
    """A copy of `module` to hold its average: float32 parameters without gradients."""
    return keep_precise(copy.deepcopy(module).requires_grad_(False))


def keep_precise(average: nn.Module) -> nn.Module:
    """Puts the parameters of `average` back in float32 after a cast, in place, and returns it.

    In bfloat16 a slow average would never move.
    """
    for parameter in average.parameters():
        parameter.data = parameter.data.float()
    return average


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, share: Tensor) -> None:
    """Updates `average <- average + share (module - average)` in place and copies the buffers.

    Args:
        average: made by `average_of`.
        module: the averaged module. The average of a parameter that never moves, such as a frozen
            one, does not move either.
        share: scalar in [0, 1] on the module's device; 0 leaves the parameters as they are.
    """
    own = [p.float() for p in module.parameters()]
    torch._foreach_lerp_(list(average.parameters()), own, [share] * len(own))
    for ours, theirs in zip(average.buffers(), module.buffers(), strict=True):
        ours.copy_(theirs)
