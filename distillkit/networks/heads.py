"""Discriminator heads on features of a denoiser."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distillkit.networks.blocks import sinusoids, zero

TIMES = 64  # sinusoids of the noise level


class Head(nn.Module):
    """A two-layer MLP at every position; the logit of a sample is the mean over positions.

    Args:
        channels: size of the features, [B, channels, *positions].
        timed: whether the normalised features are scaled and shifted by the noise level; the
            modulation starts at zero.
    """

    def __init__(self, channels: int, timed: bool = False):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 1)
        )
        if timed:
            self.modulate = nn.Sequential(
                nn.Linear(TIMES, channels), nn.SiLU(), zero(nn.Linear(channels, 2 * channels))
            )
        self.timed = timed

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        """Logits [B]; positive means real. `time` is the network's time, [B], of order one."""
        tokens = features.flatten(2).transpose(1, 2) if features.ndim > 2 else features[:, None]
        norm, *rest = self.layers
        dtype = self.layers[1].weight.dtype
        h = norm(tokens.to(dtype))
        if self.timed:
            scale, shift = self.modulate(sinusoids(time, TIMES).to(dtype))[:, None].chunk(2, dim=-1)
            h = torch.addcmul(shift, h, 1 + scale)
        for layer in rest:
            h = layer(h)
        return h.mean(dim=(1, 2))
