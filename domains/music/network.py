"""A compact U-Net of mel spectrograms, on patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from distillkit import checks
from distillkit.networks.unet import Block, UShape, convolution
from domains.music.codec import Mel


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
        given: number of frames of the beginning, whole patches; its sound `cond["first"]`
            [B, C, given hop] is further input channels, zero where it ends.
        codec: makes spectrograms of beginnings; None without any.
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
        codec: Mel | None = None,
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
        if given and codec is None:
            raise ValueError(
                "a MelUNet that is given beginnings needs the codec that makes spectrograms of them, got None"
            )
        self.given, self.frames, self.sides = given, frames, {"p": patch[0], "q": patch[1]}
        self.codec, self.first_shape = codec, (sounds, given * codec.hop if given else 0)
        inputs = sounds * patch[0] * patch[1]
        self.build(inputs * (2 if given else 1), inputs, channels, multipliers, blocks, attention, classes)
        self.place = nn.Parameter(torch.zeros(1, channels, num // patch[0], frames // patch[1]))

    def check_context(self, cond: dict[str, Tensor]) -> None:
        """See `WithContext`: the beginnings must be sounds of `given` frames."""
        if self.given and cond["first"].shape[1:] != self.first_shape:
            sounds, num = self.first_shape
            raise ValueError(
                f"cond['first'] must hold the first {num} samples of each sound, of shape [n, {sounds}, {num}], "
                f"got {list(cond['first'].shape)}"
            )

    def enter(self, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        if self.given:
            first = self.codec.spectrogram(cond["first"]).to(x)
            x = torch.cat([x, nn.functional.pad(first, (0, self.frames - self.given))], dim=1)
        x = rearrange(x, "b c (m p) (f q) -> b (c p q) m f", **self.sides)
        return super().enter(x, cond) + self.place

    def leave(self, h: Tensor) -> Tensor:
        return rearrange(super().leave(h), "b (c p q) m f -> b c (m p) (f q)", **self.sides)
