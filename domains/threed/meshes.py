"""From voxels to meshes, by marching cubes, and measures of a mesh.

n: shapes; N: voxels of a padded set; R: voxels along a side; V, F: vertices and faces of a mesh; P:
    points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from domains.threed.lattice import CORNERS

POINTS = 1024  # of the cloud that stands for a surface
LEVEL = 13 / 16  # 3/4 is half way for planes along the grid; edges and slants want more, to keep a solid's volume


@dataclass
class Mesh:
    """A triangle mesh; counter-clockwise faces seen from outside.

    Attributes:
        vertices: float32 [V, 3].
        faces: int64 [F, 3].
        colours: of the vertices, float32 [V, 3] in [-1, 1], or None.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray | None = None

    @property
    def corners(self) -> np.ndarray:
        """The three vertices of every face, [F, 3, 3]."""
        return self.vertices[self.faces]

    @property
    def areas(self) -> np.ndarray:
        """Areas of the faces, float32 [F]."""
        a, b, c = self.corners.swapaxes(0, 1)
        return np.linalg.norm(np.cross(b - a, c - a), axis=-1) / 2

    @property
    def volume(self) -> float:
        """The volume that a closed mesh encloses: signed tetrahedra over the origin (Gauss)."""
        a, b, c = self.corners.astype(np.float64).swapaxes(0, 1)
        return float((a * np.cross(b, c)).sum() / 6)

    @property
    def watertight(self) -> bool:
        """Whether it has faces, and every edge of a face is an edge of exactly one other.

        The other must run through it the other way.
        """
        a, b = self.faces.reshape(-1), np.roll(self.faces, -1, axis=1).reshape(-1)
        there, back = (np.sort(x * np.int64(len(self.vertices)) + y) for x, y in ((a, b), (b, a)))
        return len(there) > 0 and bool((np.diff(there) > 0).all()) and np.array_equal(there, back)

    def sample(self, num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Points spread evenly over the surface, float32 [P, 3], and their colours [P, 3].

        Colours are 0 (grey) where there are none.

        A mesh without faces is a point in the middle.
        """
        if len(self.faces) == 0:
            return np.zeros((num, 3), np.float32), np.zeros((num, 3), np.float32)
        faces, weights = self.places(num, seed)
        colours = np.zeros_like(self.vertices) if self.colours is None else self.colours
        return tuple((weights[..., None] * values[self.faces[faces]]).sum(1) for values in (self.vertices, colours))

    def places(self, num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Points spread evenly over the surface, as places on faces.

        Returns:
            The faces, int64 [P], and barycentric coordinates on them, float32 [P, 3].
        """
        rng = np.random.default_rng(seed)
        ends = self.areas.astype(np.float64).cumsum()
        # one draw in each of `num` equal strips of area: evener than independent draws, and as
        # unbiased
        place = (np.arange(num) + rng.random(num)) / num * ends[-1]
        root, share = np.sqrt(rng.random(num)), rng.random(num)
        weights = np.stack([1 - root, root * (1 - share), root * share], -1).astype(np.float32)
        return np.searchsorted(ends, place).clip(max=len(ends) - 1), weights


def structure_meshes(samples: Tensor) -> list[Mesh]:
    """Meshes of structures [n, 1, R, R, R] (occupied above 0), without colours.

    Where the surface crosses an occupied voxel is not known. The share s of a lattice point's eight
    voxels that are occupied is 1 inside and at most 7/8 outside, so 2 h (LEVEL - s) serves as the
    distance.
    """
    solid = F.pad((samples[:, 0] > 0).float(), [1] * 6)
    share = F.avg_pool3d(solid[:, None], 2, stride=1)[:, 0]
    return [marching_cubes(distance) for distance in (2 * (LEVEL - share)).cpu().numpy() / samples.shape[-1]]


def feature_meshes(samples: Tensor, coords: Tensor, mask: Tensor, side: int) -> list[Mesh]:
    """Meshes of features [n, N, 11] on voxels, see `FeaturesData`, with their colours."""
    distance = lattice_distance(samples, coords, mask, side).cpu().numpy()
    colours = on_grid(
        torch.cat([samples[..., len(CORNERS) :], torch.ones_like(samples[..., :1])], -1), coords, mask, side
    )
    return [
        coloured(marching_cubes(values), colour)
        for values, colour in zip(distance, colours.float().cpu().numpy(), strict=True)
    ]


def lattice_distance(samples: Tensor, coords: Tensor, mask: Tensor, side: int) -> Tensor:
    """Signed distances at the lattice points [n, R+1, R+1, R+1] from features [n, N, 11].

    Voxels that share a lattice point contribute their mean.

    Lattice points without a voxel are inside or outside, by a voxel's side. The missing voxels fall
    into regions that the others keep apart: the one at the border is outside, any other is what its
    distances sum to.
    """
    num, points = len(samples), (side + 1) ** 3
    index = coords[..., None, :] + coords.new_tensor(CORNERS)
    index = (index * index.new_tensor([(side + 1) ** 2, side + 1, 1])).sum(-1).flatten(1)  # [n, 8 N]
    weight = mask[..., None].expand(-1, -1, len(CORNERS)).flatten(1).float()
    values = torch.where(mask[..., None], samples[..., : len(CORNERS)], 0).flatten(1).float()
    count = weight.new_zeros(num, points).scatter_add_(1, index, weight).view(num, *[side + 1] * 3)
    total = weight.new_zeros(num, points).scatter_add_(1, index, values).view(num, *[side + 1] * 3)
    known = total / count.clamp_min(1)

    there = on_grid(mask[..., None].float(), coords, mask, side)[:, 0] > 0
    absent = F.pad(~there, [1] * 6, value=True).cpu().numpy()
    apart = np.zeros((3, 3, 3, 3), bool)  # regions do not reach into other shapes
    apart[1] = ndimage.generate_binary_structure(3, 1)
    region = torch.from_numpy(ndimage.label(absent, apart)[0].astype(np.int64)).to(samples.device)
    around = 8 * F.avg_pool3d(F.pad(known[:, None], [1] * 6), 2, stride=1)[:, 0]  # sum over each voxel's corners
    inside = torch.bincount(region.flatten(), around.flatten().double()) < 0
    inside[region[:, 0, 0, 0]] = False
    filled = torch.where(inside[region[:, 1:, 1:, 1:]], -1.0, 1.0)  # the eight voxels of such a point are one region
    return torch.where(count > 0, known, filled) / side


def seams(samples: Tensor, coords: Tensor, mask: Tensor, side: int) -> float:
    """Root mean square difference between distances at corners and their mean there, in voxels.

    The mean is over the voxels that share a corner.
    """
    mean = lattice_distance(samples, coords, mask, side) * side
    row = torch.arange(len(coords), device=coords.device)[:, None]
    corners = [mean[(row, *(coords + coords.new_tensor(corner)).unbind(-1))] for corner in CORNERS]
    gap = (samples[..., : len(CORNERS)] - torch.stack(corners, -1))[mask]
    return float(gap.square().mean().sqrt()) if len(gap) else 0.0


def on_grid(values: Tensor, coords: Tensor, mask: Tensor, side: int) -> Tensor:
    """Values [n, N, C] of voxels on the whole grid, [n, C, R, R, R], zero elsewhere."""
    row = torch.arange(len(coords), device=coords.device)[:, None].expand_as(mask)
    grid = values.new_zeros(len(values), *[side] * 3, values.shape[-1])
    grid[(row[mask], *coords[mask].unbind(-1))] = values[mask]
    return grid.movedim(-1, 1)


def marching_cubes(distance: np.ndarray) -> Mesh:
    """The zero level of signed distances at lattice points [R+1, R+1, R+1].

    It is closed, because everything around is outside.
    """
    from skimage import measure

    side = distance.shape[0] - 1
    padded = np.pad(distance, 1, constant_values=1 / side)
    if not (padded < 0).any():
        return Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64))
    tiny = 1e-3 / side  # a lattice point right on the surface would make triangles without area
    padded = np.where(np.abs(padded) < tiny, np.where(padded < 0, -tiny, tiny), padded)
    vertices, faces, _, _ = measure.marching_cubes(padded, 0, gradient_direction="descent")
    return Mesh(((vertices - 1) / side - 0.5).astype(np.float32), faces.astype(np.int64))


def coloured(mesh: Mesh, colour: np.ndarray) -> Mesh:
    """A mesh with colours [4, R, R, R] of voxels, interpolated between them.

    The last channel is 1 where there is a colour.
    """
    side = colour.shape[-1]
    place = (mesh.vertices.T + 0.5) * side - 0.5
    known = [ndimage.map_coordinates(channel, place, order=1, mode="nearest") for channel in colour]
    mesh.colours = np.clip(np.stack(known[:3], -1) / np.maximum(known[3], 1e-6)[:, None], -1, 1).astype(np.float32)
    return mesh


def clouds(meshes: list[Mesh], num: int = POINTS, seed: int = 0) -> np.ndarray:
    """`num` points of each surface, float32 [n, P, 3]."""
    return np.stack([mesh.sample(num, seed + i)[0] for i, mesh in enumerate(meshes)])
