"""From the faces of a file to closed surfaces.

Polygons become triangles; each part is turned the right way out.

V, F: vertices and faces of a mesh; n: corners of a polygon.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

NESTED = 16  # vertices of a part that are looked at to tell whether it lies inside another
NOTHING = 1e-9  # of a volume, where the longest side is about 1


def triangulated(outlines: list[np.ndarray]) -> list[np.ndarray]:
    """Triangles inside polygons, int64 [n - 2, 3] each, by the corners' numbers.

    They turn as the polygon does.

    A fan from the first corner where that stays inside the outline; otherwise ears are clipped in
    the polygon's plane.

    Args:
        outlines: corners in order, float64 [n, 3] each, n at least 3.

    Raises:
        ValueError: an outline crosses itself.
    """
    found: list[np.ndarray] = [np.zeros((0, 3), np.int64)] * len(outlines)
    for size in {len(outline) for outline in outlines}:
        rows = [i for i, outline in enumerate(outlines) if len(outline) == size]
        points = np.stack([outlines[i] - outlines[i][0] for i in rows])
        fans = np.cross(points[:, 1:-1], points[:, 2:])  # [rows, n - 2, 3]
        normals = fans.sum(1)  # twice the area; that of an outline without area has no direction, and any fan will do
        along = (fans * normals[:, None]).sum(-1)
        fits = (along > 1e-12 * (normals**2).sum(-1, keepdims=True)).all(1) | ~normals.any(1)
        steps = np.arange(1, size - 1)
        fan = np.stack([np.zeros_like(steps), steps, steps + 1], -1)
        for row, outline, normal, whole in zip(rows, points, normals, fits, strict=True):
            if whole:
                found[row] = fan
            else:
                axis = int(np.abs(normal).argmax())
                plane = [(axis + 1) % 3, (axis + 2) % 3]
                found[row] = clip_ears(outline[:, plane if normal[axis] > 0 else plane[::-1]])
    return found


def clip_ears(points: np.ndarray) -> np.ndarray:
    """Triangles [n - 2, 3] of a polygon in the plane, by the corners' numbers.

    Args:
        points: the corners counter-clockwise, [n, 2].
    """
    tiny = 1e-12 * float(np.ptp(points, axis=0).max()) ** 2
    left, found = list(range(len(points))), []

    def turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

    def is_ear(place: int) -> bool:
        ear = points[[left[place - 1], left[place], left[(place + 1) % len(left)]]]
        if turn(*ear) <= tiny:
            return False
        rest = points[left]
        rest = rest[(rest[:, None] != ear).any(-1).all(-1)]  # corners that coincide with its own do not hinder
        return not np.all([turn(ear[i - 1], ear[i], rest) >= -tiny for i in range(3)], axis=0).any()

    while len(left) > 3:
        place = next((place for place in range(len(left)) if is_ear(place)), None)
        if place is None:
            break
        found.append([left[place - 1], left[place], left[(place + 1) % len(left)]])
        del left[place]
    if len(left) > 3 or turn(*points[left]) < -tiny:
        raise ValueError("the outline of a face crosses itself")
    return np.array([*found, left], np.int64)


def closed(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The faces [F, 3] of closed surfaces, each part turned to have its inside in place.

    Faces without three different corners, and further ones with the same corners, are left out. The
    faces of a part are turned alike, as most of them are. A part that lies in no other encloses
    matter, whichever way it was turned. A part inside another keeps its sense relative to that one:
    it is a cavity where the two are turned oppositely.

    Args:
        vertices: float64 [V, 3], scaled to about 1.

    Raises:
        ValueError: an edge has not just two faces, a surface has but one side, or nothing is
            enclosed.
    """
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(1)]
    faces = faces[np.sort(np.unique(np.sort(faces, axis=1), axis=0, return_index=True)[1])]
    part, turned = parts(faces, len(vertices))
    faces = np.where(turned[:, None], faces[:, ::-1], faces)
    a, b, c = vertices[faces].swapaxes(0, 1)
    volume = np.bincount(part, (a * np.cross(b, c)).sum(-1) / 6)
    if np.abs(volume).sum() < NOTHING:
        raise ValueError("encloses no volume")
    sense = np.where(volume < 0, -1, 1)
    wanted = np.ones_like(sense)
    around = enclosing(vertices, faces, part, np.abs(volume))
    for i in np.argsort(-np.abs(volume), kind="stable"):
        if around[i] >= 0:
            wanted[i] = wanted[around[i]] * sense[around[i]] * sense[i]
    return np.where((sense != wanted)[part][:, None], faces[:, ::-1], faces)


def parts(faces: np.ndarray, vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """The connected part of each face, int64 [F] from 0 on, and whether it must be turned.

    Turned faces agree with most of their part.

    Each face stands for two, as it is and turned; neighbours that agree are connected.

    Raises:
        ValueError: an edge has not just two faces, or a surface has but one side.
    """
    count = len(faces)
    a, b = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    edge = np.minimum(a, b) * np.int64(vertices) + np.maximum(a, b)
    order = np.argsort(edge, kind="stable")
    first, second = order[::2], order[1::2]
    if count == 0 or count % 2 or (edge[first] != edge[second]).any() or (np.diff(edge[first]) == 0).any():
        raise ValueError("is not watertight")
    alike = (a < b)[first] == (a < b)[second]  # both run through the edge the same way: one of them is turned
    one, other = first // 3, second // 3
    pairs = (np.r_[one, one + count], np.r_[other + count * alike, other + count * ~alike])
    _, side = connected_components(coo_matrix((np.ones(2 * len(one)), pairs), shape=[2 * count] * 2), directed=False)
    if (side[:count] == side[count:]).any():
        raise ValueError("has a surface of only one side")
    part = np.unique(np.minimum(side[:count], side[count:]), return_inverse=True)[1].reshape(-1)
    turned = side[:count] > side[count:]
    most = np.bincount(part, turned) > np.bincount(part) / 2
    return part, turned ^ most[part]


def enclosing(vertices: np.ndarray, faces: np.ndarray, part: np.ndarray, volume: np.ndarray) -> np.ndarray:
    """The smallest other part that each part lies inside, -1 where there is none."""
    count = len(volume)
    found = np.full(count, -1)
    if count == 1:
        return found
    rows = np.split(np.argsort(part, kind="stable"), np.cumsum(np.bincount(part))[:-1])
    corners = [vertices[faces[row]] for row in rows]
    low, high = (np.stack([getattr(c, name)((0, 1)) for c in corners]) for name in ("min", "max"))
    for i in range(count):
        around = np.flatnonzero((low < low[i]).all(1) & (high > high[i]).all(1))
        own = np.unique(faces[rows[i]])
        points = vertices[own[np.linspace(0, len(own) - 1, min(NESTED, len(own))).astype(int)]]
        for j in around[np.argsort(volume[around], kind="stable")]:
            if np.mean([abs(turns(point, corners[j])) > 0.75 for point in points]) > 0.9:
                found[i] = j
                break
    return found


def turns(point: np.ndarray, corners: np.ndarray) -> float:
    """How often a closed surface [F, 3, 3] winds around a point: solid angle over the sphere's."""
    a, b, c = (corners - point).swapaxes(0, 1)
    x, y, z = (np.linalg.norm(side, axis=-1) for side in (a, b, c))
    share = (a * b).sum(-1) * z + (b * c).sum(-1) * x + (c * a).sum(-1) * y + x * y * z
    return float(np.arctan2((a * np.cross(b, c)).sum(-1), share).sum() / (2 * np.pi))
