"""What scenes are, beside what they look like: fog in a cube, surfaces, pieces.

The world is the cube [-1, 1]^3. P: points; S: pixels along a side; R: cells along a side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.networks.encoded import Encoded
from distillkit.rendering.gaussians import Gaussians, rotations
from distillkit.rendering.voxels import activated, look_up
from distillkit.students.base import Student
from domains.text_to_3d.generator import Generator
from domains.text_to_3d.scenes import Painter
from domains.text_to_3d.solids import distance
from domains.threed.lattice import lattice_points
from domains.threed.meshes import Mesh, marching_cubes

SIDE = 48  # cells along a side in which surfaces are sought
CELLS = 32  # cells along a side whose opacity is looked at
HALF = 1 / 12  # the length in which the fog at a surface takes half of the light: a voxel of 24
REACH = HALF / 2  # around a vertex, within which its colour is that of the densest fog
CLEAR, SOLID = 0.1, 0.9  # opacities up to which a cell is decidedly empty, and from which on filled
CHUNK = 8192  # points looked at together


@dataclass
class Scene:
    """One scene of a student.

    Attributes:
        painter: the network that renders it.
        prompt: its prompt's number.
        particle: which of the prompt's scenes it is.
    """

    painter: Painter
    prompt: int
    particle: int = 0

    @property
    def name(self) -> str:
        """The prompt, and the particle's number if there are several."""
        text = self.painter.texts[self.prompt]
        return f"{text} {self.particle}" if _particles(self.painter) > 1 else text

    @torch.no_grad()
    def render(self, camera: Tensor, size: int) -> Tensor:
        """Views by cameras [B, 13], [B, 3, size, size] in [0, 1]."""
        camera = camera.to(self._noise)
        prompt, noise = (each.expand(len(camera), *each.shape[1:]) for each in (self._prompt, self._noise))
        return self.painter.rendered(camera, prompt, noise, size, 0.5).image

    @torch.no_grad()
    def fog(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The density [P] and the colour in [0, 1] [P, 3] at points [P, 3]."""
        parts = [self._fog(part[None].to(self._noise)) for part in points.split(CHUNK)]
        density, colour = (torch.cat([part[i][0].cpu() for part in parts], -1) for i in range(2))
        return density, colour.T

    @cached_property
    @torch.no_grad()
    def gaussians(self) -> Gaussians | None:
        """The scene's Gaussians (tensors [N, ...]), if it is made of them."""
        field = getattr(self.painter, "field", None)
        if not hasattr(field, "gaussians"):
            return None
        return Gaussians(*(each[0].cpu() for each in field.gaussians(self._number)))

    @property
    def _noise(self) -> Tensor:
        """Noise [1, 2] that chooses the particle, see `networks.particles.chosen`."""
        turn = 2 * math.pi * (self.particle + 0.5) / _particles(self.painter)
        like = next(self.painter.parameters())
        return like.new_tensor([[math.cos(turn), math.sin(turn)]])

    @property
    def _prompt(self) -> Tensor:
        return torch.tensor([self.prompt], device=self._noise.device)

    @property
    def _number(self) -> Tensor:
        return self.painter.scene(self._prompt, self._noise)

    @cached_property
    def _grid(self) -> Tensor:
        return self.painter.grids(self._prompt)

    def _fog(self, points: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.painter, Generator):
            return activated(look_up(self._grid, points))
        if self.gaussians:
            return fog_of(self.gaussians, points)
        return self.painter.field.fog(points, self._number)


def scenes(student: Student, cond: Cond) -> list[Scene]:
    """The scenes of a student for the prompts of the conditions; none if it has no scenes.

    The first particles of all prompts come first.
    """
    network = student.network
    painter = network.network if isinstance(network, Encoded) else network  # renders of a student of latents
    if not isinstance(painter, Painter):
        return []
    prompts, particles = cond["prompt"].unique().tolist(), range(_particles(painter))
    return [Scene(painter, prompt, k) for k in particles for prompt in prompts]


def fog_of(gaussians: Gaussians, points: Tensor) -> tuple[Tensor, Tensor]:
    """Fog instead of Gaussians: each takes as much light along a line through its middle.

    A Gaussian of opacity o is fog of density -log(1 - o) exp(-m^2 / 2) / (sqrt(2 pi) s), where m is
    the Mahalanobis distance and s the geometric mean of its scales; the integral over a line
    through the middle is then -log(1 - o), if it is round.

    Args:
        gaussians: of one scene, tensors [N, ...].
        points: [1, P, 3].

    Returns:
        The density [1, P] and the colour [1, 3, P].
    """
    means, quaternions, scales, opacities, colours = (each.to(points) for each in gaussians)
    axes = rotations(quaternions) / scales[:, None]  # [N, 3, 3]
    away = (points[0] @ axes.movedim(0, 1).flatten(1)).unflatten(1, (-1, 3)) - (means[:, None] @ axes)[
        :, 0
    ]  # [P, N, 3]
    thick = -torch.log1p(-opacities.clamp_max(0.999)) / (math.sqrt(2 * math.pi) * scales.prod(-1) ** (1 / 3))
    each = thick * torch.exp(-away.square().sum(-1) / 2)  # [P, N]
    density = each.sum(1)
    colour = each @ colours / density.clamp_min(1e-12)[:, None]
    return density[None], colour.T[None]


def mesh(scene: Scene, side: int = SIDE) -> Mesh:
    """The surface of a scene with colours: where the fog takes half of the light in `HALF`.

    It is sought in the logarithm of the density, which is nearly linear across a soft rim. A vertex
    has the mean colour of the fog around it, weighted by density, since a rim shows what is inside.
    """
    density, _ = scene.fog(_world(lattice_points(side)).reshape(-1, 3))
    level = math.log(2) / HALF
    away = torch.log(level / density.clamp_min(1e-6)) / side
    found = _in_world(marching_cubes(away.view(*[side + 1] * 3).double().numpy()))
    if len(found.vertices):
        around = REACH * torch.cat([torch.eye(3), -torch.eye(3), torch.zeros(1, 3)])
        places = torch.from_numpy(found.vertices)[:, None] + around
        density, colour = scene.fog(places.reshape(-1, 3))
        weight = density.view(len(places), -1, 1)
        mean = (weight * colour.view(*places.shape)).sum(1) / weight.sum(1).clamp_min(1e-12)
        found.colours = (2 * mean - 1).clamp(-1, 1).numpy().astype(np.float32)
    return found


def true_mesh(shape: int, side: int = SIDE) -> Mesh:
    """The surface of one of `solids.SHAPES`, without colours."""
    away = distance(shape, _world(lattice_points(side)))
    return _in_world(marching_cubes(away.double().numpy() / 2))


def opacities(scene: Scene) -> np.ndarray:
    """The share of light that a cell takes along its side, float32 [R, R, R]."""
    density, _ = scene.fog(_world(lattice_points(CELLS, centres=True)).reshape(-1, 3))
    return -torch.expm1(-density * 2 / CELLS).view(*[CELLS] * 3).numpy()


def occupancy(opacity: np.ndarray) -> dict[str, float]:
    """How a scene fills its cells, whose opacities are [R, R, R].

    Returns:
        `opacity`: the mean.
        `decided`: share of cells that are clearly empty or clearly filled.
        `floaters`: pieces beside the largest, connected through faces, of cells that take more than
            half of the light.
    """
    decided = (opacity <= CLEAR) | (opacity >= SOLID)
    return {
        "opacity": float(opacity.mean()),
        "decided": float(decided.mean()),
        "floaters": float(max(ndimage.label(opacity > 0.5)[1] - 1, 0)),
    }


def _particles(painter: Painter) -> int:
    return getattr(painter, "particles", 1)


def _world(points: Tensor) -> Tensor:
    """From the cube of side 1 of `domains.threed` to that of side 2."""
    return 2 * points


def _in_world(made: Mesh) -> Mesh:
    return Mesh(2 * made.vertices, made.faces)
