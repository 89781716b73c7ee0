"""Solids and the two stages as data: distances against geometry; shells, sets and batches."""

import math

import pytest
import torch

from domains.threed.data import FeaturesData, Shapes, StructureData
from domains.threed.lattice import CORNERS, Volumes, depth, lattice_points, occupied, shell, voxel_sets
from domains.threed.solids import CATEGORIES, Solids, box_distance, cone_distance, torus_distance

SMALL = {"train": 20, "val": 5, "test": 5}


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def grid(num=60):
    axis = (torch.arange(num, dtype=torch.float64) + 0.5) / num - 0.5
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(1, -1, 3)


@pytest.mark.parametrize(
    ("distance", "at", "expected"),
    [
        (lambda p: box_distance(p, f64([0.1, 0.2, 0.3])), [0, 0, 0], -0.1),
        (lambda p: box_distance(p, f64([0.1, 0.2, 0.3])), [0.4, 0.6, 0.3], 0.5),
        (lambda p: box_distance(p, f64([0.1, 0.2, 0.3])), [0.1, 0.2, 0.3], 0),
        (lambda p: torus_distance(p, f64(0.3), f64(0.1)), [0, 0, 0], 0.2),
        (lambda p: torus_distance(p, f64(0.3), f64(0.1)), [0, -0.3, 0.05], -0.05),
        (lambda p: torus_distance(p, f64(0.3), f64(0.1)), [0, 0.6, 0.4], 0.4),
        (lambda p: cone_distance(p, f64(0.2), f64(0.3), f64(0.3)), [0, 0, 0], -0.2),  # a cylinder
        (lambda p: cone_distance(p, f64(0.2), f64(0.3), f64(0.3)), [0.33, 0, 0.24], 0.05),
        (lambda p: cone_distance(p, f64(0.2), f64(0.3), f64(0.1)), [0, 0, 0.5], 0.3),
        (lambda p: cone_distance(p, f64(0.2), f64(0.4), f64(0.0)), [0.2 + 0.1, 0, 0.0 + 0.1], 0.1 * math.sqrt(2)),
        (lambda p: cone_distance(p, f64(0.2), f64(0.4), f64(0.0)), [0.1, 0, 0.0], -0.1 / math.sqrt(2)),
    ],
)
def test_distances_are_those_of_geometry(distance, at, expected):
    assert distance(f64([at])).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("distance", "volume"),
    [
        (lambda p: box_distance(p, f64([0.1, 0.2, 0.3])), 8 * 0.1 * 0.2 * 0.3),
        (lambda p: torus_distance(p, f64(0.3), f64(0.1)), 2 * math.pi**2 * 0.3 * 0.1**2),
        (lambda p: cone_distance(p, f64(0.3), f64(0.4), f64(0.1)), math.pi * 0.6 / 3 * (0.16 + 0.04 + 0.01)),
    ],
)
def test_distances_enclose_the_volume_and_have_slope_one(distance, volume):
    p = grid()
    assert float((distance(p) < 0).double().mean()) == pytest.approx(volume, rel=0.03)
    p = p.requires_grad_(True)
    slope = torch.autograd.grad(distance(p).sum(), p)[0].norm(dim=-1)
    assert slope.median() == pytest.approx(1, abs=1e-9) and slope.max() < 1 + 1e-9


def test_solids_are_a_function_of_the_seed_and_leave_room():
    first, again, other = (Solids(**SMALL, seed=seed).load(16) for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.distance, b.distance) and torch.equal(a.colour, b.colour)
        assert not torch.equal(a.distance, c.distance)
    train = first[0]
    assert train.label.tolist() == [i % 5 for i in range(20)] and len(CATEGORIES) == 5
    assert train.colour.abs().max() <= 1
    solid = occupied(train.distance)
    assert solid.flatten(1).any(1).all()
    inner = torch.zeros_like(solid)
    inner[:, 1:-1, 1:-1, 1:-1] = True
    assert not (solid & ~inner).any()
    # more training shapes change no other part
    assert torch.equal(Solids(**SMALL | {"train": 7}).load(16)[2].distance, first[2].distance)
    with pytest.raises(ValueError, match="at least 1"):
        Solids(val=0)


def test_two_resolutions_show_the_same_shapes():
    coarse, fine = (Solids(**SMALL).load(side)[1].distance for side in (16, 32))
    torch.testing.assert_close(fine[:, ::2, ::2, ::2], coarse, atol=1e-6, rtol=0)


def test_axes_are_x_y_z():
    points = lattice_points(16)
    assert points[16, 0, 8].tolist() == [0.5, -0.5, 0.0]
    assert lattice_points(16, centres=True)[0, 0, 15].tolist() == [-0.46875, -0.46875, 0.46875]


def test_a_shell_is_where_the_surface_passes_and_encloses_the_rest():
    volumes = Solids(train=60, val=1, test=1).load(16)[0]
    solid = occupied(volumes.distance)
    active = shell(solid)
    negative = -torch.nn.functional.max_pool3d(volumes.distance[:, None], 2, stride=1)[:, 0] > 0  # all corners inside
    crossed = solid & ~negative
    assert not (active & ~crossed).any()
    assert active.sum() > 0.98 * crossed.sum()
    # no inner voxel touches an empty one, even at a corner
    empty = torch.nn.functional.max_pool3d((~solid).float()[:, None], 3, stride=1, padding=1)[:, 0] > 0
    assert not (solid & ~active & empty).any()
    # a full grid has a shell too: around it all is empty
    full = shell(torch.ones(1, 4, 4, 4, dtype=torch.bool))
    assert full.sum() == 4**3 - 2**3


def test_sets_hold_every_voxel_once():
    active = torch.rand(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.3
    active[1] = False
    coords, mask = voxel_sets(active, 40)
    assert coords.shape == (3, 40, 3) and coords.dtype == torch.int64
    for b in range(3):
        assert torch.equal(coords[b][mask[b]], active[b].nonzero())
        assert not coords[b][~mask[b]].any()
    assert voxel_sets(active)[1].shape[1] == active.flatten(1).sum(1).max()
    with pytest.raises(ValueError, match=r"set vars\.voxels=\d+ or more"):
        voxel_sets(active, 2)


def test_depth_is_that_of_the_deepest_corner_in_units_of_two_voxels():
    ball = lattice_points(16).norm(dim=-1)[None] - 0.25
    found = depth(ball)[0]
    # from the middle to +x: corners nearest to it lie at (x, 0, 0), 0.25 - x inside, and two voxels
    # are 1/8 long
    assert found[8:, 8, 8].tolist() == pytest.approx([1, 1, 1, 0.5, 0, -0.5, -1, -1], abs=1e-6)
    assert torch.equal(found > 0, (ball[0].unfold(0, 2, 1).unfold(1, 2, 1).unfold(2, 2, 1) < 0).flatten(3).any(-1))


def test_structure_batches():
    data = StructureData(Solids(**SMALL))
    data.setup()
    batch = data.train[torch.arange(3)]
    assert data.event_shape == (1, 16, 16, 16) and data.classes == {"label": 5} and data.context == ()
    assert batch["data"].shape == (3, 1, 16, 16, 16) and batch["data"].dtype == torch.float32
    volumes = data.shapes.load(16)[0]
    assert batch["data"].min() == -1 and batch["data"].max() <= 1
    assert torch.equal(batch["data"][:, 0] > 0, occupied(volumes.distance)[: len(batch["data"])])
    assert data.conditions(7)["label"].tolist() == [0, 1, 2, 3, 4, 0, 1]
    with pytest.raises(ValueError, match="16, 32 or 64"):
        StructureData(Solids(), side=20)


def test_features_batches_hold_the_distances_at_the_corners():
    data = FeaturesData(Solids(**SMALL), voxels=600)
    data.setup()
    volumes = Solids(**SMALL).load(16)[2]
    batch = data.conditions(7) | {"data": data.test[torch.arange(7) % 5]["data"]}
    assert data.event_shape == (600, 11) and batch["data"].shape == (7, 600, 11)
    assert batch["mask"].dtype == torch.bool and not batch["data"][~batch["mask"]].any()
    assert torch.equal(batch["coords"][5], batch["coords"][0])  # five test shapes, then again
    x, i = batch["data"][2], int(batch["mask"][2].sum()) - 1
    place = batch["coords"][2, i]
    for k, corner in enumerate(CORNERS):
        at = tuple((place + torch.tensor(corner)).tolist())
        assert x[i, k] == volumes.distance[(2, *at)] * 16
    assert torch.equal(x[i, 8:], volumes.colour[(2, slice(None), *place.tolist())])
    inside = x[batch["mask"][2]][:, :8] < 0
    assert inside.any(1).all() and not inside.all(1).any()  # the surface passes through each


def test_shapes_without_categories():
    class Balls(Shapes):
        names = []

        def load(self, side):
            radius = lattice_points(side).norm(dim=-1)
            volumes = Volumes((radius - 0.3)[None], torch.zeros(1, 3, side, side, side))
            return volumes, volumes, volumes

    data = FeaturesData(Balls(), voxels=700)
    data.setup()
    assert data.classes == {} and set(data.conditions(2)) == {"coords", "mask"}
