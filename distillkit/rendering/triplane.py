"""Scenes as three planes of features, and a small network that reads them (EG3D, arXiv 2112.07945).

A point of the cube [-1, 1]^3 falls onto the planes (x, y), (x, z) and (y, z). The sum of what the
planes hold there goes through two layers, to the four numbers of a voxel (see `voxels`). R x R
features are less than R x R x R voxels, and they share what lies along an axis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.rendering.volume import VolumeField
from distillkit.rendering.voxels import activated, ball
from distillkit.spec import Recorded

AXES = ((0, 1), (0, 2), (1, 2))  # of the planes: the axis along their rows, then that along their columns


def look_up(planes: Tensor, points: Tensor) -> Tensor:
    """The sums of the features [B, 3, C, R, R] of three planes at points [B, P, 3], [B, C, P].

    The last axis of a plane is the first of its two in `AXES`.
    """
    places = torch.stack([points[..., axes] for axes in AXES], 1)  # [B, 3, P, 2]
    read = F.grid_sample(
        planes.flatten(0, 1).to(points), places.flatten(0, 1)[:, :, None], padding_mode="border", align_corners=False
    )
    return read[..., 0].unflatten(0, planes.shape[:2]).sum(1)


class TriplaneField(Recorded, VolumeField):
    """Scenes as planes, each with layers of its own, which start as greyish balls.

    Args:
        num: number of scenes.
        side: R, features along each side of a plane.
        channels: C, of a plane.
        hidden: units between the two layers.
        samples: of a ray.
        radius: of the first balls.
        std: of the first features.
        seed: of the first features and layers.

    Attributes:
        planes: [num, 3, C, R, R].
    """

    def __init__(
        self,
        num: int = 1,
        side: int = 24,
        channels: int = 8,
        hidden: int = 16,
        samples: int = 32,
        radius: float = 0.5,
        std: float = 0.1,
        seed: int = 0,
    ):
        super().__init__()
        checks.whole(1, 2**20, num=num)
        checks.whole(2, 1024, side=side, samples=samples)
        checks.network(channels=channels, hidden=hidden)
        checks.positive(radius=radius, std=std)
        self.samples, self.radius = samples, radius
        generator = torch.Generator().manual_seed(seed)

        def drawn(spread: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(spread * torch.randn(num, *shape, generator=generator))

        self.planes = drawn(std, 3, channels, side, side)
        self.first, self.last = drawn(channels**-0.5, hidden, channels), drawn(hidden**-0.5, 4, hidden)
        self.first_bias, self.last_bias = drawn(0.0, hidden, 1), drawn(0.0, 4, 1)

    def fog(self, points: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
        read = look_up(self.planes[scene], points)
        hidden = F.silu(torch.baddbmm(self.first_bias[scene], self.first[scene], read))
        raw = torch.baddbmm(self.last_bias[scene], self.last[scene], hidden)
        return activated(torch.cat([raw[:, :1] + ball(points, self.radius)[:, None], raw[:, 1:]], 1))
