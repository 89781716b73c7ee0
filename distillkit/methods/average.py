"""Averages of a module: a copy of it in float32 that follows it and is never trained."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def average_of(module: nn.Module) -> nn.Module:
    """A copy of `module` to average it in; its parameters are float32 and require no gradients."""
    return keep_precise(copy.deepcopy(module).requires_grad_(False))


def keep_precise(average: nn.Module) -> nn.Module:
    """The average itself, with its parameters back in float32 after a cast: in bfloat16 a slow average would never move."""
    for parameter in average.parameters():
        parameter.data = parameter.data.float()
    return average


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, share: Tensor) -> None:
    """`average <- average + share (module - average)`, in place; buffers are copied.

    Args:
        average: as `average_of` makes it.
        module: what it follows. A parameter that has not moved since the copy, such as a frozen
            one, leaves its average as it is.
        share: of the step, in [0, 1], on the device of the module; 0 leaves the parameters as they
            are.
    """
    own = [p.float() for p in module.parameters()]
    torch._foreach_lerp_(list(average.parameters()), own, [share] * len(own))
    for ours, theirs in zip(average.buffers(), module.buffers(), strict=True):
        ours.copy_(theirs)
