"""Rooms with solids, seen by a ray caster: pictures and exact depths, by formulas.

A room is a box with a checkered floor and walls, on whose floor stand one to three balls and as
many boxes, at least three in all. Lengths are in metres, the floor is at z = 0. A camera goes along
an arc around the middle and looks at it.

B: rooms; F: frames; S: solids of a kind; P: rays of a frame; H, W: height and width in pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from distillkit.rendering.cameras import look_at, pose, rays

FRAMES, SIDE = 8, 32  # of a clip; pixels along the side of a frame
SOLIDS = 3  # balls, and boxes, of a room at most
FINE = 2  # rays along the side of a pixel whose mean is its colour
HALF, HEIGHT = (1.9, 2.5), (1.8, 2.4)  # half the sides of a room, and its height
BALL, BOX = (0.18, 0.32), (0.12, 0.28)  # radius of a ball; half the sides of a box
PLACE = (0.25, 0.8)  # of solids from the middle
SECTOR = 0.35  # radians by which a solid may stand off the middle of its sixth of the circle
STAND, EYE, AIM = (
    (1.5, 1.75),
    (0.6, 1.2),
    (0.2, 0.5),
)  # of a camera from the middle; its height; that of what it looks at
ARC = (0.6, 1.1)  # radians that a camera goes along the arc, to either side
FOV = (1.1, 1.25)  # radians
SQUARE = 0.8  # side of a square of the floor; those of a wall are twice as large
LIGHT = (0.4, -0.3, 0.866)  # where it comes from
NUMBERS = 128  # that a room is made of
FACES = ("-x", "+x", "-y", "+y", "floor", "ceiling")
TINY = 1e-9


class Rooms(NamedTuple):
    """Rooms and what stands in them; a solid that is not there has the size 0.

    Attributes:
        half: half the sides and the height, [B, 3]: the room is [-x, x], [-y, y], [0, 2 z].
        paint: colours in [0, 1], [B, 6, 2, 3]: of the walls at -x, +x, -y, +y, of floor and
            ceiling, two for the squares of each.
        balls: centres, [B, S, 3].
        radii: [B, S].
        boxes: centres, [B, S, 3].
        sides: half the sides of the boxes, [B, S, 3].
        turns: of the boxes about z, in radians, [B, S].
        colours: of balls and boxes, [B, 2 S, 3].
    """

    half: Tensor
    paint: Tensor
    balls: Tensor
    radii: Tensor
    boxes: Tensor
    sides: Tensor
    turns: Tensor
    colours: Tensor


def drawn(seeds: Tensor) -> tuple[Rooms, Tensor]:
    """Rooms and the cameras of their clips, [B, F, 13], as functions of the seeds, int64 [B]."""
    numbers = torch.stack([torch.rand(NUMBERS, generator=torch.Generator().manual_seed(int(s))) for s in seeds])
    taken = 0

    def take(low: float, high: float, *shape: int) -> Tensor:
        nonlocal taken
        size = math.prod(shape)
        taken += size
        return low + (high - low) * numbers[:, taken - size : taken].reshape(-1, *shape)

    half = torch.cat([take(*HALF, 2), take(*HEIGHT, 1) / 2], 1)
    paint = hsv(take(0, 1, 6, 1), take(0.1, 0.45, 6, 1), take(0.6, 0.95, 6, 1))[..., 0, :]
    paint = torch.stack([paint, paint * torch.tensor([0.75, 0.75, 1.0, 1.0, 0.45, 1.0])[:, None]], 2)
    sixth = torch.tensor([0, 2, 4, 1, 3, 5]) * math.pi / SOLIDS + take(0, 2 * math.pi, 1)
    around, away = sixth + take(-SECTOR, SECTOR, 2 * SOLIDS), take(*PLACE, 2 * SOLIDS)
    spot = torch.stack([away * around.cos(), away * around.sin()], -1)
    count = 1 + (take(0, 1, 2) * SOLIDS).long().clamp_max(SOLIDS - 1)
    count[:, 1] = torch.maximum(count[:, 1], SOLIDS - count[:, 0])
    there = torch.arange(SOLIDS) < count[..., None]  # [B, 2, S]
    radii = take(*BALL, SOLIDS) * there[:, 0]
    sides = take(*BOX, SOLIDS, 3) * there[:, 1, :, None]
    balls = torch.cat([spot[:, :SOLIDS], radii[..., None]], -1)
    boxes = torch.cat([spot[:, SOLIDS:], sides[..., 2:]], -1)
    shade = hsv(take(0, 1, 2 * SOLIDS, 1), take(0.6, 0.95, 2 * SOLIDS, 1), take(0.5, 1, 2 * SOLIDS, 1))[..., 0, :]
    rooms = Rooms(half, paint, balls, radii, boxes, sides, take(0, math.pi / 2, SOLIDS), shade)

    way = torch.linspace(-0.5, 0.5, FRAMES)
    arc = take(*ARC, 1) * (take(-1, 1, 1) >= 0).float().mul(2).sub(1)
    azimuth = take(0, 2 * math.pi, 1) + arc * way
    flat = take(*STAND, 1) + take(-0.15, 0.15, 1) * way
    height = take(*EYE, 1) + take(-0.3, 0.3, 1) * way
    eye = torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), height], -1)
    aim = torch.cat([take(-0.15, 0.15, 2), take(*AIM, 1)], 1)[:, None].expand_as(eye)
    fov = take(*FOV, 1).expand(-1, FRAMES)
    cameras = look_at(eye.flatten(0, 1), aim.flatten(0, 1), fov.flatten()).unflatten(0, (-1, FRAMES))
    return rooms, cameras


def render(rooms: Rooms, cameras: Tensor, height: int = SIDE, width: int = SIDE) -> tuple[Tensor, Tensor]:
    """What cameras [B, F, 13] see of the rooms that they stand in.

    Returns:
        Pictures [B, 3, F, H, W] in [-1, 1], the mean of four rays in a pixel, and depths along the
        camera's axis through the centre of each pixel, in metres, [B, 1, F, H, W].
    """
    origin, direction = rays(cameras, FINE * height, FINE * width)
    colour, _ = cast(rooms, origin, direction.flatten(2, 3))
    colour = colour.unflatten(-1, (height, FINE, width, FINE)).mean((-3, -1))
    origin, direction = rays(cameras, height, width)
    _, distance = cast(rooms, origin, direction.flatten(2, 3), coloured=False)
    axis = -pose(cameras)[..., None, None, :3, 2]
    return colour * 2 - 1, (distance.unflatten(-1, (height, width)) * (direction * axis).sum(-1))[:, None]


def cast(rooms: Rooms, origin: Tensor, direction: Tensor, coloured: bool = True) -> tuple[Tensor | None, Tensor]:
    """What rays hit first.

    Args:
        rooms: B of them.
        origin: of the rays, within the rooms and outside of their solids, [B, F, 3].
        direction: of length 1, [B, F, P, 3].
        coloured: whether colours are asked for.

    Returns:
        Colours in [0, 1], [B, 3, F, P], or None, and distances in metres, [B, F, P].
    """
    direction = torch.where(direction.abs() < TINY, TINY, direction).movedim(-1, 0).contiguous()  # [3, B, F, P]
    origin = origin.movedim(-1, 0)[..., None]
    solids = _solids(rooms)
    distance = _slabs(solids.size[:, 0], *_seen_from(solids, 0, origin, direction))[1]
    hit = torch.zeros_like(distance, dtype=torch.long)
    for number in range(1, 1 + 2 * SOLIDS):
        meet = _ball if number <= SOLIDS else _box
        reached = meet(solids.size[:, number], *_seen_from(solids, number, origin, direction))
        nearer = reached < distance
        distance, hit = torch.where(nearer, reached, distance), hit.masked_fill_(nearer, number)
    return _shaded(rooms, solids, hit, origin + distance * direction) if coloured else None, distance


class Solids(NamedTuple):
    """The room itself (number 0), balls and boxes: centres and sizes [B, 7, 3], turns [B, 7]."""

    centre: Tensor
    size: Tensor
    turn: Tensor


def _solids(rooms: Rooms) -> Solids:
    half, still = rooms.half[:, None], torch.zeros_like(rooms.turns)
    return Solids(
        torch.cat([half * half.new_tensor([0, 0, 1]), rooms.balls, rooms.boxes], 1),
        torch.cat([half, rooms.radii[..., None].expand_as(rooms.balls), rooms.sides], 1),
        torch.cat([still[:, :1], still, rooms.turns], 1),
    )


def _seen_from(solids: Solids, number: int, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Rays in the axes of a solid, [3, B, F, 1] and [3, B, F, P]."""
    origin = origin - solids.centre[:, number].T[:, :, None, None]
    if number <= SOLIDS:  # the room and balls are not turned
        return origin, direction
    turn = solids.turn[:, number, None, None]
    return torch.stack(_turned(origin, turn.cos(), turn.sin())), torch.stack(_turned(direction, turn.cos(), turn.sin()))


def _turned(vectors: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three numbers of vectors [3, ...] in axes that are turned about z."""
    x, y, z = vectors
    return cos * x + sin * y, cos * y - sin * x, z


def _slabs(half: Tensor, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Distances [B, F, P] at which rays enter and leave boxes of half the sides `half`, [B, 3].

    A ray that leaves before it enters misses.
    """
    slower = direction.reciprocal()
    middle, wide = -origin * slower, half.T[:, :, None, None] * slower.abs_()
    return (middle - wide).amax(0), (middle + wide).amin(0)


def _box(half: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
    """Distances [B, F, P] at which rays from outside enter boxes; infinite where they miss."""
    near, far = _slabs(half, origin, direction)
    return torch.where((near < far) & (near > 0), near, math.inf)


def _ball(radius: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
    """The same for balls of the radii [B, 3], which are three times the same."""
    radius = radius[:, :1, None]
    along = -(origin * direction).sum(0)
    spare = along.square() - (origin.square().sum(0) - radius.square())
    hit = (spare > 0) & (along > 0) & (radius > 0)
    return torch.where(hit, along - spare.clamp_min(0).sqrt(), math.inf)


def _shaded(rooms: Rooms, solids: Solids, hit: Tensor, place: Tensor) -> Tensor:
    """The colours of surfaces, [B, 3, F, P].

    Args:
        rooms, solids: B of them.
        hit: the numbers of the solids, int64 [B, F, P].
        place: where on them, [3, B, F, P].
    """
    cos, sin = solids.turn.cos(), solids.turn.sin()
    light = torch.stack(_turned(cos.new_tensor(LIGHT)[:, None, None].expand(3, *cos.shape), cos, sin), -1)
    facts = torch.cat([solids.centre, solids.size.reciprocal(), cos[..., None], sin[..., None], light], -1)
    row = torch.arange(len(hit), device=hit.device)[:, None, None]
    facts = facts.flatten(0, 1).T[:, row * facts.shape[1] + hit]  # [11, B, F, P]
    local = torch.stack(_turned(place - facts[:3], facts[6], facts[7])) * facts[3:6]
    most, axis = local.abs().max(0)  # on a box the largest number is 1, on a ball the length
    ball, wall = (hit > 0) & (hit <= SOLIDS), hit == 0
    on_side = torch.arange(3, device=hit.device)[:, None, None, None] == axis
    lit = (torch.where(ball | on_side, local, 0) * facts[8:]).sum(0)
    lit = 0.7 + 0.3 * torch.where(wall, -lit, lit)

    face = 2 * axis + (local * on_side).sum(0).gt(0)
    squares = (place / torch.where(axis == 2, SQUARE, 2 * SQUARE)).floor().masked_fill_(on_side, 0).sum(0)
    number = torch.where(wall, 2 * face + (squares % 2).long(), 2 * len(FACES) - 1 + hit)
    colours = torch.cat([rooms.paint.flatten(1, 2), rooms.colours], 1)
    colours = colours.flatten(0, 1).T[:, row * colours.shape[1] + number]
    return (colours * lit).movedim(0, 1)


def hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Colours in [0, 1], [..., 3], of numbers in [0, 1], [...]."""
    wheel = (hue[..., None] * 6 + hue.new_tensor([5, 3, 1])) % 6
    return value[..., None] * (1 - saturation[..., None] * torch.minimum(wheel, 4 - wheel).clamp(0, 1))
