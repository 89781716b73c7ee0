"""The cube cut into voxels: shapes on its lattice, and which voxels hold what.

The world is the cube [-1/2, 1/2]^3, z up, cut into R^3 voxels of side h = 1 / R. Arrays are indexed
(x, y, z): voxel (i, j, k) has its centre at ((i + 1/2) h - 1/2, ...), and its corners are the
lattice points (i, j, k) to (i + 1, j + 1, k + 1) of the (R + 1)^3 lattice, which lie at i h - 1/2.

n: shapes; N: voxels of a padded set; R: voxels along a side.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CORNERS = tuple(itertools.product((0, 1), repeat=3))  # of a voxel, in the order of the features
CHANNELS = len(CORNERS) + 3  # distances at the corners, then red, green, blue
DEEP = 2  # voxels from the surface at which depth is cut off


@dataclass
class Volumes:
    """Shapes on the lattice.

    Attributes:
        distance: signed distance to the surface at the lattice points, positive outside, float32
            [n, R+1, R+1, R+1]; exact up to a few voxels from the surface, farther away only its
            sign matters.
        colour: at the voxels' centres, float32 [n, 3, R, R, R] in [-1, 1].
        label: int64 [n], or None.
    """

    distance: Tensor
    colour: Tensor
    label: Tensor | None = None


def depth(distance: Tensor) -> Tensor:
    """How far inside the deepest corner of each voxel is, [n, R, R, R].

    In units of `DEEP` voxels and cut off at -1 and 1. Negative where the voxel is outside with all
    its corners.

    Args:
        distance: signed distances at the lattice points, [n, R+1, R+1, R+1].
    """
    side = distance.shape[-1] - 1
    return (F.max_pool3d(-distance[:, None], 2, stride=1)[:, 0] * (side / DEEP)).clamp(-1, 1)


def occupied(distance: Tensor) -> Tensor:
    """The voxels of which some corner is inside, bool [n, R, R, R].

    The surface passes through them, or they lie inside.
    """
    return depth(distance) > 0


def shell(solid: Tensor) -> Tensor:
    """The occupied voxels that touch a voxel which is not, if only at a corner.

    They lie within one voxel of the surface.

    Args:
        solid: bool [n, R, R, R]; all around the grid is empty.

    The surface passes through each of them (of the corners they share with an empty voxel all are
    outside), and through no other voxel except in crevices too narrow for an empty one. The shell
    encloses the rest of the solid, whatever the solid is, so shell and solid say the same.
    """
    around = F.max_pool3d(F.pad(1 - solid[:, None].float(), [1] * 6, value=1.0), 3, stride=1)[:, 0]
    return solid & (around > 0)


def voxel_sets(active: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Marked voxels as padded sets in lexical order, `coords` [n, N, 3] and `mask` [n, N].

    Args:
        active: bool [n, R, R, R].
        size: N; None means that of the largest set.

    Raises:
        ValueError: a set is larger than `size`.
    """
    counts = active.flatten(1).sum(1)
    largest = int(counts.max()) if len(counts) else 0
    size = largest if size is None else size
    if largest > size:
        raise ValueError(
            f"a shape has {largest} voxels in its shell, more than {size}: set vars.voxels={largest} or more"
        )
    row, *place = active.nonzero(as_tuple=True)
    rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    coords = torch.zeros(len(active), size, 3, dtype=torch.long, device=active.device)
    coords[row, rank] = torch.stack(place, -1)
    return coords, torch.arange(size, device=active.device) < counts[:, None]


def voxel_features(volumes: Volumes, coords: Tensor, mask: Tensor) -> Tensor:
    """The features of voxels, [n, N, 11]: `data` of `FeaturesData`."""
    side = volumes.colour.shape[-1]
    row = torch.arange(len(coords), device=coords.device)[:, None]
    corners = [volumes.distance[(row, *(coords + coords.new_tensor(c)).unbind(-1))] * side for c in CORNERS]
    colours = volumes.colour.movedim(1, -1)[(row, *coords.unbind(-1))]
    return torch.where(mask[..., None], torch.cat([torch.stack(corners, -1), colours], -1), 0)


def lattice_points(side: int, centres: bool = False) -> Tensor:
    """The lattice points [R+1, R+1, R+1, 3], or the voxels' centres [R, R, R, 3], float32."""
    axis = (torch.arange(side) + 0.5) / side - 0.5 if centres else torch.arange(side + 1) / side - 0.5
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)


def merged(parts: Sequence[Volumes]) -> Volumes:
    """Shapes of several volumes in one."""
    label = None if parts[0].label is None else torch.cat([part.label for part in parts])
    return Volumes(torch.cat([part.distance for part in parts]), torch.cat([part.colour for part in parts]), label)
