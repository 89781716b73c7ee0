"""Walks through modules: all of them, and the blocks of their lists."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def modules(root: nn.Module) -> Iterator[nn.Module]:
    """All modules under `root`, registered or not, such as the network under adapters."""
    seen, waiting = set(), [root]
    while waiting:
        module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            waiting += [*module.children(), *(each for each in vars(module).values() if isinstance(each, nn.Module))]
            yield module


def blocks(root: nn.Module) -> list[nn.Module]:
    """The entries of all lists of modules under `root`, also of lists within entries."""
    return [block for part in root.modules() if isinstance(part, nn.ModuleList) for block in part]
