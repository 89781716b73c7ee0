"""Activation checkpointing (arXiv 1604.06174): blocks are computed again in the backward pass."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distillkit.modules import blocks, modules


def checkpoint_blocks(root: nn.Module) -> int:
    """Lets networks keep the inputs of their blocks alone for the backward pass, in place.

    A block is an entry of a list of modules that has modules, and no such entries, within it. The
    backward pass computes its activations again, with the same results. Passes without gradients,
    among them derivatives in forward mode, stay as they are, and a copy does as its original.
    Models of the package diffusers that can do so themselves are told to.

    Args:
        root: holds the networks, registered or not.

    Returns:
        The number of blocks; a model of diffusers counts as one.
    """
    own = [module for module in modules(root) if getattr(module, "_supports_gradient_checkpointing", False)]
    for model in own:
        model.enable_gradient_checkpointing()
    inside = {part for model in own for part in model.modules()}
    lists = [module for module in modules(root) if isinstance(module, nn.ModuleList) and module not in inside]
    found = [block for each in lists for block in each if _parted(block) and not any(map(_parted, blocks(block)))]
    for block in found:
        block.forward = MethodType(_recomputed, block)  # which a copy of the block binds to the copy
    return len(own) + len(found)


def checkpoints(root: nn.Module) -> bool:
    """Whether there are such blocks under `root`."""
    own = (getattr(module, "is_gradient_checkpointing", False) for module in modules(root))
    blocks = (getattr(vars(module).get("forward"), "__func__", None) is _recomputed for module in modules(root))
    return any(own) or any(blocks)


def _parted(block: nn.Module) -> bool:
    return next(block.children(), None) is not None


def _recomputed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    own = type(block).forward
    if not torch.is_grad_enabled():
        return own(block, *args, **kwargs)
    return checkpoint(own, block, *args, use_reentrant=False, **kwargs)
