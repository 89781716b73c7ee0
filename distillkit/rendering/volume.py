"""Volume rendering: the light that comes along rays through a glowing fog.

The fog fills the cube [-1, 1]^3 and has a density and a colour everywhere. Along a ray the stretch
inside the cube is cut into S intervals of length dt, and the fog is taken to be the same all along
an interval. NeRF (arXiv 2003.08934), equation 3.

B: views; H, W: pixels; S: samples of a ray.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distillkit.rendering.cameras import pose, rays

NEAREST = 0.05  # distance from the camera at which rays begin, for cameras in the cube
REACH = math.sqrt(3)  # of the cube from its middle
TINY = 1e-8

Fog = Callable[[Tensor], tuple[Tensor, Tensor]]


class Rendered(NamedTuple):
    """Views of scenes.

    Attributes:
        image: colours in [0, 1], [B, 3, H, W].
        opacity: the share of the light that does not come from the background, [B, 1, H, W].
        depth: mean distance along the camera's axis of where the light comes from, [B, 1, H, W];
            the background lies behind the cube, see `behind`.
    """

    image: Tensor
    opacity: Tensor
    depth: Tensor


def behind(camera: Tensor) -> Tensor:
    """The depth of the background, [B], for cameras [B, 13]: no point of the cube is deeper."""
    return pose(camera)[:, :3, 3].norm(dim=-1) + REACH


def span(origins: Tensor, towards: Tensor) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave the cube [-1, 1]^3, both [...].

    They are the same for a ray that misses it. A ray from inside enters at `NEAREST`.

    Args:
        origins, towards: where rays begin and their directions of length 1, [..., 3].
    """
    safe = torch.where(towards.abs() < TINY, torch.where(towards < 0, -TINY, TINY), towards)  # along a face
    one, other = (-1 - origins) / safe, (1 - origins) / safe
    near = torch.minimum(one, other).amax(-1).clamp_min(NEAREST)
    far = torch.maximum(one, other).amin(-1)
    hit = far > near
    return torch.where(hit, near, NEAREST), torch.where(hit, far, NEAREST)


def render(
    fog: Fog,
    camera: Tensor,
    height: int,
    width: int,
    samples: int = 32,
    background: Tensor | float = 1.0,
    jitter: Tensor | float = 0.5,
) -> Rendered:
    """Render one view of each of B scenes.

    Args:
        fog: gives the density, [B, P], and the colour in [0, 1], [B, 3, P], at points [B, P, 3] of
            the cube, one row of points for each scene.
        camera: [B, 13], see `cameras`.
        height, width: of the picture in pixels.
        samples: S, of each ray.
        background: its colour in [0, 1], a number or [B, 3].
        jitter: where in their intervals the samples lie, in [0, 1), a number or a shape that
            broadcasts to [B, H, W]. Uniform draws make the light nearly unbiased in training.
    """
    with torch.autocast(camera.device.type, enabled=False):  # 8 bits are too few for places
        origins, towards = rays(camera, height, width)
        near, far = span(origins[:, None, None].expand_as(towards), towards)
        dt = (far - near) / samples
        jitter = torch.as_tensor(jitter, dtype=dt.dtype, device=dt.device)
        at = near[..., None] + (torch.arange(samples, device=dt.device) + jitter[..., None]) * dt[..., None]
        points = origins[:, None, None, None] + at[..., None] * towards[..., None, :]
        density, colour = fog(points.flatten(1, 3))
        density, colour = density.reshape(at.shape), colour.reshape(len(at), 3, *at.shape[1:])
        axis = (towards * -pose(camera)[:, None, None, :3, 2]).sum(-1)  # depth per distance
        return composite(density, colour, dt, at * axis[..., None], behind(camera), background)


def composite(
    density: Tensor, colour: Tensor, dt: Tensor, depth: Tensor, far: Tensor, background: Tensor | float = 1.0
) -> Rendered:
    """Put the samples of rays together, front to back.

    alpha = 1 - exp(-density dt) of the light of an interval is its own, and the transmittance T is
    the share that passes all intervals before it; the weight of a sample is T alpha.

    Args:
        density: not negative, per length, [B, H, W, S].
        colour: [B, 3, H, W, S].
        dt: length of the intervals, [B, H, W].
        depth: of the samples, [B, H, W, S].
        far: depth of the background, [B].
        background: its colour, a number or [B, 3].
    """
    thick = density * dt[..., None]
    before = torch.cat([torch.zeros_like(thick[..., :1]), thick.cumsum(-1)], -1)
    passed = torch.exp(-before)
    weight, left = passed[..., :-1] * -torch.expm1(-thick), passed[..., -1][:, None]
    return in_front((weight[:, None] * colour).sum(-1), left, (weight * depth).sum(-1)[:, None], far, background)


def in_front(light: Tensor, left: Tensor, depth: Tensor, far: Tensor, background: Tensor | float) -> Rendered:
    """Add what is left of the background.

    Args:
        light: weighted colours of the scene, [B, 3, H, W].
        left: the share of the light that is the background's, [B, 1, H, W].
        depth: weighted depths of the scene, [B, 1, H, W].
        far: depth of the background, [B].
        background: its colour, a number or [B, 3].
    """
    colour = torch.as_tensor(background, dtype=light.dtype, device=light.device)
    colour = colour[..., None, None] if colour.ndim else colour
    return Rendered(light + left * colour, 1 - left, depth + left * far[:, None, None, None])


class VolumeField(nn.Module, ABC):
    """A number of scenes made of fog.

    Attributes:
        samples: of a ray.
    """

    samples: int

    @abstractmethod
    def fog(self, points: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
        """The density, [B, P], and the colour in [0, 1], [B, 3, P], of scenes.

        Args:
            points: of the cube [-1, 1]^3, [B, P, 3].
            scene: which of the scenes, int64 [B].
        """

    def render(
        self,
        camera: Tensor,
        scene: Tensor,
        height: int,
        width: int,
        background: Tensor | float = 1.0,
        jitter: Tensor | float = 0.5,
    ) -> Rendered:
        """Views of scenes (int64 [B]) by cameras [B, 13]; the others as in `volume.render`."""
        return render(lambda points: self.fog(points, scene), camera, height, width, self.samples, background, jitter)
