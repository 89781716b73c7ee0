"""A transformer for sparse volumes: features on active voxels, in blocks of 2 x 2 x 2 (TRELLIS, arXiv 2412.01506)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillkit.networks.blocks import Embedding, sinusoids, zero
from distillkit.networks.dit import Block
from distillkit.spec import Recorded

CHILDREN = 8  # voxels in a block
FREQUENCIES = 16  # numbers that say where a block lies, for each axis


class SetDiT(Recorded, nn.Module):
    """Voxels of one block are one token: the features of all eight (absent ones zero), which are there, where the block lies.

    A sample is a padded set of voxels: x [B, N, C], `cond["coords"]` int64 [B, N, 3], `cond["mask"]` bool [B, N], no
    two alike. Tokens lie in the order of their blocks, so the order of the voxels and the padding change nothing.

    Args:
        event_shape: (N, C); sets of other sizes work too.
        side: voxels along each side of the volume.
        width: token size, divisible by `heads`.
        depth: number of transformer blocks.
        heads: attention heads.
        blocks: blocks that a sample may have; None means N, which always suffices. Fewer are faster, but voxels that find
            no room come out as NaN.
        classes: categorical conditions, `{name: number of classes}`.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        side: int = 16,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        blocks: int | None = None,
        classes: dict[str, int] | None = None,
    ):
        super().__init__()
        if len(event_shape) != 2:
            raise ValueError(f"a SetDiT needs samples (points, channels), got {tuple(event_shape)}")
        if side % 2:
            raise ValueError(f"side must be even, for voxels are taken two by two, got {side}")
        size, channels = event_shape
        self.side, self.limit = side, blocks or size
        self.embed = Embedding(width, classes or {})
        self.inp = nn.Linear(CHILDREN * (channels + 1) + 3 * FREQUENCIES, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.modulate = nn.LayerNorm(width, elementwise_affine=False), zero(nn.Linear(width, 2 * width))
        self.out = zero(nn.Linear(width, CHILDREN * channels))
        self.feature_channels = width

    def _gather(self, x: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, K, *], which of them are there [B, K], and the slot of every voxel among the 8 K children [B, N]."""
        coords, mask, half = cond["coords"], cond["mask"], self.side // 2
        batch, size, channels = x.shape
        block = ((coords // 2) * coords.new_tensor([half**2, half, 1])).sum(-1)
        block = torch.where(mask, block, half**3)  # the padding comes last, as a block of its own
        ordered, order = block.sort(dim=1)
        rank = (ordered.diff(dim=1) > 0).cumsum(1)
        rank = torch.zeros_like(block).scatter(1, order[:, 1:], rank)  # the first one's is 0
        num = min(self.limit, size)
        rank = torch.where(mask, rank, num).clamp_max(num)  # block `num` is for what is to be forgotten
        slot = CHILDREN * rank + ((coords % 2) * coords.new_tensor([4, 2, 1])).sum(-1)
        known = torch.cat([x, x.new_ones(batch, size, 1)], -1)
        room = x.new_zeros(batch, CHILDREN * (num + 1), channels + 1)
        room = room.scatter(1, slot[..., None].expand_as(known), known)[:, :-CHILDREN].unflatten(1, (num, CHILDREN))
        place = block.new_zeros(batch, num + 1).scatter(1, rank, block)[:, :-1]
        there = room[..., -1].any(-1)
        axes = [2 * axis / half - 1 for axis in (place // half**2, place // half % half, place % half)]
        where = [sinusoids(axis.flatten(), FREQUENCIES, 0.5, 4.0).unflatten(0, axis.shape) for axis in axes]
        return torch.cat([room.flatten(2), *where], -1), there, slot

    def _tokens(self, x: Tensor, emb: Tensor, cond: dict[str, Tensor], blocks) -> tuple[Tensor, Tensor, Tensor]:
        tokens, there, slot = self._gather(x.to(self.inp.weight.dtype), cond)
        seen = there.clone()
        seen[:, 0] = True  # a sample without voxels looks at something, for attention to nothing is not a number
        h = self.inp(tokens)
        for block in blocks:
            h = block(h, emb, seen)
        return h, there, slot

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        emb = self.embed(time, cond)
        h, _, slot = self._tokens(x, emb, cond, self.blocks)
        shift, scale = self.modulate(emb)[:, None].chunk(2, dim=-1)
        h = self.out(torch.addcmul(shift, self.norm(h), 1 + scale)).unflatten(-1, (CHILDREN, -1)).flatten(1, 2)
        lost = slot >= h.shape[1]
        out = h.gather(1, torch.where(lost, 0, slot)[..., None].expand(-1, -1, h.shape[-1]))
        # asking whether a voxel found no room would stall the device, so it is told by a number that is none
        return out.masked_fill(lost[..., None], 0).masked_fill((lost & cond["mask"])[..., None], torch.nan)

    def features(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Tokens after the first half of the transformer blocks, [B, C, K]; those that are not there are zero."""
        half = self.blocks[: (len(self.blocks) + 1) // 2]
        h, there, _ = self._tokens(x, self.embed(time, cond), cond, half)
        return torch.where(there[..., None], h, 0).transpose(1, 2)
