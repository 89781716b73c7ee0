"""A compact U-Net of sounds as they are, on patches of samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.networks.blocks import zero
from distillkit.networks.unet import Attention, UShape, norm


def convolution(inp: int, out: int, stride: int = 1) -> nn.Conv1d:
    """A convolution over 5 positions; those beyond the ends are zero."""
    return nn.Conv1d(inp, out, 5, stride, padding=2)


class Block(nn.Module):
    """Two convolutions, scaled and shifted by the embedding, with a skip and optional attention."""

    def __init__(self, inp: int, out: int, emb: int, attention: bool = False):
        super().__init__()
        self.norm0, self.conv0 = norm(inp), convolution(inp, out)
        self.affine = nn.Linear(emb, 2 * out)
        self.norm1, self.conv1 = norm(out), zero(convolution(out, out))
        self.skip = nn.Conv1d(inp, out, 1) if inp != out else nn.Identity()
        self.attention = Attention(out) if attention else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.affine(emb)[:, :, None].chunk(2, dim=1)
        h = self.conv1(F.silu(torch.addcmul(shift, self.norm1(h), 1 + scale)))
        h = (self.skip(x) + h) * 0.5**0.5
        return h if self.attention is None else self.attention(h[:, :, None])[:, :, 0]


class WaveUNet(UShape):
    """A U-Net of sounds [B, C, N].

    Args:
        event_shape: (channels, samples), of whole patches on every level.
        channels: width of the first level.
        multipliers: width of each level in units of `channels`.
        blocks: residual blocks on each level of the encoder (the decoder has one more).
        attention: self-attention in the middle.
        patch: samples of a patch.
        classes: categorical conditions, `{name: number of classes}`.
        given: number of samples of the beginning, `cond["first"]` [B, C, given]; they are further
            input channels, zero where they end.
    """

    Block, convolution = Block, staticmethod(convolution)

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: int = 48,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 1,
        attention: bool = True,
        patch: int = 16,
        classes: dict[str, int] | None = None,
        given: int = 0,
    ):
        super().__init__()
        checks.network(event_shape=event_shape, channels=channels, multipliers=multipliers, patch=patch)
        checks.whole(0, given=given)
        unit = patch * 2 ** (len(multipliers) - 1)
        if len(event_shape) != 2 or event_shape[1] % unit:
            raise ValueError(
                f"a WaveUNet of {len(multipliers)} levels and patches of {patch} needs sounds (channels, samples), samples "
                f"divisible by {unit}, got {tuple(event_shape)}"
            )
        sounds, self.samples = event_shape
        if given >= self.samples:
            raise ValueError(f"given must be below {self.samples} samples, got {given}")
        self.given, self.patch, self.first_shape = given, patch, (sounds, given)
        inputs = sounds * patch
        self.build(inputs * (2 if given else 1), inputs, channels, multipliers, blocks, attention, classes)

    def check_context(self, cond: dict[str, Tensor]) -> None:
        """See `WithContext`: the beginnings must have the network's number of samples."""
        if self.given and cond["first"].shape[1:] != self.first_shape:
            sounds, num = self.first_shape
            raise ValueError(
                f"cond['first'] must hold the first {num} samples of each sound, of shape [n, {sounds}, {num}], "
                f"got {list(cond['first'].shape)}"
            )

    def enter(self, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        if self.given:
            x = torch.cat([x, F.pad(cond["first"].to(x), (0, self.samples - self.given))], dim=1)
        return super().enter(rearrange(x, "b c (l p) -> b (c p) l", p=self.patch), cond)

    def leave(self, h: Tensor) -> Tensor:
        return rearrange(super().leave(h), "b (c p) l -> b c (l p)", p=self.patch)
