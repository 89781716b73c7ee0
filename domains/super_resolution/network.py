"""A network for photographs of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.networks import unet
from distillkit.networks.blocks import Embedding, zero
from distillkit.networks.features import Features, last
from distillkit.spec import Recorded
from domains.super_resolution.resize import enlarged


class PixelNorm(nn.Module):
    """Scales the channels at each position to a root mean square of one, then by a weight each.

    No statistics of the image enter, so a part of an image is treated as within the whole.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt() * self.weight[:, None, None]


class Block(unet.Block):
    """A residual block without statistics of the image."""

    norm = PixelNorm


class PatchNet(Recorded, Features, nn.Module):
    """Residual blocks on patches of pixels, with the enlarged observation as further input.

    It is local and commutes with shifts by a patch: away from its borders, a tile of a photograph
    comes out as within the whole.

    Args:
        event_shape: (channels, height, width) in training; photographs may have any other size.
        width: channels of the blocks.
        depth: number of blocks.
        patch: side of a patch in pixels.
        classes: categorical conditions, `{name: number of classes}`.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        width: int = 64,
        depth: int = 6,
        patch: int = 4,
        classes: dict[str, int] | None = None,
    ):
        super().__init__()
        checks.network(event_shape=event_shape, width=width, depth=depth, patch=patch, classes=classes or {})
        pixels, self.patch = event_shape[0] * patch**2, patch
        self.embed = Embedding(width, classes or {})
        self.inp = nn.Conv2d(2 * pixels, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width, width, width) for _ in range(depth))
        self.norm, self.out = PixelNorm(width), zero(nn.Conv2d(width, pixels, 3, padding=1))
        self.feature_widths, self.feature_layer = [width] * depth, (depth - 1) // 2

    @property
    def reach(self) -> int:
        """How far a pixel of the output sees in its input, in pixels, at most."""
        return self.patch * (2 * len(self.blocks) + 3)

    def check_context(self, cond: dict[str, Tensor]) -> None:
        """See `WithContext`: the observations must be images."""
        check_images(cond["low"])

    def activations(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Iterator[Tensor]:
        """Features after each block, [B, width, height / patch, width / patch], rounded up."""
        height, width = x.shape[-2:]
        x = torch.cat([x, enlarged(cond["low"].to(x), (height, width))], dim=1).to(self.inp.weight.dtype)
        x = fitted(x, *((side + self.patch - 1) // self.patch * self.patch for side in (height, width)))
        h, emb = self.inp(F.pixel_unshuffle(x, self.patch)), self.embed(time, cond)
        for block in self.blocks:
            yield (h := block(h, emb))

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        h = self.out(F.silu(self.norm(last(self.activations(x, time, cond)))))
        return fitted(F.pixel_shuffle(h, self.patch), *x.shape[-2:])


def fitted(x: Tensor, height: int, width: int) -> Tensor:
    """Images [B, C, H, W] of another size: cut, or their last row and column repeated.

    Graphs of every size hold it, which padding and slices are not made for.
    """
    for axis, size in ((2, height), (3, width)):
        side = x.shape[axis]
        if not (isinstance(side, int) and side == size):
            x = x.index_select(axis, torch.arange(size, device=x.device).clamp_max(side - 1))
    return x


def check_images(low: Tensor) -> None:
    """Refuse observations that are no images [n, 3, height, width] in [-1, 1]."""
    if low.ndim != 4 or low.shape[1] != 3 or not low.is_floating_point() or 0 in low.shape[2:]:
        raise ValueError(
            f"cond['low'] must hold small photographs, numbers in [-1, 1] of shape [n, 3, height, width], got "
            f"{str(low.dtype).removeprefix('torch.')} {list(low.shape)}"
        )
    if low.numel() and float(low.abs().max()) > 1 + 1e-3:
        raise ValueError(f"cond['low'] must lie in [-1, 1], got {float(low.min()):g} to {float(low.max()):g}")
