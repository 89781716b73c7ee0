"""A compact U-Net in the manner of EDM's DDPM++ (arXiv 2206.00364), for small images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.networks.blocks import Embedding, zero
from distillkit.networks.features import Features, last
from distillkit.spec import Recorded


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels, eps=1e-6)


def convolution(inp: int, out: int, stride: int = 1) -> nn.Conv2d:
    """A convolution over 3 x 3 pixels; pixels beyond the border are zero."""
    return nn.Conv2d(inp, out, 3, stride, padding=1)


class Block(nn.Module):
    """Two convolutions, scaled and shifted by the embedding, with a skip and optional attention."""

    norm, convolution = staticmethod(norm), staticmethod(convolution)

    def __init__(self, inp: int, out: int, emb: int, attention: bool = False):
        super().__init__()
        self.norm0, self.conv0 = self.norm(inp), self.convolution(inp, out)
        self.affine = nn.Linear(emb, 2 * out)
        self.norm1, self.conv1 = self.norm(out), zero(self.convolution(out, out))
        self.skip = nn.Conv2d(inp, out, 1) if inp != out else nn.Identity()
        self.attention = Attention(out) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(torch.addcmul(shift, self.norm1(h), 1 + scale)))
        return self.attention((self.skip(x) + h) * 0.5**0.5)


class Attention(nn.Module):
    """Single-head self-attention over positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.qkv = norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.proj = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)  # [B, 1, HW, C]
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return (x + self.proj(h)) * 0.5**0.5


class UShape(Recorded, Features, nn.Module):
    """The base of U-Nets: an encoder and a decoder of residual blocks with skip connections.

    A subclass sets `Block` and `convolution`, and may override `enter` and `leave`.
    """

    Block: type[nn.Module]
    convolution: Callable[..., nn.Module]

    def build(
        self,
        inp: int,
        out: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: int,
        classes: dict[str, int] | None,
    ) -> None:
        """Make the layers, for `inp` channels after `enter` and `out` channels before `leave`."""
        checks.network(channels=channels, multipliers=multipliers, blocks=blocks, classes=classes or {})
        emb, widths = 4 * channels, [channels * m for m in multipliers]
        down = [width for width in widths for _ in range(blocks)]
        up = [width for width in reversed(widths) for _ in range(blocks + 1)]
        self.feature_widths, self.feature_layer = [*down, widths[-1], widths[-1], *up], len(down) + 1
        self.embed = Embedding(emb, classes or {})
        self.inp = self.convolution(inp, channels)
        self.encoder, skips, width = nn.ModuleList(), [channels], channels
        for level, target in enumerate(widths):
            if level:
                self.encoder.append(self.convolution(width, width, stride=2))
                skips.append(width)
            for _ in range(blocks):
                self.encoder.append(self.Block(width, target, emb))
                skips.append(width := target)
        self.middle = nn.ModuleList([self.Block(width, width, emb, attention), self.Block(width, width, emb)])
        self.decoder = nn.ModuleList()
        for level, target in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.decoder.append(self.Block(width + skips.pop(), target, emb))
                width = target
            if level:
                self.decoder.append(self.convolution(width, width))
        self.norm, self.out = norm(width), zero(self.convolution(width, out))

    def enter(self, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Data as the input of the first level."""
        return self.inp(x.to(self.inp.weight.dtype))

    def leave(self, h: Tensor) -> Tensor:
        """Output of the last level as data."""
        return self.out(F.silu(self.norm(h)))

    def _walk(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Iterator[Tensor]:
        """Yields the input of the first level, then the output of each residual block."""
        emb, h = self.embed(time, cond), self.enter(x, cond)
        skips = [h]
        yield h
        for layer in self.encoder:
            if isinstance(layer, self.Block):
                yield (h := layer(h, emb))
            else:
                h = layer(h)
            skips.append(h)
        for block in self.middle:
            yield (h := block(h, emb))
        for layer in self.decoder:
            if isinstance(layer, self.Block):
                yield (h := layer(torch.cat([h, skips.pop()], dim=1), emb))
            else:
                h = layer(F.interpolate(h, scale_factor=2.0, mode="nearest"))

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.leave(last(self._walk(x, time, cond)))

    def activations(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Iterator[Tensor]:
        """Features after each residual block, from encoder to decoder, [B, C, ...]."""
        return islice(self._walk(x, time, cond), 1, None)


class UNet(UShape):
    """A U-Net of images.

    Args:
        event_shape: (channels, height, width); height and width divisible by 2^(levels - 1).
        channels: width of the first level.
        multipliers: width of each level in units of `channels`.
        blocks: residual blocks on each level of the encoder (the decoder has one more).
        attention: self-attention in the middle.
        classes: categorical conditions, `{name: number of classes}`.
    """

    Block, convolution = Block, staticmethod(convolution)

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: bool = True,
        classes: dict[str, int] | None = None,
    ):
        super().__init__()
        checks.network(event_shape=event_shape)
        image_channels, *size = event_shape
        factor = 2 ** (len(multipliers) - 1)
        if len(size) != 2 or any(s % factor for s in size):
            raise ValueError(
                f"a U-Net with {len(multipliers)} levels needs images divisible by {factor}, got {tuple(event_shape)}"
            )
        self.build(image_channels, image_channels, channels, multipliers, blocks, attention, classes)
