"""A U-Net of range images, which are closed in azimuth and end at the highest and lowest beam."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.networks import unet
from distillkit.networks.blocks import sinusoids
from domains.lidar.rays import between_beams

WAVES = 8  # sines and cosines of a beam's place
GIVEN = 3  # channels of `rays`


class Around(nn.Conv2d):
    """A convolution over 3 x 3 pixels that goes on at the other end of a row.

    Above and below the image is zero.
    """

    def __init__(self, inp: int, out: int, stride: int = 1):
        super().__init__(inp, out, 3, stride, padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 0, 0), mode="circular"))


class Block(unet.Block):
    """A residual block of images closed in azimuth."""

    convolution = Around


class RangeUNet(unet.UShape):
    """A U-Net on patches of range images, which sees the given rays and what lies between them.

    It sees `between_beams`, to which samples are relative, and which of the rays are given. Another
    input is each beam's place between the highest and the lowest, from which its elevation
    follows. Azimuth is none: a rotating sensor has no preferred one. If the input turns by a
    multiple of patch x 2^(levels - 1) columns, so does the output.

    Args:
        event_shape: (2, H, W); H and W divisible by patch x 2^(levels - 1).
        channels: width of the first level.
        multipliers: width of each level in units of `channels`.
        blocks: residual blocks on each level of the encoder (the decoder has one more).
        attention: self-attention in the middle.
        patch: side of a patch in pixels.
        farthest: what is farther, in metres, is no return.
        classes: categorical conditions, `{name: number of classes}`.
    """

    Block, convolution = Block, Around

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: int = 24,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: bool = True,
        patch: int = 2,
        farthest: float = 50.0,
        classes: dict[str, int] | None = None,
    ):
        super().__init__()
        checks.network(event_shape=event_shape, patch=patch)
        factor = patch * 2 ** (len(multipliers) - 1)
        if len(event_shape) != 3 or any(side % factor for side in event_shape[1:]):
            raise ValueError(
                f"a RangeUNet with {len(multipliers)} levels on patches of {patch} pixels needs images divisible by "
                f"{factor}, got {tuple(event_shape)}"
            )
        self.patch, self.farthest, self.rays_shape = patch, farthest, (GIVEN, *event_shape[1:])
        inp, out = (patch**2 * number for number in (event_shape[0] + GIVEN, event_shape[0]))
        self.build(inp + WAVES, out, channels, multipliers, blocks, attention, classes)
        place = sinusoids(torch.linspace(-1, 1, event_shape[1] // patch), WAVES)
        self.register_buffer("place", place.T[None, :, :, None], persistent=False)

    def check_context(self, cond: dict[str, Tensor]) -> None:
        """See `WithContext`: the rays must be images of the network's size, in [-1, 1]."""
        rays = cond["rays"]
        if rays.shape[1:] != self.rays_shape or not bool((rays.abs() <= 1).all()):
            raise ValueError(
                f"cond['rays'] must hold the given rays, numbers in [-1, 1] of shape "
                f"[n, {', '.join(map(str, self.rays_shape))}], got {list(rays.shape)}"
            )

    def enter(self, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        rays = cond["rays"].to(x)
        x = F.pixel_unshuffle(torch.cat([x, between_beams(rays, self.farthest), rays[:, 2:]], dim=1), self.patch)
        return super().enter(torch.cat([x, self.place.to(x).expand(len(x), -1, -1, x.shape[-1])], dim=1), cond)

    def leave(self, h: Tensor) -> Tensor:
        return F.pixel_shuffle(super().leave(h), self.patch)
