"""Streets of a town, built from a seed out of convex solids.

Metres; x along the street, y to its left, z up from the middle of the road. A thing is a list of
solids in a frame of its own: it stands on z = 0 and faces -y.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy.spatial import ConvexHull

REACH = 62.0  # half the length of a street, farther than a sensor sees from its middle
DEEP = 40.0  # of the ground behind a kerb
KERB = 0.13  # height
TILE = 4.0  # of the ground, small enough to follow a bend
WIDTHS = {"house": (6, 16), "garden": (8, 16), "side street": (5, 9), "yard": (2, 6), "square": (15, 25)}  # of lots

# Reflectances as OS-1 scans of streets have them, whose median is 0.03 to 0.05.
ASPHALT, PAINT, PAVING, GRASS, TILES, GLASS, METAL, RUBBER, WOOD, LEAF, CLOTH, LAMP, SIGN = (
    0.02, 0.2, 0.04, 0.12, 0.05, 0.01, 0.1, 0.015, 0.07, 0.15, 0.06, 0.4, 0.9,
)  # fmt: skip


class Solid(NamedTuple):
    """The surface of a convex solid.

    Attributes:
        corners: [n, 3].
        triangles: [m, 3], numbers of corners.
        reflectance: in [0, 1].
    """

    corners: np.ndarray
    triangles: np.ndarray
    reflectance: float


Thing = list[Solid]


class Lane(NamedTuple):
    """The ground that a street lies on: where a point of a straight, flat street goes."""

    bend: float  # 1 / m, curvature in plan
    slope: float  # along the street
    sag: float  # 1 / m, curvature in height
    bank: float  # across the street

    def __call__(self, points: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        lifted = z + self.slope * x + self.sag * x**2 / 2 + self.bank * y
        return np.stack((x, y + self.bend * x**2 / 2, lifted), 1)

    def heading(self, x: float) -> float:
        """Direction of the street at x, in radians."""
        return float(np.arctan(self.bend * x))


class Street(NamedTuple):
    """A street: its solids, its ground, and half the width of its road."""

    solids: Thing
    lane: Lane
    half: float


# Shapes


def hull(points: np.ndarray, reflectance: float) -> Solid:
    """The convex hull of points [n, 3]."""
    found = ConvexHull(points)
    return Solid(points, found.simplices, reflectance)


def box(low: tuple[float, float, float], high: tuple[float, float, float], reflectance: float) -> Solid:
    """A box with its sides along the axes."""
    return hull(np.stack(np.meshgrid(*zip(low, high, strict=True)), -1).reshape(-1, 3), reflectance)


def column(x: float, y: float, low: float, high: float, radius: float, reflectance: float, taper: float = 1) -> Solid:
    """An upright cylinder or, if its upper radius is `taper` times the lower, a cone."""
    angle = np.arange(10) * 2 * np.pi / 10
    ring = np.stack((np.cos(angle), np.sin(angle)), 1) * radius
    ends = [np.column_stack((ring * r + (x, y), np.full(10, z))) for z, r in ((low, 1), (high, taper))]
    return hull(np.concatenate(ends), reflectance)


def blob(rng: Generator, centre: np.ndarray, radii: np.ndarray, reflectance: float) -> Solid:
    """An uneven ellipsoid."""
    points = rng.normal(size=(12, 3))
    return hull(centre + radii * points / np.linalg.norm(points, axis=1, keepdims=True), reflectance)


def moved(thing: Thing, x: float, y: float, z: float = 0.0, yaw: float = 0.0, side: int = 1) -> Thing:
    """A thing turned by `yaw` about z and put at a place; `side` = -1 mirrors it at y = 0 then."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return [s._replace(corners=(s.corners @ turn.T + (x, y, z)) * (1, side, 1)) for s in thing]


# Things


def house(rng: Generator, width: float) -> Thing:
    """A house with its front on y = 0, from x = 0 to its width."""
    depth, storeys = rng.uniform(7, 13), rng.integers(1, 5)
    storey = rng.uniform(2.7, 3.4)
    top, wall = storey * storeys + rng.uniform(0.2, 0.8), rng.uniform(0.03, 0.15)
    open_front = storeys > 1 and width > 7 and rng.random() < 0.25
    parts = []
    if open_front:
        inner = rng.uniform(2, 3)
        parts += [
            box((0, inner, 0), (width, depth, storey), wall),
            box((0, 0, storey - 0.3), (width, depth, top), wall),
        ]
        for x in np.linspace(0.3, width - 0.3, round(width / 3) + 1):
            parts.append(box((x - 0.25, 0, 0), (x + 0.25, 0.5, storey), wall))
    else:
        parts.append(box((0, 0, 0), (width, depth, top), wall))
        parts += _door(rng, rng.uniform(1, width - 1), wall)
    parts += _windows(rng, width, storey, range(int(open_front), storeys))
    if storeys > 1 and rng.random() < 0.4:
        parts += _balcony(rng, width, storey * rng.integers(1, storeys), wall)
    if rng.random() < 0.6:
        parts.append(_roof(rng, width, depth, top))
    if rng.random() < 0.3:
        left = rng.uniform(0, width - 3)
        parts.append(box((left, -rng.uniform(0.5, 1), 0), (left + 2.5, 0.1, top - rng.uniform(0.3, 2)), wall))
    return parts


def _roof(rng: Generator, width: float, depth: float, top: float) -> Solid:
    eaves, ridge = rng.uniform(0.2, 0.6), top + rng.uniform(1.5, 3.5)
    corners = [(x, y, top) for x in (0, width) for y in (-eaves, depth + eaves)]
    hip = rng.uniform(0, 2)
    return hull(np.array([*corners, (hip, depth / 2, ridge), (width - hip, depth / 2, ridge)]), TILES)


def _door(rng: Generator, x: float, wall: float) -> Thing:
    steps, parts = rng.integers(0, 5), []
    for i in range(steps):
        parts.append(box((x - 0.8, -0.3 * (steps - i), 0), (x + 0.8, 0, 0.17 * (i + 1)), PAVING))
    if rng.random() < 0.4:
        parts.append(box((x - 1, -1.0, 2.5), (x + 1, 0, 2.65), wall))
    return parts


def _windows(rng: Generator, width: float, storey: float, floors: Iterable[int]) -> Thing:
    pitch, wide, relief = rng.uniform(2, 3.2), rng.uniform(0.9, 1.4), rng.uniform(0.08, 0.2)
    places = np.arange(pitch / 2, width - wide / 2, pitch)
    return [
        box((x - wide / 2, -relief, floor * storey + 0.9), (x + wide / 2, 0, floor * storey + 2.3), GLASS)
        for floor in floors
        for x in places
    ]


def _balcony(rng: Generator, width: float, floor: float, wall: float) -> Thing:
    wide, out = rng.uniform(2, 0.8 * width), rng.uniform(0.9, 1.5)
    left = rng.uniform(0, width - wide)
    return [
        box((left, -out, floor - 0.15), (left + wide, 0, floor), wall),
        box((left, -out, floor), (left + wide, -out + 0.06, floor + 1), METAL),
    ]


def tree(rng: Generator) -> Thing:
    """A trunk and a crown that lets rays through."""
    trunk, radii = rng.uniform(1.8, 3.2), rng.uniform((0.9, 0.9, 1), (2.2, 2.2, 2.4))
    middle = np.array((0, 0, trunk + 0.7 * radii[2]))
    parts = [column(0, 0, 0, trunk + 0.5 * radii[2], rng.uniform(0.1, 0.25), WOOD, taper=0.6)]
    for _ in range(rng.integers(14, 26)):
        point = rng.normal(size=3)
        point *= rng.uniform(0.3, 1) / np.linalg.norm(point)
        parts.append(blob(rng, middle + point * radii, rng.uniform(0.3, 0.75, 3), LEAF))
    return parts


def bush(rng: Generator) -> Thing:
    return [blob(rng, np.array((x, 0, 0.5)), rng.uniform(0.4, 0.9, 3), LEAF) for x in rng.uniform(-0.8, 0.8, 3)]


def car(rng: Generator) -> Thing:
    """A car or a van, its front to +x."""
    van, paint = rng.random() < 0.25, rng.uniform(0.01, 0.15)
    long, wide = (
        (rng.uniform(4.8, 6), rng.uniform(1.9, 2.1)) if van else (rng.uniform(3.6, 4.8), rng.uniform(1.65, 1.9))
    )
    waist, top = (1.1, rng.uniform(1.9, 2.6)) if van else (rng.uniform(0.8, 1), rng.uniform(1.4, 1.75))
    front, back = long / 2, -long / 2
    glass = (front - rng.uniform(0.7, 1.3), back + (0.02 if van else rng.uniform(0.02, 0.8)))
    roof = (glass[0] - rng.uniform(0.5, 0.9), glass[1] + (0.05 if van else rng.uniform(0.2, 0.6)))
    body = [(front, 0.35, 0.9), (front - 0.1, waist - 0.15, 0.92), (glass[0], waist, 0.96)]
    body += [(back, waist, 0.93), (back, 0.35, 0.9), (0, 0.25, 1), (0, waist - 0.2, 1)]
    cabin = [(glass[0], waist, 0.94), (roof[0], top, 0.78), (roof[1], top, 0.78), (glass[1], waist, 0.94)]
    parts = [_profile(body, wide, paint), _profile(cabin, wide, paint if van else GLASS)]
    for x in (0.31 * long, -0.3 * long):
        wheel = column(0, 0, -wide / 2, wide / 2, 0.32, RUBBER)
        parts.append(wheel._replace(corners=wheel.corners[:, [0, 2, 1]] + (x, 0, 0.32)))
    return parts


def _profile(outline: list[tuple[float, float, float]], wide: float, reflectance: float) -> Solid:
    """A solid of mirror-like sides from (x, z, share of the width) of its outline."""
    corners = [(x, side * share * wide / 2, z) for x, z, share in outline for side in (-1, 1)]
    return hull(np.array(corners), reflectance)


def person(rng: Generator) -> Thing:
    tall, stride = rng.uniform(1.5, 1.9), rng.uniform(0, 0.3)
    legs = [column(x, y, 0, 0.5 * tall, 0.08, CLOTH) for x, y in ((stride, 0.1), (-stride, -0.1))]
    torso = column(0, 0, 0.45 * tall, 0.84 * tall, 0.19, CLOTH, taper=1.2)
    return [*legs, torso, blob(rng, np.array((0, 0, 0.92 * tall)), np.full(3, 0.12), CLOTH)]


def lamp(rng: Generator) -> Thing:
    tall, arm = rng.uniform(4.5, 8), rng.uniform(0.3, 1.8)
    pole, bar = column(0, 0, 0, tall, 0.09, METAL), box((-0.05, -arm, tall - 0.1), (0.05, 0, tall), METAL)
    return [pole, bar, box((-0.15, -arm - 0.5, tall - 0.2), (0.15, -arm, tall), LAMP)]


def sign(rng: Generator) -> Thing:
    tall, wide = rng.uniform(2.2, 3), rng.uniform(0.25, 0.5)
    plate = box((-0.03, -wide, tall - 2 * wide), (0.03, wide, tall), SIGN)
    return [column(0, 0, 0, tall, 0.04, METAL), plate]


def shelter(rng: Generator) -> Thing:
    """A bus stop: a wall of glass and a roof."""
    long = rng.uniform(3, 5)
    wall, roof = box((0, 1.3, 0), (long, 1.4, 2.3), GLASS), box((0, 0, 2.3), (long, 1.4, 2.45), METAL)
    bench = box((0.5, 0.8, 0.4), (long - 0.5, 1.2, 0.48), WOOD)
    return [wall, roof, bench, box((0, 0.2, 0.3), (0.05, 1.3, 2.3), GLASS)]


def bin_(rng: Generator) -> Thing:
    wide, tall = rng.uniform(0.25, 0.6), rng.uniform(0.8, 1.2)
    return [box((-wide, -wide, 0), (wide, wide, tall), METAL)]


def fence(rng: Generator, width: float) -> Thing:
    """A wall, a hedge or a fence of boards from x = 0 to a width."""
    tall, kind = rng.uniform(0.6, 2), rng.integers(3)
    if kind == 0:
        return [box((0, 0, 0), (width, 0.25, tall), rng.uniform(0.03, 0.1))]
    if kind == 1:
        return [
            blob(rng, np.array((x, 0.4, 0.5 * tall)), np.array((0.9, 0.5, 0.6 * tall)), LEAF)
            for x in np.arange(0.5, width, 0.9)
        ]
    posts = [box((x, 0, 0), (x + 0.1, 0.1, tall), WOOD) for x in np.arange(0, width, 1.8)]
    return [*posts, *(box((0, 0.02, z), (width, 0.06, z + 0.25), WOOD) for z in (0.3 * tall, 0.7 * tall))]


# Streets


def ground(x: tuple[float, float], y: tuple[float, float], top: float, reflectance: float) -> Thing:
    """A level block of ground, in tiles."""
    xs, ys = (np.linspace(a, b, max(1, round((b - a) / TILE)) + 1) for a, b in (x, y))
    return [
        box((left, low, top - 1), (right, high, top), reflectance)
        for left, right in zip(xs[:-1], xs[1:], strict=True)
        for low, high in zip(ys[:-1], ys[1:], strict=True)
    ]


def street(seed: int) -> Street:
    """A street by its seed."""
    rng = np.random.default_rng(seed)
    half = rng.uniform(3.2, 5.5)
    solids = [*ground((-REACH, REACH), (-half, half), 0, ASPHALT), *_paint(rng, half)]
    for side in (1, -1):
        solids += moved(_front(rng, half), 0, 0, side=side)
    for _ in range(rng.integers(0, 3)):
        x, lane = rng.uniform(10, 50) * rng.choice((-1, 1)), rng.choice((-1, 1))
        solids += moved(car(rng), x, lane * half / 2, yaw=0 if lane < 0 else np.pi)
    lane = Lane(*rng.uniform(-1, 1, 4) * (0.004, 0.03, 0.0006, 0.01))
    return Street([s._replace(corners=lane(s.corners)) for s in solids], lane, half)


def _paint(rng: Generator, half: float) -> Thing:
    on, off = rng.uniform(2, 4), rng.uniform(3, 6)
    dashes = [ground((x, x + on), (-0.07, 0.07), 0.01, PAINT) for x in np.arange(-REACH, REACH - on, on + off)]
    return [solid for dash in dashes for solid in dash]


def _front(rng: Generator, half: float) -> Thing:
    """What stands on the left of a road: pavement, parked cars, lots one after another."""
    walk, setback = rng.uniform(1.8, 4), rng.choice((0, 0, rng.uniform(1, 5)))
    density, green = rng.uniform(0.2, 0.9), rng.uniform(0, 1)
    odds = np.array((0.5 + 0.3 * density, 0.25 * green, 0.12, 0.12, 0.06))
    solids, x = [], -REACH
    while x < REACH:
        kind = rng.choice(list(WIDTHS), p=odds / odds.sum())
        width = rng.uniform(*WIDTHS[kind])
        solids += _lot(rng, kind, x, width, half, half + walk, setback)
        if kind != "side street":
            solids += _furniture(rng, x, width, half, walk, density)
        x += width
    return solids


def _lot(rng: Generator, kind: str, x: float, width: float, half: float, back: float, setback: float) -> Thing:
    """The ground of a lot, from the kerb on, and what is built on it."""
    span = (x, x + width)
    if kind == "side street":
        return ground(span, (half, half + DEEP), 0, ASPHALT)
    solids = ground(span, (half, back), KERB, PAVING)
    solids += ground(span, (back, half + DEEP), KERB, PAVING if kind == "square" else GRASS)
    if kind == "house":
        solids += moved(house(rng, width), x, back + setback, KERB)
        if setback > 1 and rng.random() < 0.5:
            solids += moved(fence(rng, width), x, back, KERB)
    elif kind == "garden":
        solids += moved(fence(rng, width), x, back, KERB)
        solids += moved(house(rng, 0.7 * width), x + 0.15 * width, back + rng.uniform(5, 12), KERB)
        for _ in range(rng.integers(1, 4)):
            solids += moved(
                (tree, bush)[rng.integers(2)](rng), x + rng.uniform(1, width - 1), back + rng.uniform(1, 5), KERB
            )
    elif kind == "yard":
        if rng.random() < 0.5:
            solids += moved(fence(rng, width), x, back + rng.uniform(0, 3), KERB)
        solids += moved(bush(rng), x + width / 2, back + rng.uniform(3, 8), KERB)
    elif kind == "square":
        solids += moved(house(rng, width), x, back + rng.uniform(14, 22), KERB)
        for _ in range(rng.integers(3, 8)):
            thing = (tree, person, lamp, bin_)[rng.choice(4, p=(0.5, 0.2, 0.1, 0.2))](rng)
            solids += moved(thing, x + rng.uniform(1, width - 1), back + rng.uniform(1, 12), KERB, rng.uniform(0, 7))
    return solids


def _furniture(rng: Generator, x: float, width: float, half: float, walk: float, density: float) -> Thing:
    """Cars at the kerb and what stands on a pavement."""
    solids, at = [], x + rng.uniform(2.5, 4)
    while at < x + width - 2.5:
        if rng.random() < density:
            away = half - 1.05 + rng.normal(0, 0.08)
            solids += moved(car(rng), at, away, yaw=rng.choice((0, np.pi)) + rng.normal(0, 0.03))
        at += rng.uniform(5.6, 7)
    for _ in range(rng.poisson(width / 9)):
        thing = (tree, lamp, sign, bin_)[rng.choice(4, p=(0.35, 0.25, 0.25, 0.15))](rng)
        solids += moved(thing, rng.uniform(x, x + width), half + rng.uniform(0.4, 0.7), KERB)
    for _ in range(rng.poisson(width / 25)):
        place = rng.uniform(x, x + width), half + rng.uniform(0.9, walk - 0.3)
        solids += moved(person(rng), *place, KERB, rng.uniform(0, 7))
    if width > 8 and rng.random() < 0.08:
        solids += moved(shelter(rng), x + 1, half + 0.4, KERB)
    return solids
