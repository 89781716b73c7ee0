"""Discriminators: heads on features of a denoiser, and one of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

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

    def forward(self, features: Tensor, time: Tensor, sets: bool = False) -> Tensor:
        """Logits [B]; positive means real.

        Args:
            features: [B, channels, *positions].
            time: the network's time, [B], of order one.
            sets: whether samples are padded sets: positions without any feature are padding, over
                which no mean is taken.
        """
        tokens = features.flatten(2).transpose(1, 2) if features.ndim > 2 else features[:, None]
        there = (tokens != 0).any(2, keepdim=True) if sets else None
        norm, *rest = self.layers
        dtype = self.layers[1].weight.dtype
        h = norm(tokens.to(dtype))
        if self.timed:
            scale, shift = self.modulate(sinusoids(time, TIMES).to(dtype))[:, None].chunk(2, dim=-1)
            h = torch.addcmul(shift, h, 1 + scale)
        for layer in rest:
            h = layer(h)
        if there is None:
            return h.mean(dim=(1, 2))
        return (h * there).sum((1, 2)) / there.sum((1, 2)).clamp_min(1)


class Patches(nn.Module):
    """A discriminator of images by their patches (PatchGAN, arXiv 1611.07004), without norms.

    Args:
        channels: of the images.
        width: of the first layer; each further one has twice as many, at most 8 times as many.
        depth: how often sides are halved; with 3 a logit sees 54 pixels of a side.
    """

    def __init__(self, channels: int = 3, width: int = 64, depth: int = 3):
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(depth + 1)]
        pairs = zip([channels, *widths], widths, strict=False)
        layers = [nn.Conv2d(inp, out, 4, 2, 1) for inp, out in pairs][:depth]
        layers += [nn.Conv2d(widths[depth - 1], widths[depth], 3, 1, 1), nn.Conv2d(widths[depth], 1, 3, 1, 1)]
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 1, h, w] of images [B, channels, H, W]; positive means real."""
        h = images.to(self.layers[0].weight.dtype)
        for layer in self.layers[:-1]:
            h = leaky_relu(layer(h), 0.2)
        return self.layers[-1](h)
