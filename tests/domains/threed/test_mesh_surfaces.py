"""Closed surfaces from faces: polygons are cut inside their outlines, parts turned right."""

import numpy as np
import pytest

from domains.threed.mesh_folder import winding
from domains.threed.meshes import Mesh
from domains.threed.surfaces import clip_ears, closed, triangulated

trimesh = pytest.importorskip("trimesh")


def ball(radius=1.0, centre=(0, 0, 0), inward=False):
    found = trimesh.creation.icosphere(1, radius)
    faces = np.asarray(found.faces)
    return np.asarray(found.vertices) + centre, faces[:, ::-1] if inward else faces


def together(*meshes):
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in meshes)])
    return np.concatenate([v for v, _ in meshes]), np.concatenate(
        [f + s for (_, f), s in zip(meshes, starts, strict=False)]
    )


def test_ears_fill_the_outline_and_no_more():
    rng = np.random.default_rng(0)
    for size in (4, 5, 7, 12, 40):
        for _ in range(20):
            angle = np.sort(rng.random(size)) * 2 * np.pi
            points = (0.2 + rng.random(size))[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
            if np.diff(angle, append=angle[0] + 2 * np.pi).max() > 3:
                continue  # the middle must lie inside for the outline not to cross itself
            x, y = points.T
            area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
            a, b, c = points[clip_ears(points)].swapaxes(0, 1)
            each = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
            assert len(each) == size - 2 and (each > 0).all() and each.sum() == pytest.approx(area)


def test_corners_on_a_straight_line_are_kept():
    points = np.array([[0, 0], [1, 0], [2, 0], [2, 2], [1, 1], [0, 2]], float)
    for first in range(6):
        turned = np.roll(points, first, axis=0)
        rows = clip_ears(turned)
        a, b, c = turned[rows].swapaxes(0, 1)
        each = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
        assert (each > 0).all() and each.sum() == pytest.approx(6) and set(rows.flatten()) == set(range(6))


def test_a_convex_polygon_is_a_fan():
    square = np.array([[0, 0, 5], [1, 0, 5], [1, 1, 5], [0, 1, 5]], float)
    assert triangulated([square])[0].tolist() == [[0, 1, 2], [0, 2, 3]]


@pytest.mark.parametrize(
    "inward", [(False, False, False), (True, False, False), (False, True, True), (True, True, True)]
)
def test_each_part_has_its_own_inside(inward):
    """Three balls in a row, some turned inside out: a sum of signed volumes would cancel."""
    vertices, faces = together(*(ball(0.1, (0.3 * i, 0, 0), flag) for i, flag in enumerate(inward)))
    mesh = Mesh(vertices, closed(vertices, faces))
    assert mesh.watertight and mesh.volume == pytest.approx(3 * Mesh(*ball(0.1)).volume)


@pytest.mark.parametrize(
    ("inward", "middle", "wall"),
    [((False, True), 0, 1), ((True, False), 0, 1), ((False, False), 2, 1), ((True, True), 2, 1)],
)
def test_a_shell_inside_another_is_a_hollow_if_turned_oppositely(inward, middle, wall):
    vertices, faces = together(ball(0.4, inward=inward[0]), ball(0.2, inward=inward[1]))
    found = winding(Mesh(vertices, closed(vertices, faces)), 16)
    assert found[8, 8, 8] == middle and found[8, 8, 8 + 5] == wall and found[0, 0, 0] == 0


def test_a_kernel_in_a_hollow_and_a_neighbour_inside_out():
    vertices, faces = together(
        ball(0.4), ball(0.3, inward=True), ball(0.15), ball(0.08, (0.42, 0.42, 0.42), inward=True)
    )
    found = winding(Mesh(vertices, closed(vertices, faces)), 16)
    assert [found[8, 8, 8 + i] for i in (0, 4, 6)] == [1, 0, 1]
    assert found[8 + 6, 8 + 6, 8 + 6] == 0 and found.min() == 0
    assert winding(Mesh(vertices - 0.2, closed(vertices, faces)), 16)[11, 11, 11] == 1


def test_parts_that_overlap_are_no_hollow():
    """An arm that stands out of a body and is inside out."""
    vertices, faces = together(ball(0.3), ball(0.2, (0.25, 0, 0), inward=True))
    assert winding(Mesh(vertices, closed(vertices, faces)), 16)[9, 8, 8] == 2


def test_faces_turned_at_random_agree_again():
    vertices, faces = ball()
    mixed = np.where((np.random.default_rng(0).random(len(faces)) < 0.3)[:, None], faces[:, ::-1], faces)
    assert Mesh(vertices, closed(vertices, mixed)).volume == pytest.approx(Mesh(vertices, faces).volume)


def test_a_klein_bottle_has_no_inside():
    """A torus of 6 x 6 vertices whose last ring is glued on the wrong way round."""

    def at(i, j):
        return (i % 6) * 6 + (-j if (i // 6) % 2 else j) % 6

    faces = [
        face
        for i in range(6)
        for j in range(6)
        for face in ([at(i, j), at(i + 1, j), at(i + 1, j + 1)], [at(i, j), at(i + 1, j + 1), at(i, j + 1)])
    ]
    with pytest.raises(ValueError, match="only one side"):
        closed(np.random.default_rng(0).random((36, 3)), np.array(faces))
