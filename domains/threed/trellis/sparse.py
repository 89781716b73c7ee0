"""Sparse voxels in plain torch, without a compiled library.

Voxels of all samples stand in one row: V voxels, C channels, B samples.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Voxels:
    """The occupied voxels on one level of resolution.

    Args:
        batch: the sample of each voxel, rising, int64 [V].
        coords: its place, integers in [0, side), [V, 3]; no two voxels of a sample share one.
        num: number of samples.
        side: of the grid.
    """

    def __init__(self, batch: Tensor, coords: Tensor, num: int, side: int):
        self.batch, self.coords, self.num, self.side = batch, coords.long(), num, side
        if len(coords) and not (int(self.coords.min()) >= 0 and int(self.coords.max()) < side):
            raise ValueError(
                f"voxels lie in 0 .. {side - 1}, but coords reach from {int(coords.min())} to {int(coords.max())}"
            )

    def __len__(self) -> int:
        return len(self.batch)

    @cached_property
    def neighbours(self) -> Tensor:
        """The voxel at each of the 27 offsets (-1, -1, -1) .. (1, 1, 1), [27, V]; V for none.

        The last axis runs fastest.
        """
        side = self.side + 2  # an empty border, so that every offset stays inside
        place = (
            ((self.batch * side + self.coords[:, 0] + 1) * side + self.coords[:, 1] + 1) * side + self.coords[:, 2] + 1
        )
        grid = place.new_full((self.num * side**3,), len(self))
        grid[place] = torch.arange(len(self), device=place.device)
        step = torch.arange(-1, 2, device=place.device)
        offsets = ((step[:, None, None] * side + step[:, None]) * side + step).flatten()
        return grid[place + offsets[:, None]]

    def coarser(self) -> tuple[Voxels, Tensor]:
        """The voxels of twice the size that hold ours, and the one for each of ours, [V]."""
        side = (self.side + 1) // 2
        x, y, z = (self.coords // 2).unbind(1)
        code, parent = (((self.batch * side + x) * side + y) * side + z).unique(return_inverse=True)
        coords = torch.stack([code // side**2 % side, code // side % side, code % side], dim=1)
        return Voxels(code // side**3, coords, self.num, side), parent

    def pad(self, feats: Tensor) -> tuple[Tensor, Tensor]:
        """[V, C] as [B, L, C] with L the largest sample, and the mask [B, L] of real voxels."""
        count = torch.bincount(self.batch, minlength=self.num)
        mask = torch.arange(int(count.max()), device=count.device) < count[:, None]
        padded = feats.new_zeros(*mask.shape, feats.shape[1])
        padded[mask] = feats
        return padded, mask


def pool(feats: Tensor, parent: Tensor, num: int) -> Tensor:
    """Features of `num` coarser voxels from theirs: `sum / (count + 1)`, [V, C] to [num, C].

    TRELLIS averages by a scatter onto zeros that counts the zero as a member; its weights have
    grown with that.
    """
    total = feats.new_zeros(num, feats.shape[1]).index_add(0, parent, feats)
    return total / (torch.bincount(parent, minlength=num) + 1)[:, None]


class SparseConv3d(nn.Module):
    """A 3x3x3 convolution whose output exists where its input exists.

    It equals `conv3d` where everything exists.

    The weight lies as spconv 2 keeps it, [out, 3, 3, 3, in] (the released backend); torchsparse's
    `kernel` is not read.
    """

    def __init__(self, inp: int, out: int):
        super().__init__()
        weight = torch.randn(out, 3, 3, 3, inp) * (27 * inp) ** -0.5
        self.conv = nn.ParameterDict({"weight": weight, "bias": torch.zeros(out)})

    def forward(self, feats: Tensor, voxels: Voxels) -> Tensor:
        taps = self.conv["weight"].flatten(1, 3).unbind(1)
        out = self.conv["bias"]
        for weight, near in zip(taps, voxels.neighbours, strict=True):
            # project, then gather: the gathered rows need not be kept for the backward pass
            out = out + F.pad(feats @ weight.T, (0, 0, 0, 1))[near]
        return out


class SparseResBlock3d(nn.Module):
    """Two sparse convolutions with a scale and shift from the time, beside a skip.

    Args:
        inp, out: channels.
        width: of the time embedding.
        move: `down` or `up` one level first (the network does it: it knows the levels), or `stay`.
    """

    def __init__(self, inp: int, out: int, width: int, move: str = "stay"):
        super().__init__()
        self.move = move
        self.norm1, self.norm2 = nn.LayerNorm(inp, eps=1e-6), nn.LayerNorm(out, eps=1e-6, elementwise_affine=False)
        self.conv1, self.conv2 = SparseConv3d(inp, out), SparseConv3d(out, out)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * out))
        self.skip_connection = nn.Linear(inp, out) if inp != out else nn.Identity()

    def forward(self, feats: Tensor, emb: Tensor, voxels: Voxels) -> Tensor:
        scale, shift = self.emb_layers(emb)[voxels.batch].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(feats)), voxels)
        h = self.conv2(F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale)), voxels)
        return h + self.skip_connection(feats)


def occupied(logits: Tensor, size: int | None = None) -> dict[str, Tensor]:
    """The conditions `coords` int64 [B, N, 3] and `mask` bool [B, N] of voxels above logit 0.

    Args:
        logits: of occupancy, [B, 1, side, side, side].
        size: N, the size of the padded sets; None takes the largest.
    """
    batch, coords = torch.tensor_split((logits[:, 0] > 0).nonzero(), [1], dim=1)
    padded, mask = Voxels(batch[:, 0], coords, len(logits), logits.shape[-1]).pad(coords)
    if size is not None:
        if mask.shape[1] > size:
            raise ValueError(f"a structure has {mask.shape[1]} voxels, but sets hold {size}: raise teacher.max_voxels")
        extra = size - mask.shape[1]
        padded, mask = F.pad(padded, (0, 0, 0, extra)), F.pad(mask, (0, extra))
    return {"coords": padded, "mask": mask}
