"""A compact U-Net of mel spectrograms, on patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from distillkit import checks
from distillkit.networks.unet import Block, UShape, convolution


class MelUNet(UShape):
    """A U-Net of spectrograms, which knows where in a spectrogram it is.

    Args:
        event_shape: (channels, bands, frames), of whole patches on every level.
        channels: width of the first level.
        multipliers: width of each level in units of `channels`.
        blocks: residual blocks on each level of the encoder (the decoder has one more).
        attention: self-attention in the middle.
        patch: bands and frames of a patch.
        classes: categorical conditions, `{name: number of classes}`.
        given: number of frames at the beginning, `cond["first"]` [B, C, bands, given]; they are
            further input channels, zero where they end. Whole patches.
    """

    Block, convolution = Block, staticmethod(convolution)

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: int = 24,
        multipliers: Sequence[int] = (1, 2, 3),
        blocks: int = 1,
        attention: bool = True,
        patch: Sequence[int] = (2, 4),
        classes: dict[str, int] | None = None,
        given: int = 0,
    ):
        super().__init__()
        checks.network(event_shape=event_shape, channels=channels, multipliers=multipliers, patch=patch)
        checks.whole(0, given=given)
        if len(patch) != 2:
            raise ValueError(f"patch must be two numbers, bands and frames, got {list(patch)}")
        high, long = (side * 2 ** (len(multipliers) - 1) for side in patch)
        if len(event_shape) != 3 or event_shape[1] % high or event_shape[2] % long:
            raise ValueError(
                f"a MelUNet of {len(multipliers)} levels and patches of {patch[0]} x {patch[1]} needs spectrograms (channels, "
                f"bands, frames), bands divisible by {high} and frames by {long}, got {tuple(event_shape)}"
            )
        sounds, num, frames = event_shape
        if given % patch[1] or given >= frames:
            raise ValueError(f"given must be a multiple of {patch[1]} below {frames} frames, got {given}")
        self.given, self.frames, self.sides = given, frames, {"p": patch[0], "q": patch[1]}
        self.first_shape = (sounds, num, given)
        inputs = sounds * patch[0] * patch[1]
        self.build(inputs * (2 if given else 1), inputs, channels, multipliers, blocks, attention, classes)
        self.place = nn.Parameter(torch.zeros(1, channels, num // patch[0], frames // patch[1]))

    def check_context(self, cond: dict[str, Tensor]) -> None:
        """See `WithContext`: the beginnings must have the network's number of frames."""
        if self.given and cond["first"].shape[1:] != self.first_shape:
            raise ValueError(
                f"cond['first'] must hold the first {self.given} frames of each sound, of shape "
                f"[n, {', '.join(map(str, self.first_shape))}], got {list(cond['first'].shape)}"
            )

    def enter(self, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        if self.given:
            first = nn.functional.pad(cond["first"].to(x), (0, self.frames - self.given))
            x = torch.cat([x, first], dim=1)
        x = rearrange(x, "b c (m p) (f q) -> b (c p q) m f", **self.sides)
        return super().enter(x, cond) + self.place

    def leave(self, h: Tensor) -> Tensor:
        return rearrange(super().leave(h), "b (c p q) m f -> b c (m p) (f q)", **self.sides)
