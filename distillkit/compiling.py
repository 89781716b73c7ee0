"""Networks compiled in place by `torch.compile`: names of weights and checkpoints stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

from distillkit.sharding import Shard

BACKEND = "inductor"
VARIANTS = 64  # of one network: with and without gradients, of its weights and its input, batches of several sizes


def compile_networks(networks: Iterable[nn.Module]) -> None:
    """Compiles the calls of networks, each when it is first called.

    Copies of the networks, and derivatives in forward mode, are not compiled.
    """
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    for network in networks:
        network._compiled_call_impl = _Call(network)  # as nn.Module.compile sets it


class _Call:
    """A network's compiled call, and its own in forward mode, which the compiler cannot trace."""

    def __init__(self, network: nn.Module):
        self.own = network._call_impl
        self.compiled = torch.compile(self.own, backend=BACKEND)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.compiled if forward_ad._current_level < 0 else self.own)(*args, **kwargs)


def check_compiler(strategy: Any) -> None:
    """Compiles a small function where a strategy computes.

    Raises:
        ValueError: there is no compiler, or the strategy spreads networks over processes.
    """
    if isinstance(strategy, Shard):
        raise ValueError("networks that are spread over processes are not compiled: leave model.compile out")
    try:
        torch.compile(torch.sin, backend=BACKEND)(torch.ones(2, device=strategy.root_device))
    except Exception as error:  # of many kinds, by device and version
        said = " ".join(str(error).split())[:120]
        raise ValueError(f"nothing compiles on this machine ({said}): leave model.compile out") from error
