"""A diffusion transformer on the active voxels of a volume (stage two of TRELLIS, 2412.01506)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from einops import reduce
from torch import Tensor, nn

from distillkit import checks
from distillkit.networks.dit import DiT
from distillkit.networks.features import Features
from distillkit.spec import Recorded


class SetDiT(Recorded, Features, nn.Module):
    """A DiT on the volume of the voxels; attention ignores blocks of the volume without a voxel.

    A sample is a padded set of distinct voxels: x [B, N, C], `cond["coords"]` int64 [B, N, 3] in
    [0, side), `cond["mask"]` bool [B, N]. The DiT gets C + 1 channels, zero where there is no
    voxel; the last one is 1 at voxels. So neither the order of the voxels nor the padding changes
    anything.

    Args:
        event_shape: (N, C); sets of other sizes work too.
        side: voxels along each side of the volume, divisible by `patch`.
        width, depth, heads, classes: as in `DiT`.
        patch: side of the block of voxels that is one token.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        side: int = 16,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        patch: int = 4,
        classes: dict[str, int] | None = None,
    ):
        super().__init__()
        if len(event_shape) != 2:
            raise ValueError(f"a SetDiT needs samples (voxels, channels), got {tuple(event_shape)}")
        checks.network(event_shape=event_shape, side=side)
        self.side, self.patch = side, patch
        self.dit = DiT((event_shape[1] + 1, side, side, side), width, depth, heads, patch, classes)
        self.feature_widths, self.feature_layer = self.dit.feature_widths, self.dit.feature_layer

    @property
    def embed(self) -> nn.Module:
        """The embedding of the DiT."""
        return self.dit.embed

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        volume, blocks, place = self._scatter(x, cond)
        # an empty set needs a token to attend to
        blocks = blocks.index_fill(1, blocks.new_zeros(1, dtype=torch.int64), True)
        out = self.dit(volume, time, cond, blocks).flatten(2)[:, :-1].transpose(1, 2)
        return out.gather(1, place.expand(-1, -1, out.shape[-1]))

    def check_context(self, cond: dict[str, Tensor]) -> None:
        """See `WithContext`: voxels must lie in the volume, one for each place of the mask."""
        coords, mask = cond["coords"], cond["mask"]
        whole = coords.dtype == torch.int64 and coords.shape == (*mask.shape, 3)
        if not whole or not ((coords >= 0) & (coords < self.side))[mask].all():
            raise ValueError(
                f"cond['coords'] must hold voxels, int64 {[*mask.shape, 3]}, each from 0 to {self.side - 1} where the mask is "
                f"true, got {str(coords.dtype).removeprefix('torch.')} {list(coords.shape)}"
            )

    def activations(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Iterator[Tensor]:
        """Tokens after each transformer block, [B, width, L]; zero where there is no voxel."""
        volume, blocks, _ = self._scatter(x, cond)
        seen = blocks.index_fill(1, blocks.new_zeros(1, dtype=torch.int64), True)
        for h in self.dit.activations(volume, time, cond, seen):
            yield torch.where(blocks[:, None], h, 0)

    def _scatter(self, x: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The volume [B, C + 1, side, side, side], non-empty blocks [B, L], places [B, N, 1]."""
        side, mask = self.side, cond["mask"][..., None]
        i, j, k = cond["coords"].split(1, dim=-1)
        place = (i * side + j) * side + k
        place = torch.where(mask, place, side**3)  # padding goes to a place of its own, which is cut off
        known = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        volume = x.new_zeros(len(x), side**3 + 1, known.shape[-1]).scatter(1, place.expand_as(known), known)
        volume = volume[:, :-1].transpose(1, 2).unflatten(2, (side, side, side))
        blocks = reduce(
            volume[:, -1], "b (x p) (y q) (z r) -> b (x y z)", "max", p=self.patch, q=self.patch, r=self.patch
        )
        return volume, blocks > 0, torch.where(mask, place, 0)
