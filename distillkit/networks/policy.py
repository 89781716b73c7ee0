"""A policy over a few actions, whose state is a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import silu

from distillkit import checks
from distillkit.networks.blocks import zero
from distillkit.spec import Recorded


class Policy(Recorded, nn.Module):
    """Four convolutions on a sample, their mean over positions, and a logit for each action.

    The last two axes of a sample are positions, all before them channels, so that the frames of a
    video are folded into channels (DDPNet of VideoScene, arXiv 2504.01956). A sample of fewer than
    three axes has one position. At first every action is as likely.

    Args:
        event_shape: shape of one sample.
        num: number of actions, at least 2.
        width: channels of the convolutions.
    """

    def __init__(self, event_shape: Sequence[int], num: int, width: int = 32):
        super().__init__()
        checks.network(event_shape=event_shape, width=width)
        checks.whole(2, 1000, num=num)
        self.num, self.event_shape = num, tuple(event_shape)
        self.sides = tuple(event_shape[-2:]) if len(event_shape) > 2 else (1, 1)
        channels = math.prod(event_shape) // math.prod(self.sides)
        size = 3 if len(event_shape) > 2 else 1
        self.layers = nn.ModuleList(
            nn.Conv2d(inp, width, size, stride=2, padding=size // 2) for inp in (channels, width, width, width)
        )
        for layer in self.layers:  # so that the state gets through them all
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.out = zero(nn.Linear(width, num))

    def forward(self, state: Tensor) -> Tensor:
        """Logits, float32 [B, num], of samples [B, *event_shape]."""
        h = state.reshape(len(state), -1, *self.sides).to(self.out.weight.dtype)
        for layer in self.layers:
            h = silu(layer(h))
        return self.out(h.mean(dim=(2, 3))).float()
