"""Sparse convolutions on the occupied voxels of point sets, in plain PyTorch.

The layers do what those of MinkowskiEngine do (arXiv 1904.08755) and have their names of weights. A
voxel is one int64 key: the bits of its set in the batch, then those of x, y and z. Keys are sorted,
so neighbours are found by binary search, and no grid is filled. The coarser voxel in which one lies
has the same key without the last bits of x, y and z.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.losses import points as losses

BITS = 17  # of each axis; the 12 bits above are the set's
MOST_SETS = 2**12
FARTHEST = 2**16 - 64  # voxels from the origin, with room for neighbours: 3.2 km for voxels of 5 cm

Pairs = list[tuple[Tensor, Tensor]]  # by offset: the rows that are read, and those that are added to


def keys_of(voxels: Tensor) -> Tensor:
    """int64 [B, N, 3] coordinates, at most `FARTHEST` from zero, as keys [B, N]."""
    x, y, z = (voxels + 2**16).unbind(-1)
    sets = torch.arange(len(voxels), device=voxels.device)[:, None]
    return ((sets << BITS | x) << BITS | y) << BITS | z


class Grid:
    """The voxels of a batch of point sets at strides 1, 2, 4 ..., and who touches whom.

    A voxel holds the points that `round(point / size)` takes to it. Voxels of level k are cubes of
    2^k voxels along the side, and lie at the coordinates of their least one. Levels and neighbours
    are found when they are asked for first, and kept.

    Args:
        points: [B, N, 3] metres; B at most 4096. Farther from the origin than 3 km they count as
            there, and NaN as zero.
        size: side of a voxel in metres.

    Attributes:
        cells: [B N], the voxel of each point.
    """

    def __init__(self, points: Tensor, size: float):
        if len(points) > MOST_SETS:
            raise ValueError(
                f"a grid holds at most {MOST_SETS} sets of points, got {len(points)}: take smaller batches"
            )
        self.sets = len(points)
        voxels = (points.detach() / size).nan_to_num().round().clamp(-FARTHEST, FARTHEST).long()
        keys, self.cells = keys_of(voxels).flatten().unique(return_inverse=True)
        self._keys, self._parents, self._pairs = [keys], [], {}

    def keys(self, level: int) -> Tensor:
        """The sorted keys [V] of a level."""
        while len(self._keys) <= level:
            least = 2 ** (len(self._keys)) - 1
            coarse = self._keys[-1] & ~(((least << BITS | least) << BITS) | least)
            keys, parents = coarse.unique(return_inverse=True)
            self._keys.append(keys)
            self._parents.append(parents)
        return self._keys[level]

    def places(self, level: int) -> tuple[Tensor, Tensor]:
        """The sets [V] and the coordinates [V, 3] of a level's voxels, in units of `size`."""
        keys = self.keys(level)
        xyz = torch.stack([keys >> 2 * BITS, keys >> BITS, keys], dim=-1) & 2**BITS - 1
        return keys >> 3 * BITS, xyz - 2**16

    def neighbours(self, level: int) -> Pairs:
        """Who touches whom, for each of the 27 offsets from (-1, -1, -1), x fastest."""
        if ("near", level) not in self._pairs:
            keys, stride = self.keys(level), 2**level
            steps = torch.arange(-1, 2, device=keys.device) * stride
            offsets = (steps[:, None, None] + (steps[:, None] << BITS) + (steps << 2 * BITS)).flatten()
            wanted = keys + offsets[:, None]
            place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
            there = keys[place] == wanted
            self._pairs["near", level] = _split(place[there], there.nonzero()[:, 1], there.sum(1))
        return self._pairs["near", level]

    def inside(self, level: int) -> Pairs:
        """The voxels of a level and those of the next in which they lie, by their eight places."""
        if ("inside", level) not in self._pairs:
            self.keys(level + 1)
            bits = (self.places(level)[1] >> level) & 1
            place = bits @ torch.tensor([1, 2, 4], device=bits.device)
            order = place.argsort(stable=True)
            counts = place.bincount(minlength=8)
            self._pairs["inside", level] = _split(order, self._parents[level][order], counts)
        return self._pairs["inside", level]

    def nearest(self, level: int, other: Grid, other_level: int) -> Tensor:
        """For each voxel of a level the nearest one of another grid, within the same set: [V]."""
        (sets, own), (other_sets, among) = self.places(level), other.places(other_level)
        own, among = (
            place.split(rows.bincount(minlength=self.sets).tolist())
            for place, rows in ((own, sets), (among, other_sets))
        )
        found, before = [], 0
        for points, candidates in zip(own, among, strict=True):
            found.append(before + nearest(points, candidates))
            before += len(candidates)
        return torch.cat(found)

    def voxelised(self, x: Tensor) -> Voxels:
        """Features of points [B, N, C] as voxels of level 0: the mean of each one's points."""
        features = x.flatten(0, 1)
        total = features.new_zeros(len(self.keys(0)), features.shape[1]).index_add_(0, self.cells, features)
        return Voxels(total / self.cells.bincount()[:, None].to(total), self, 0)

    def points(self, voxels: Voxels) -> Tensor:
        """Features of voxels of level 0 at the points, [B, N, C]."""
        return voxels.features[self.cells].unflatten(0, (self.sets, -1))


def _split(source: Tensor, target: Tensor, counts: Tensor) -> Pairs:
    sizes = counts.tolist()
    return list(zip(source.split(sizes), target.split(sizes), strict=True))


def nearest(points: Tensor, among: Tensor) -> Tensor:
    """The row of `among` [M, 3] nearest to each of `points` [N, 3]: [N] int64."""
    if points.device.type == "cpu":
        return torch.from_numpy(cKDTree(among.numpy()).query(points.numpy())[1])
    return losses.nearest(points[None], among[None])[0, :, 0]


class Voxels(NamedTuple):
    """Features [V, C] of the voxels of one level of a grid."""

    features: Tensor
    grid: Grid
    level: int

    def but(self, features: Tensor) -> Voxels:
        """The same voxels with other features."""
        return self._replace(features=features)


def convolve(x: Tensor, kernel: Tensor, pairs: Pairs, num: int) -> Tensor:
    """`sum_k x[source_k] W_k` at the rows target_k, [num, out].

    Args:
        x: [V, in].
        kernel: W, [K, in, out].
        pairs: source and target of each of the K offsets.
        num: rows of the result.
    """
    out = x.new_zeros(num, kernel.shape[-1])
    for weight, (source, target) in zip(kernel, pairs, strict=True):
        if len(source):
            out.index_add_(0, target, (x[source] @ weight).to(out.dtype))
    return out


class Convolution(nn.Module):
    """A convolution of 3 x 3 x 3 voxels without bias; its offsets are those of `neighbours`."""

    side = 3

    def __init__(self, inp: int, out: int):
        super().__init__()
        bound = (inp * self.side**3) ** -0.5
        self.kernel = nn.Parameter(torch.empty(self.side**3, inp, out).uniform_(-bound, bound))

    def forward(self, x: Voxels) -> Voxels:
        pairs = x.grid.neighbours(x.level)
        return x.but(convolve(x.features, self.kernel, pairs, len(x.features)))


class Down(Convolution):
    """A convolution of 2 x 2 x 2 voxels and stride 2: a level up."""

    side = 2

    def forward(self, x: Voxels) -> Voxels:
        pairs, level = x.grid.inside(x.level), x.level + 1
        return Voxels(convolve(x.features, self.kernel, pairs, len(x.grid.keys(level))), x.grid, level)


class Up(Convolution):
    """The transpose of `Down`, onto the voxels that are known there."""

    side = 2

    def forward(self, x: Voxels) -> Voxels:
        level = x.level - 1
        pairs = [(target, source) for source, target in x.grid.inside(level)]
        return Voxels(convolve(x.features, self.kernel, pairs, len(x.grid.keys(level))), x.grid, level)


class Single(nn.Module):
    """A convolution of single voxels without bias."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(inp, out).uniform_(-(inp**-0.5), inp**-0.5))

    def forward(self, x: Voxels) -> Voxels:
        return x.but(x.features @ self.kernel)


class Norm(nn.Module):
    """Batch normalisation over all voxels."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Voxels) -> Voxels:
        bn, exact = self.bn, self.bn.running_mean.dtype  # statistics are not rounded where weights are
        stated = bn.running_mean, bn.running_var, bn.weight.to(exact), bn.bias.to(exact)
        return x.but(F.batch_norm(x.features, *stated, bn.training, bn.momentum, bn.eps))


class ReLU(nn.Module):
    """`max(x, 0)`."""

    def forward(self, x: Voxels) -> Voxels:
        return x.but(x.features.relu())
