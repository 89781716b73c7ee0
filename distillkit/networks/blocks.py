"""Blocks that networks share: embeddings of time, class and told conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillkit import checks

WAVES = 64  # sines and cosines of a told number
FASTEST = 64.0  # see `sinusoids`
GRID = 2000  # times at which an embedding is fitted anew
MOST = 65_536  # categories or elements of one further condition


class Embedding(nn.Module):
    """Time (a number of order one, [B]) and class conditions as one vector [B, width].

    Args:
        width: size of the vector.
        classes: `{name: number of classes}`; index `number of classes` is the null condition.

    Attributes:
        fastest: frequency of the fastest wave in which the time is seen, see `sinusoids`.
    """

    def __init__(self, width: int, classes: dict[str, int]):
        super().__init__()
        self.width, self.fastest = width, FASTEST
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.ModuleDict({name: nn.Embedding(num + 1, width) for name, num in classes.items()})
        self.told = Told(width)

    def tell(self, name: str, **kind: Any) -> None:
        """See `Told.tell`."""
        if name in self.classes:
            raise ValueError(f"this network is conditioned on {name!r} already: choose another name")
        self.told.tell(name, **kind)

    @torch.no_grad()
    def slow(self, fastest: float, ends: Sequence[float]) -> None:
        """See the time in waves up to `fastest` from now on, and give nearly the same vectors.

        The first layer is fitted anew, by least squares at times between the two ends. What it
        loses are wiggles in time that are faster than the new waves.
        """
        layer, time = self.time[0], torch.linspace(*map(float, ends), GRID, dtype=torch.float64)
        given = sinusoids(time, self.width, self.fastest) @ layer.weight.double().cpu().T + layer.bias.double().cpu()
        waves = torch.cat([sinusoids(time, self.width, fastest), torch.ones(GRID, 1, dtype=torch.float64)], dim=1)
        ridge = 1e-6 * GRID * torch.eye(waves.shape[1], dtype=torch.float64)
        fitted = torch.linalg.solve(waves.T @ waves + ridge, waves.T @ given)
        layer.weight.copy_(fitted[:-1].T)
        layer.bias.copy_(fitted[-1])
        self.fastest = fastest

    def forward(self, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        out = self.time(sinusoids(time, self.width, self.fastest).to(self.time[0].weight.dtype))
        for name, table in self.classes.items():
            out = out + table(wanted(cond, name))
        if self.told:
            out = out + self.told(cond).to(out.dtype)
        return nn.functional.silu(out)


class Told(nn.ModuleDict):
    """Told conditions of a network by name, summed to one vector [B, width]; zero before training.

    Args:
        width: size of the vector.
    """

    def __init__(self, width: int):
        super().__init__()
        self._width = width

    def tell(
        self,
        name: str,
        categories: int | None = None,
        range: Sequence[float] | None = None,
        size: int | None = None,
    ) -> None:
        """Add a condition of exactly one of the three kinds.

        Args:
            name: its key in `cond`, an identifier.
            categories: their number; `cond[name]` is int64 [B], from 0.
            range: the smallest and the largest value of a number; `cond[name]` is float [B].
            size: elements of a vector of order one; `cond[name]` is float [B, size].

        Raises:
            ValueError: no kind or several, a name that is taken or impossible, a size or a range
                without sense.
        """
        if sum(kind is not None for kind in (categories, range, size)) != 1:
            raise ValueError(
                f"{name!r} is told as exactly one of categories, range and size, got categories={categories}, "
                f"range={range}, size={size}"
            )
        if name in self:
            raise ValueError(f"this network is told {name!r} already: choose another name")
        if not name.isidentifier() or name == "mask" or hasattr(nn.ModuleDict, name):
            raise ValueError(f"a condition cannot be called {name!r}: choose another name")
        if categories is not None:
            checks.whole(1, MOST, categories=categories)
            self[name] = zero(nn.Embedding(categories, self._width))
        elif range is not None:
            self[name] = Number(*_ends(range), self._width)
        else:
            checks.whole(1, MOST, size=size)
            self[name] = Vector(size, self._width)

    def forward(self, cond: dict[str, Tensor]) -> Tensor:
        """The vector [B, width]; there must be at least one condition."""
        return sum(module(wanted(cond, name)) for name, module in self.items())


class Number(nn.Module):
    """A number in [low, high], [B], as [B, width]: sinusoids and two layers, the last one zero."""

    def __init__(self, low: float, high: float, width: int):
        super().__init__()
        self.low, self.high = low, high
        self.layers = nn.Sequential(nn.Linear(WAVES, 2 * WAVES), nn.SiLU(), zero(nn.Linear(2 * WAVES, width)))

    def forward(self, value: Tensor) -> Tensor:
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        waves = sinusoids((value - self.low) / (self.high - self.low), WAVES)
        return self.layers(waves.to(self.layers[0].weight.dtype))


class Vector(nn.Linear):
    """A vector [B, size] as [B, width]: linear without bias, zero at first."""

    def __init__(self, size: int, width: int):
        super().__init__(size, width, bias=False)
        zero(self)

    def forward(self, value: Tensor) -> Tensor:
        return super().forward(value.to(self.weight.dtype))


def _ends(range: Sequence[float]) -> tuple[float, float]:
    """The two ends of a range, or a ValueError."""
    if isinstance(range, (list, tuple)) and len(range) == 2:
        checks.finite(range=range)
        if range[0] < range[1]:
            return float(range[0]), float(range[1])
    raise ValueError(f"range must be a smallest and a largest value, such as [1, 8], got {range}")


def wanted(cond: dict[str, Tensor], name: str) -> Tensor:
    """`cond[name]`, or a ValueError that names the missing condition."""
    if name not in cond:
        raise ValueError(f"this network is conditioned on {name!r}, but the condition has {sorted(cond) or 'nothing'}")
    return cond[name]


def sinusoids(time: Tensor, width: int, fastest: float = FASTEST, slowest: float = 0.25) -> Tensor:
    """Sines and cosines of times of order one, [B] to [B, width].

    Angular frequencies are geometric from `slowest` to `fastest`, in units of pi / 2.
    """
    frequencies = slowest * (fastest / slowest) ** torch.linspace(
        0, 1, width // 2, device=time.device, dtype=time.dtype
    )
    angles = time[:, None] * frequencies * math.tau / 4
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def zero(layer: nn.Module) -> nn.Module:
    """Returns the layer with all parameters set to zero: its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
