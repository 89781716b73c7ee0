"""A residual multilayer perceptron for low-dimensional data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from distillkit import checks
from distillkit.networks.blocks import Embedding, zero
from distillkit.networks.features import Features, last
from distillkit.spec import Recorded


class MLP(Recorded, Features, nn.Module):
    """`depth` residual layers on the flattened sample, scaled and shifted by the embedding.

    Args:
        event_shape: shape of one sample.
        width: hidden units.
        depth: residual layers.
        classes: categorical conditions, `{name: number of classes}`.
    """

    def __init__(
        self, event_shape: Sequence[int], width: int = 128, depth: int = 3, classes: dict[str, int] | None = None
    ):
        super().__init__()
        checks.network(event_shape=event_shape, width=width, depth=depth, classes=classes or {})
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        size = math.prod(event_shape)
        self.embed = Embedding(width, classes or {})
        self.inp = nn.Linear(size, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.modulate = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.out = zero(nn.Linear(width, size))
        self.feature_widths, self.feature_layer = [width] * depth, depth - 1

    def activations(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Iterator[Tensor]:
        """The features after each hidden layer, [B, width]."""
        emb = self.embed(time, cond)
        h = self.inp(x.flatten(1).to(self.inp.weight.dtype))
        for layer, modulate in zip(self.layers, self.modulate, strict=True):
            scale, shift = modulate(emb).chunk(2, dim=1)
            h = h + nn.functional.silu(layer(h) * (1 + scale) + shift)
            yield h

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.out(last(self.activations(x, time, cond))).reshape(x.shape)
