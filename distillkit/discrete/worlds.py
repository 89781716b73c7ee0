"""Small worlds: all sequences of tokens, listed, numbered and weighted."""

from __future__ import annotations

import torch
from torch import Tensor


def sequences(num_states: int, length: int) -> Tensor:
    """All sequences, [C^d, d]; the last position runs fastest."""
    return torch.cartesian_prod(*[torch.arange(num_states)] * length).reshape(-1, length)


def positions(x: Tensor, num_states: int) -> Tensor:
    """The index of each sequence of x [n, d] in `sequences`, [n]."""
    return (x * num_states ** torch.arange(x.shape[1] - 1, -1, -1, device=x.device)).sum(-1)


def outer(kernel: Tensor) -> Tensor:
    """Probabilities of all sequences with independent positions, [n, C^d], from [n, d, C]."""
    joint = kernel.new_ones(len(kernel), 1)
    for row in kernel.unbind(1):
        joint = (joint[:, :, None] * row[:, None, :]).flatten(1)
    return joint


def push(weights: Tensor, kernel: Tensor) -> Tensor:
    """The mixture `sum_n weights_n outer(kernel_n)`, [C^d], by one product of its two halves."""
    half = kernel.shape[1] // 2
    first, second = outer(kernel[:, :half]), outer(kernel[:, half:])
    return ((weights[:, None] * first).T @ second).flatten()
