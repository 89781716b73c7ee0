"""Sixteen coloured solids in closed form, and their renders: the truth that no method sees.

{sphere, cube, torus, cone} in {red, green, blue, yellow}, in the world of `distillkit.rendering`: z
is up, solids lie within a ball of radius `REACH` around the origin.

A stripe down the front (the side of +x) is nearly black. Without it the front, the sides and the
back of a sphere or cone would be alike, and words about views would mean nothing. The torus stands:
its axis is x, so that one looks through it from the front and from the back.

B: renders; P: points; H, W: height, width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.rendering.cameras import rays
from domains.threed.solids import box_distance, cone_distance, torus_distance

SHAPES = ("sphere", "cube", "torus", "cone")
COLOURS = {"red": (0.9, 0.12, 0.1), "green": (0.1, 0.65, 0.15), "blue": (0.12, 0.25, 0.9), "yellow": (0.95, 0.8, 0.1)}
PROMPTS = tuple(f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS)

REACH = 0.75  # radius of a ball that holds every solid
STRIPE, INK = 0.14, (0.05, 0.05, 0.08)  # half its width; its colour
LIGHT, AMBIENT = (0.45, -0.35, 0.8), 0.45  # from above, in front and the right; fixed in the world
SAMPLES = 2  # rays along each side of a pixel
STEPS, NEAR = 48, 2e-3  # of sphere tracing; the distance at which a ray has met the surface
CHUNK = 64  # renders made at once


def distance(shape: int, points: Tensor) -> Tensor:
    """Signed distances [...] of points [..., 3] from one of `SHAPES`, positive outside; exact."""
    p = points.reshape(1, -1, 3)

    def size(*values: float) -> list[Tensor]:
        return [p.new_tensor([value]) for value in values]

    if shape == 0:
        found = p.norm(dim=-1) - 0.6
    elif shape == 1:
        found = box_distance(p, p.new_full((1, 3), 0.42))
    elif shape == 2:
        found = torus_distance(p[..., [1, 2, 0]], *size(0.43, 0.18))
    else:
        found = cone_distance(p, *size(0.5, 0.52, 0.0))
    return found.reshape(points.shape[:-1])


def albedo(prompt: int, points: Tensor) -> Tensor:
    """Colours [..., 3] in [0, 1] of points [..., 3] of a surface, before they are lit."""
    return torch.where(_striped(points)[..., None], points.new_tensor(INK), _paints(points)[prompt % len(COLOURS)])


def lit(shape: int, points: Tensor) -> Tensor:
    """How bright the surface is at points [..., 3], in [0, 1]: Lambert's law and ambient light."""
    light = F.normalize(points.new_tensor(LIGHT), dim=0)
    return AMBIENT + (1 - AMBIENT) * (normal(shape, points) @ light).clamp_min(0)


def normal(shape: int, points: Tensor, step: float = 1e-3) -> Tensor:
    """Unit normals [..., 3] at points [..., 3]: central differences of the distance."""
    ends = step * torch.eye(3, dtype=points.dtype, device=points.device)
    around = [distance(shape, points + end) - distance(shape, points - end) for end in ends]
    return F.normalize(torch.stack(around, -1), dim=-1)


@torch.no_grad()
def render(prompt: Tensor, camera: Tensor, size: int = 32) -> Tensor:
    """Renders on white, [B, 3, size, size] in [-1, 1].

    Args:
        prompt: numbers in `PROMPTS`, int64 [B].
        camera: [B, 13], see `distillkit.rendering.cameras`.
        size: pixels along each side.
    """
    image = camera.new_empty(len(camera), 3, size, size)
    shapes = prompt // len(COLOURS)
    for shape in range(len(SHAPES)):
        for rows in (shapes == shape).nonzero()[:, 0].split(CHUNK):
            image[rows] = painted(seen(shape, camera[rows], size), prompt[rows] % len(COLOURS))
    return image


@torch.no_grad()
def seen(shape: int, camera: Tensor, size: int = 32) -> Tensor:
    """What a camera sees of a shape, whatever its colour, [B, 3, size, size] in [0, 1].

    The channels are shares of a pixel: the light from paint, that from the stripe, the background.
    """
    side = SAMPLES * size
    origin, direction = rays(camera, side, side)
    origin, direction = origin[:, None, None].expand_as(direction).reshape(-1, 3), direction.reshape(-1, 3)
    # the part of each ray in the ball of radius REACH; rays that miss it see the background
    middle = -(origin * direction).sum(-1)
    half = REACH**2 - (origin + middle[:, None] * direction).square().sum(-1)
    found = camera.new_zeros(len(direction), 3)
    found[:, 2] = 1
    rows = (half > 0).nonzero()[:, 0]
    along, end = (middle[rows] + sign * half[rows].sqrt() for sign in (-1, 1))
    for _ in range(STEPS):
        away = distance(shape, origin[rows] + along[:, None] * direction[rows])
        along = along + away
        met = away < NEAR
        if met.any():
            points = origin[rows[met]] + along[met, None] * direction[rows[met]]
            light, stripe = lit(shape, points), _striped(points)
            found[rows[met]] = torch.stack([light * ~stripe, light * stripe, torch.zeros_like(light)], -1)
        left = ~met & (along < end)
        rows, along, end = rows[left], along[left], end[left]
        if not len(rows):
            break
    found = found.reshape(len(camera), side, side, 3).permute(0, 3, 1, 2)
    return F.avg_pool2d(found, SAMPLES)


def painted(seen: Tensor, colour: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] of what is `seen`, in these `COLOURS`, int64 [B]."""
    paint, ink = _paints(seen)[colour][..., None, None], seen.new_tensor(INK)[:, None, None]
    light, stripe, background = seen[:, 0:1], seen[:, 1:2], seen[:, 2:3]
    return 2 * (light * paint + stripe * ink + background) - 1


def _striped(points: Tensor) -> Tensor:
    """Whether points [..., 3] lie in the stripe."""
    return (points[..., 0] > 0) & (points[..., 1].abs() < STRIPE)


def _paints(like: Tensor) -> Tensor:
    """The colours [4, 3], like another tensor in dtype and device."""
    return like.new_tensor(list(COLOURS.values()))
