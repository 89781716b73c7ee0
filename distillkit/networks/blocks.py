"""What the networks share: embeddings of time and class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Embedding(nn.Module):
    """Time (a number of order one, [B]) and categorical conditions to one vector [B, width].

    Args:
        width: size of the vector.
        classes: `{name: number of classes}`; index `number of classes` is the null condition.
    """

    def __init__(self, width: int, classes: dict[str, int]):
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.ModuleDict({name: nn.Embedding(num + 1, width) for name, num in classes.items()})
        self.told = nn.ModuleDict()

    def add(self, name: str, num: int) -> None:
        """One more condition, of `num` classes, that says nothing until it is trained."""
        self.told[name] = zero(nn.Embedding(num, self.width))

    def forward(self, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        out = self.time(sinusoids(time, self.width).to(self.time[0].weight.dtype))
        for name, table in (*self.classes.items(), *self.told.items()):
            if name not in cond:
                raise ValueError(
                    f"this network is conditioned on {name!r}, but the condition has {sorted(cond) or 'nothing'}"
                )
            out = out + table(cond[name])
        return nn.functional.silu(out)


def sinusoids(time: Tensor, width: int, low: float = 0.25, high: float = 64.0) -> Tensor:
    """[B] to [B, width]: sines and cosines at geometric angular frequencies from `low` to `high`, for times of order one."""
    frequencies = low * (high / low) ** torch.linspace(0, 1, width // 2, device=time.device, dtype=time.dtype)
    angles = time[:, None] * frequencies * math.tau / 4
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def zero(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters set to zero: the block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
