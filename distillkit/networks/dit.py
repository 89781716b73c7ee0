"""A diffusion transformer with adaLN-zero (DiT, arXiv 2212.09748) on small grids of any rank."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.networks.blocks import Embedding, zero
from distillkit.networks.features import Features
from distillkit.spec import Recorded


class Block(nn.Module):
    """Attention and MLP, scaled, shifted and gated by the embedding; the identity at the start."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm0, self.norm1 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulate = zero(nn.Linear(width, 6 * width))

    def forward(self, x_BLC: Tensor, emb_BC: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Attention ignores tokens where the mask is false."""
        shift0, scale0, gate0, shift1, scale1, gate1 = self.modulate(emb_BC)[:, None].chunk(6, dim=-1)
        h = torch.addcmul(shift0, self.norm0(x_BLC), 1 + scale0)
        q, k, v = rearrange(self.qkv(h), "b l (three h c) -> three b h l c", three=3, h=self.heads)
        seen = None if mask_BL is None else mask_BL[:, None, None]
        h = rearrange(F.scaled_dot_product_attention(q, k, v, seen), "b h l c -> b l (h c)")
        x_BLC = x_BLC + gate0 * self.proj(h)
        return x_BLC + gate1 * self.mlp(torch.addcmul(shift1, self.norm1(x_BLC), 1 + scale1))


class DiT(Recorded, Features, nn.Module):
    """A transformer of patches with learned positions.

    Args:
        event_shape: (channels, *sides), such as (1, 8, 8) or (1, 16, 16, 16); the sides divisible
            by `patch`.
        width: token size, divisible by `heads`.
        depth: number of blocks.
        heads: attention heads.
        patch: side of a patch in pixels or voxels.
        classes: categorical conditions, `{name: number of classes}`.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        patch: int = 2,
        classes: dict[str, int] | None = None,
    ):
        super().__init__()
        checks.network(
            event_shape=event_shape, width=width, depth=depth, heads=heads, patch=patch, classes=classes or {}
        )
        if width % heads or width % 2:
            raise ValueError(f"width must be even and divisible by heads, got {width} and {heads}")
        channels, *size = event_shape
        if not size or any(s % patch for s in size):
            raise ValueError(f"a DiT with patch {patch} needs sides divisible by {patch}, got {tuple(event_shape)}")
        axes = range(len(size))
        self.grid = "b c " + " ".join(f"(n{i} p{i})" for i in axes)
        self.tokens = f"b ({' '.join(f'n{i}' for i in axes)}) (c {' '.join(f'p{i}' for i in axes)})"
        self.sides = {f"n{i}": s // patch for i, s in enumerate(size)} | {f"p{i}": patch for i in axes}
        inside, length = channels * patch ** len(size), math.prod(size) // patch ** len(size)
        self.embed = Embedding(width, classes or {})
        self.inp = nn.Linear(inside, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, length, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.modulate = nn.LayerNorm(width, elementwise_affine=False), zero(nn.Linear(width, 2 * width))
        self.out = zero(nn.Linear(width, inside))
        self.feature_widths, self.feature_layer = [width] * depth, (depth - 1) // 2

    def _tokens(self, x: Tensor) -> Tensor:
        """Tokens before the first block, [B, L, C]."""
        h = rearrange(x.to(self.inp.weight.dtype), f"{self.grid} -> {self.tokens}", **self.sides)
        return self.inp(h) + self.position

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor], mask_BL: Tensor | None = None) -> Tensor:
        """Attention ignores tokens where the mask is false."""
        emb, h = self.embed(time, cond), self._tokens(x)
        for block in self.blocks:
            h = block(h, emb, mask_BL)
        shift, scale = self.modulate(emb)[:, None].chunk(2, dim=-1)
        h = self.out(torch.addcmul(shift, self.norm(h), 1 + scale))
        return rearrange(h, f"{self.tokens} -> {self.grid}", **self.sides)

    def activations(
        self, x: Tensor, time: Tensor, cond: dict[str, Tensor], mask_BL: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Tokens after each block, [B, C, L]."""
        emb, h = self.embed(time, cond), self._tokens(x)
        for block in self.blocks:
            h = block(h, emb, mask_BL)
            yield h.mT
