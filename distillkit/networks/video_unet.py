"""A compact U-Net for small videos: convolutions over space, then over time (2+1D, 1711.11248)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.networks.blocks import zero
from distillkit.networks.unet import UShape, norm


def spatial(inp: int, out: int, stride: int = 1) -> nn.Conv3d:
    """A convolution over the pixels of each frame; a stride shortens time as well."""
    return nn.Conv3d(inp, out, (1, 3, 3), stride, padding=(0, 1, 1))


class Block(nn.Module):
    """Convolutions over space, time and space, scaled and shifted by the embedding, with a skip.

    Attention is optional.
    """

    def __init__(self, inp: int, out: int, emb: int, heads: int = 0):
        super().__init__()
        self.norm0, self.norm1 = norm(inp), norm(out)
        self.conv0, self.conv1 = spatial(inp, out), zero(spatial(out, out))
        self.time = nn.Conv3d(out, out, (3, 1, 1), padding=(1, 0, 0))
        self.affine = nn.Linear(emb, 2 * out)
        self.skip = nn.Conv3d(inp, out, 1) if inp != out else nn.Identity()
        self.attention = Attention(out, heads) if heads else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.time(self.conv0(F.silu(self.norm0(x))))
        scale, shift = self.affine(emb)[:, :, None, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(torch.addcmul(shift, self.norm1(h), 1 + scale)))
        return self.attention((self.skip(x) + h) * 0.5**0.5)


class Attention(nn.Module):
    """Self-attention over all positions and frames."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads, self.norm = heads, norm(channels)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.qkv(self.norm(x).flatten(2).mT)
        q, k, v = rearrange(h, "b l (three h c) -> three b h l c", three=3, h=self.heads)
        h = rearrange(F.scaled_dot_product_attention(q, k, v), "b h l c -> b l (h c)")
        return (x + self.proj(h).mT.reshape(x.shape)) * 0.5**0.5


class VideoUNet(UShape):
    """A U-Net of videos, on tubelets.

    Args:
        event_shape: (channels, frames, height, width); frames must be divisible by `tube`, height
            and width by `patch`, and the quotients by 2^(levels - 1).
        channels: width of the first level.
        multipliers: width of each level in units of `channels`; each level has half the frames,
            rows and columns of the one before.
        blocks: residual blocks on each level of the encoder (the decoder has one more).
        heads: attention heads in the middle; 0 means no attention.
        patch: side of a tubelet in pixels.
        tube: frames of a tubelet.
        classes: categorical conditions, `{name: number of classes}`.
        given: number of context frames at the start of a clip, `cond["first"]` [B, C, given, H,
            W] in [-1, 1]; they are further input channels at every frame.
    """

    Block, convolution = Block, staticmethod(spatial)

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        heads: int = 4,
        patch: int = 2,
        tube: int = 2,
        classes: dict[str, int] | None = None,
        given: int = 0,
    ):
        super().__init__()
        checks.network(event_shape=event_shape, channels=channels, multipliers=multipliers, patch=patch, tube=tube)
        checks.whole(0, heads=heads, given=given)
        factor = 2 ** (len(multipliers) - 1)
        units = factor * torch.tensor([tube, patch, patch])
        if len(event_shape) != 4 or bool((torch.tensor(event_shape[1:]) % units).any()):
            raise ValueError(
                f"a VideoUNet of {len(multipliers)} levels needs videos (channels, frames, height, width), frames divisible "
                f"by {factor * tube} and sides by {factor * patch}, got {tuple(event_shape)}"
            )
        image_channels, frames, rows, columns = event_shape
        if heads and channels * multipliers[-1] % heads:
            raise ValueError(
                f"the width of the last level must be divisible by heads, got {channels * multipliers[-1]} and {heads}"
            )
        self.given, self.patch, self.sides = given, patch, {"r": tube, "p": patch, "q": patch}
        self.first_shape = (image_channels, given, rows, columns)
        pixels = image_channels * patch**2
        self.build(pixels * (tube + given), pixels * tube, channels, multipliers, blocks, heads, classes)
        self.place = nn.Parameter(torch.zeros(1, channels, frames // tube, rows // patch, columns // patch))

    def check_context(self, cond: dict[str, Tensor]) -> None:
        """See `WithContext`: the context frames must have the network's number and size."""
        if self.given and cond["first"].shape[1:] != self.first_shape:
            raise ValueError(
                f"cond['first'] must hold the first {self.given} frames of each clip, numbers in [-1, 1] of shape "
                f"[n, {', '.join(map(str, self.first_shape))}], got {list(cond['first'].shape)}"
            )

    def enter(self, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        x = rearrange(x, "b c (t r) (h p) (w q) -> b (c r p q) t h w", **self.sides)
        if self.given:
            first = rearrange(cond["first"].to(x), "b c k (h p) (w q) -> b (c k p q) 1 h w", p=self.patch, q=self.patch)
            x = torch.cat([x, first.expand(-1, -1, x.shape[2], -1, -1)], dim=1)
        return super().enter(x, cond) + self.place

    def leave(self, h: Tensor) -> Tensor:
        return rearrange(super().leave(h), "b (c r p q) t h w -> b c (t r) (h p) (w q)", **self.sides)
