"""Scenes as grids of voxels: a density and a colour in each, blended linearly between them.

A grid [4, R, R, R] covers the cube [-1, 1]^3. Its axes are z, y, x; the value at an index is that
of the middle of a voxel. The first channel s gives the density 20 softplus(s - 1), the other three
give the colour by a sigmoid. Linear blending comes before both, so that surfaces can be sharp
within a voxel (DVGO, arXiv 2111.11215).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.rendering import volume
from distillkit.rendering.volume import Rendered, VolumeField
from distillkit.spec import Recorded

DENSEST = 20.0  # slope of the density
SHIFT = -1.0  # of its argument: an empty grid is a thin fog
STEEP = 8.0  # slope of the first ball


def centres(side: int) -> Tensor:
    """The middles of voxels as points x, y, z, [R, R, R, 3], in the order of a grid's axes."""
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).flip(-1)


def activated(raw: Tensor) -> tuple[Tensor, Tensor]:
    """The density [B, ...] and the colour [B, 3, ...] of numbers [B, 4, ...]."""
    return DENSEST * F.softplus(raw[:, 0] + SHIFT), raw[:, 1:].sigmoid()


def ball(points: Tensor, radius: float) -> Tensor:
    """The first channel, [...], of a ball with a soft rim at points [..., 3]: the first scene."""
    return STEEP * (radius - points.norm(dim=-1))


def look_up(grid: Tensor, points: Tensor) -> Tensor:
    """The values of grids [B, C, R, R, R] at points of the cube [B, P, 3], [B, C, P]."""
    # the last axis of a grid is x, and grid_sample too takes x first
    return F.grid_sample(grid.to(points), points[:, :, None, None], padding_mode="border", align_corners=False)[
        ..., 0, 0
    ]


def render_grid(
    grid: Tensor,
    camera: Tensor,
    height: int,
    width: int,
    samples: int = 32,
    background: Tensor | float = 1.0,
    jitter: Tensor | float = 0.5,
) -> Rendered:
    """A view of each of the grids [B, 4, R, R, R]; the others as in `volume.render`."""

    def fog(points: Tensor) -> tuple[Tensor, Tensor]:
        return activated(look_up(grid, points))

    return volume.render(fog, camera, height, width, samples, background, jitter)


class VoxelField(Recorded, VolumeField):
    """Scenes as grids, which start as grey balls with a little noise.

    Args:
        num: number of scenes.
        side: R, voxels along each side.
        samples: of a ray.
        radius: of the first balls.
        std: of the noise on the first grids, so that scenes differ.
        seed: of that noise.

    Attributes:
        grid: [num, 4, R, R, R].
    """

    def __init__(
        self, num: int = 1, side: int = 24, samples: int = 32, radius: float = 0.5, std: float = 0.1, seed: int = 0
    ):
        super().__init__()
        checks.whole(1, 2**20, num=num)
        checks.whole(2, 256, side=side, samples=samples)
        checks.positive(radius=radius)
        checks.not_negative(std=std)
        self.samples = samples
        grid = std * torch.randn(num, 4, side, side, side, generator=torch.Generator().manual_seed(seed))
        grid[:, 0] += ball(centres(side), radius)
        self.grid = nn.Parameter(grid)

    def fog(self, points: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
        return activated(look_up(self.grid[scene], points))
