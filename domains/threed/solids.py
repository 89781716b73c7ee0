"""Procedural solids, an honest toy: five kinds of geometry in closed form, nothing that a person has modelled.

n: shapes; P: points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distillkit import checks
from domains.threed.data import Shapes
from domains.threed.lattice import Volumes, lattice_points, merged

CATEGORIES = ("box", "torus", "cone", "union", "difference")
RADIUS = 0.42  # of the ball around the origin that every shape fits into: a voxel of sixteen is left around it
TILT = 0.5  # radians, the most that a shape leans
CHUNK = 250  # shapes evaluated at once


class Solids(Shapes):
    """Boxes, tori, capped cones, boxes with a cone added, boxes with a cone taken away; the labels in this order.

    Size, place and colours are random, so is the pose: turned about the vertical by any angle and
    leaning by up to half a radian. The surface goes over from one colour to another along the
    shape's own axis; a shape of two parts has a colour for each. Everything is a function of the
    seed; the categories come in turn. The distances are exact for boxes, tori and cones; of two
    parts they are exact near the surface and a lower bound away from it.

    Args:
        train, val, test: number of shapes.
        seed: of their parameters.
    """

    names = list(CATEGORIES)

    def __init__(self, train: int = 2000, val: int = 250, test: int = 250, seed: int = 0):
        checks.whole(1, train=train, val=val, test=test)
        checks.seed(seed=seed)
        self.sizes, self.seed = (train, val, test), seed

    def load(self, side: int) -> tuple[Volumes, Volumes, Volumes]:
        """Three parts, each from its own generator: the size of one does not change another."""
        generators = [torch.Generator().manual_seed(3 * self.seed + part) for part in range(3)]
        return tuple(volumes(num, side, g) for num, g in zip(self.sizes, generators, strict=True))


@dataclass
class Field:
    """One category's shapes as functions of local points [n, P, 3].

    Attributes:
        distance: signed distances [n, P].
        blend: share of the second colour [n, P] in [0, 1].
        reach: radius [n] of a ball around the local origin that holds the shape.
    """

    distance: Callable[[Tensor], Tensor]
    blend: Callable[[Tensor], Tensor]
    reach: Tensor


def volumes(num: int, side: int, generator: torch.Generator) -> Volumes:
    """`num` random shapes on the lattice, the categories in turn."""
    corners, centres = lattice_points(side).reshape(-1, 3), lattice_points(side, centres=True).reshape(-1, 3)
    parts, label = [], torch.arange(num) % len(CATEGORIES)
    for kind, category in enumerate(CATEGORIES):
        for count in _chunks(int((label == kind).sum())):
            field, pose = FIELDS[category](count, generator), _pose(count, generator)
            room = RADIUS - pose.shift.norm(dim=-1)
            scale = (room / field.reach).clamp_max(1)  # what would stick out is shrunk
            colours = _uniform(generator, -1, 1, count, 2, 3)
            distance = scale[:, None] * field.distance(pose(corners, scale))
            blend = field.blend(pose(centres, scale))[:, None]
            colour = torch.lerp(colours[:, 0, :, None], colours[:, 1, :, None], blend)
            parts.append(
                Volumes(
                    distance.unflatten(1, (side + 1,) * 3), colour.unflatten(2, (side,) * 3), torch.full([count], kind)
                )
            )
    found = merged(parts)
    order = torch.empty_like(label)
    order[label.argsort(stable=True)] = torch.arange(num)  # from all of a kind to the kinds in turn
    return Volumes(found.distance[order], found.colour[order], found.label[order])


# ---- distances; local points [n, P, 3], sizes [n] or [n, 3], after Quilez' closed forms


def box_distance(p: Tensor, half: Tensor) -> Tensor:
    """A box with half extents `half` [n, 3]."""
    q = p.abs() - half[:, None]
    return q.clamp_min(0).norm(dim=-1) + q.amax(-1).clamp_max(0)


def torus_distance(p: Tensor, major: Tensor, minor: Tensor) -> Tensor:
    """A torus around the z axis: the tube of radius `minor` around a circle of radius `major`."""
    ring = p[..., :2].norm(dim=-1) - major[:, None]
    return torch.hypot(ring, p[..., 2]) - minor[:, None]


def cone_distance(p: Tensor, half: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """A capped cone around the z axis from -half to half, its radius going from `low` to `high`."""
    half, low, high = (size[:, None] for size in (half, low, high))
    r, z = p[..., :2].norm(dim=-1), p[..., 2]
    # in the half plane (r, z): the nearest point of the caps, and of the slanted side
    cap_r, cap_z = r - torch.minimum(r, torch.where(z < 0, low, high)), z.abs() - half
    side_r, side_z = high - low, 2 * half
    along = (((r - low) * side_r + (z + half) * side_z) / (side_r**2 + side_z**2)).clamp(0, 1)
    wall_r, wall_z = r - low - along * side_r, z + half - along * side_z
    inside = (wall_r < 0) & (cap_z < 0)
    nearest = torch.minimum(cap_r**2 + cap_z**2, wall_r**2 + wall_z**2).sqrt()
    return torch.where(inside, -nearest, nearest)


# ---- categories: random shapes in their own frame


def _box(num: int, generator: torch.Generator) -> Field:
    half = _uniform(generator, 0.1, 0.26, num, 3)
    return Field(lambda p: box_distance(p, half), lambda p: _along(p, half[:, 2]), half.norm(dim=-1))


def _torus(num: int, generator: torch.Generator) -> Field:
    major, ratio = _uniform(generator, 0.2, 0.3, num), _uniform(generator, 0.3, 0.5, num)
    minor = major * ratio
    return Field(lambda p: torus_distance(p, major, minor), lambda p: _along(p, minor), major + minor)


def _cone(num: int, generator: torch.Generator) -> Field:
    half, low = _uniform(generator, 0.15, 0.32, num), _uniform(generator, 0.16, 0.28, num)
    high = low * _uniform(generator, 0.15, 0.7, num)
    return Field(lambda p: cone_distance(p, half, low, high), lambda p: _along(p, half), torch.hypot(half, low))


def _union(num: int, generator: torch.Generator) -> Field:
    """A flat box with a cone standing on its top."""
    half = torch.cat([_uniform(generator, 0.18, 0.28, num, 2), _uniform(generator, 0.06, 0.12, num, 1)], -1)
    tall, low = _uniform(generator, 0.1, 0.18, num), _uniform(generator, 0.08, 0.15, num)
    high = low * _uniform(generator, 0.4, 1.0, num)
    aside = (half[:, :2] - low[:, None]).clamp_min(0) * _uniform(generator, -0.8, 0.8, num, 2)
    place = torch.cat([aside, (half[:, 2] + tall - 0.02)[:, None]], -1)
    middle = torch.zeros(num, 3)
    middle[:, 2] = tall  # of the whole, about
    reach = torch.maximum((half + middle).norm(dim=-1), (aside.norm(dim=-1) + low).hypot(half[:, 2] + tall))

    def both(p: Tensor) -> tuple[Tensor, Tensor]:
        p = p + middle[:, None]
        return box_distance(p, half), cone_distance(p - place[:, None], tall, low, high)

    def distance(p: Tensor) -> Tensor:
        return torch.minimum(*both(p))

    return Field(distance, lambda p: _second(*both(p)), reach)


def _difference(num: int, generator: torch.Generator) -> Field:
    """A box with a conical hole drilled down through it."""
    half = torch.cat([_uniform(generator, 0.18, 0.28, num, 2), _uniform(generator, 0.1, 0.24, num, 1)], -1)
    narrow = half[:, :2].amin(-1)
    low, high = (narrow * _uniform(generator, 0.45, 0.7, num) for _ in range(2))
    aside = (half[:, :2] - torch.maximum(low, high)[:, None]) * _uniform(generator, -0.4, 0.4, num, 2)
    place, tall = torch.cat([aside, torch.zeros(num, 1)], -1), half[:, 2] + 0.05  # sticks out at both ends

    def both(p: Tensor) -> tuple[Tensor, Tensor]:
        return box_distance(p, half), cone_distance(p - place[:, None], tall, low, high)

    def distance(p: Tensor) -> Tensor:
        solid, hole = both(p)
        return torch.maximum(solid, -hole)

    return Field(distance, lambda p: _second(*both(p)), half.norm(dim=-1))


FIELDS = dict(zip(CATEGORIES, (_box, _torus, _cone, _union, _difference), strict=True))


def _along(p: Tensor, half: Tensor) -> Tensor:
    """How far up the local axis, 0 at -half to 1 at half."""
    return (0.5 + p[..., 2] / (2 * half[:, None])).clamp(0, 1)


def _second(first: Tensor, second: Tensor) -> Tensor:
    """1 where the surface of the second part is nearer than that of the first."""
    return (second.abs() < first.abs()).float()


# ---- pose


@dataclass
class Pose:
    """Where shapes stand: `turn` [n, 3, 3] takes the local frame to the world's, `shift` [n, 3] is the centre."""

    turn: Tensor
    shift: Tensor

    def __call__(self, points: Tensor, scale: Tensor) -> Tensor:
        """Points of the world [P, 3] in the local frame of each shape, [n, P, 3]."""
        return (points - self.shift[:, None]) @ self.turn / scale[:, None, None]


def _pose(num: int, generator: torch.Generator) -> Pose:
    yaw, lean = _uniform(generator, 0, 2 * math.pi, num), _uniform(generator, -TILT, TILT, num)
    heading = _uniform(generator, 0, 2 * math.pi, num)
    turn = _about_z(heading) @ _about_x(lean) @ _about_z(yaw)
    return Pose(turn, _uniform(generator, -0.03, 0.03, num, 3))


def _about_z(angle: Tensor) -> Tensor:
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).unflatten(-1, (3, 3))


def _about_x(angle: Tensor) -> Tensor:
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([one, zero, zero, zero, c, -s, zero, s, c], -1).unflatten(-1, (3, 3))


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _chunks(count: int) -> list[int]:
    return [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
