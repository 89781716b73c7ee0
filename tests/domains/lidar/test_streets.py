"""The embedded streets: what is shipped, how it is read, and the town that was scanned."""

# ruff: noqa: E501 (a fault is a row of a table)

import hashlib
import re
import shutil
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from mutations import Mutation, prove
from PIL import Image
from scipy.spatial import cKDTree

from domains.lidar import maps, ship, streets, town
from domains.lidar.views import FARTHEST

SCENES, SCANS = {"train": 24, "val": 4, "test": 4}, 3
FIRST = SCENES["train"]  # seed of the first scene of validation
WHITE = round(255 * town.PAINT)


@pytest.fixture(scope="module")
def shots():
    """All range images, by part."""
    return {part: streets.panoramas(part) for part in streets.PARTS}


@pytest.fixture(scope="module")
def views():
    return streets.load("val")


@pytest.fixture(scope="module")
def street():
    """The first scene of validation."""
    return town.street(FIRST)


@pytest.fixture(scope="module")
def lane(street):
    return street.lane


# What is shipped


def test_every_scene_has_three_scans_of_64_beams(shots):
    assert {part: len(each) for part, each in shots.items()} == {p: n * SCANS for p, n in SCENES.items()}
    for shot in sum(shots.values(), []):
        assert shot.ranges.shape == shot.reflectance.shape == (64, 512)
        assert shot.elevations.shape == (64,) and (shot.elevations.diff() < 0).all()
        assert shot.ranges.dtype == shot.reflectance.dtype == torch.float32
        seen = shot.ranges > 0
        assert shot.ranges.max() < FARTHEST + 6 * streets.NOISE and shot.ranges[seen].min() > 0.1
        assert not shot.reflectance[~seen].any() and shot.reflectance.min() >= 0 and shot.reflectance.max() <= 1


def test_no_scene_is_like_another_one(shots):
    first = [shot.ranges for each in shots.values() for shot in each[::SCANS]]
    least = min(float((a - b).abs().mean()) for a, b in combinations(first, 2))
    assert len(first) == 32 and least > 1.0  # metres


def test_the_files_are_those_of_the_card():
    card = (streets.PLACE / "README.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"\| (\S+) \| `([0-9a-f]{64})` \|", card))
    assert named == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in streets.PLACE.iterdir()
        if path.name != "README.md"
    }


# Reading


def test_points_lie_on_their_beams(views, shots):
    scan, shot = views[5].scan, shots["val"][5]
    height = torch.rad2deg(torch.atan2(scan.points[:, 2], scan.points[:, :2].norm(dim=1))).double()
    assert (height - shot.elevations[scan.ring]).abs().max() < 1e-3
    assert torch.equal(scan.intensity, shot.reflectance[shot.ranges > 0]) and len(scan.points) == len(scan.ring)


def test_a_seed_decides_on_noise_and_losses(shots):
    again, other = streets.panoramas("val"), streets.panoramas("val", 1)
    assert all(torch.equal(a.ranges, b.ranges) for a, b in zip(again, shots["val"], strict=True))
    a, b = (torch.stack([shot.ranges for shot in each]) for each in (again, other))
    both, either = (a > 0) & (b > 0), (a > 0) | (b > 0)
    assert float((a - b)[both].std()) == pytest.approx(2**0.5 * streets.NOISE, rel=0.02)
    kept = 1 - streets.LOST  # both of what either has: k^2 / (1 - (1 - k)^2)
    assert float(both.sum() / either.sum()) == pytest.approx(kept / (2 - kept), abs=0.002)


def painted(lane):
    """The paint of a road's middle lies on the middle of the road, in the frame of the scene."""
    for shot in streets.panoramas("val")[:SCANS]:
        scan = shot.scan
        paint = maps.moved(scan.points[(scan.intensity * 255).round() == WHITE].numpy(), shot.pose)
        x, y, z = paint.T
        on_y = lane(np.stack([x, 0 * x, 0 * x], 1))[:, 1]
        flat = lane(np.stack([x, y - on_y, 0 * x + 0.01], 1))[:, 2]
        assert len(paint) > 10 and np.abs(y - on_y).max() < 0.07 + 0.05 and np.abs(z - flat).max() < 0.1


def registered():
    """A scan's points are in the map around it, as are those of the scene's other scans."""
    views, shots = streets.load("val"), streets.panoramas("val")
    truth, other = views[0].truth, views[2].scan.points
    away = maps.moved(maps.moved(other.numpy(), shots[2].pose), np.linalg.inv(shots[0].pose))
    away = away[(np.linalg.norm(away, axis=1) < 30) & (np.abs(away[:, 2]) < 3.9)]
    assert (
        np.percentile(cKDTree(truth.numpy()).query(away)[0], 99) < 3**0.5 * maps.VOXEL
    )  # but for cells of the protocol


def test_paint_lies_on_the_middle_of_the_road(lane):
    painted(lane)


def test_poses_bring_scans_together(views, shots):
    first, second = (view.scan.points.numpy() for view in views[:2])
    there = maps.moved(maps.moved(second, shots["val"][1].pose), np.linalg.inv(shots["val"][0].pose))
    apart, near = (np.median(cKDTree(first).query(points)[0]) for points in (second, there))
    assert near < apart / 3


def test_truths_are_maps_around_their_scans(views):
    registered()
    for view in views:
        assert view.truth.dtype == torch.float32 and len(view.truth) > 1.5 * len(view.scan.points)
        assert view.truth.norm(dim=1).max() < FARTHEST and view.truth[:, 2].abs().max() < 4.4


def test_mutations(lane):
    for mutation in (
        Mutation("the yaw is turned round", streets.pose, "-np.sin(yaw)], [np.sin(yaw)", "np.sin(yaw)], [-np.sin(yaw)", partial(painted, lane)),
        Mutation("the place is forgotten", streets.pose, "x, y, z", "0, 0, z", partial(painted, lane)),
        Mutation("the map stays where it is", streets.load, "np.linalg.inv(shot.pose)", "shot.pose", registered),
        Mutation("scans stay where they are", streets.load, "moved(scan.points.numpy(), shot.pose)", "scan.points.numpy()", registered),
    ):  # fmt: skip
        prove(mutation)


# What is refused


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="part must be one of train, val, test, got 'validation'"):
        streets.load("validation")
    with pytest.raises(ValueError, match="seed"):
        streets.load("val", -1)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: Image.fromarray(np.zeros((64, 512), np.uint16)).save(path), "is 64 x 512 instead of 768 x 512"),
        (lambda path: Image.new("RGB", (512, 768)).save(path), "is 768 x 512 x 3 instead of"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "cannot be read"),
        (lambda path: path.write_text("no image"), "cannot be read"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
    ids=["size", "colours", "cut off", "text", "missing"],
)
def test_a_damaged_file_is_refused(tmp_path, monkeypatch, damage, says):
    place = shutil.copytree(streets.PLACE, tmp_path / "scenes")
    monkeypatch.setattr(streets, "PLACE", place)
    damage(place / "val_range.png")
    with pytest.raises(ValueError, match=says) as error:
        streets.panoramas("val")
    assert "val_range.png" in str(error.value) and "install distillkit again" in str(error.value)


# The town


def test_solids_are_closed_and_a_seed_makes_one_street(street):
    again = town.street(FIRST)
    assert all(np.array_equal(a.corners, b.corners) for a, b in zip(street.solids, again.solids, strict=True))
    for solid in street.solids:
        edges = np.sort(solid.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1)
        assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
        assert np.isfinite(solid.corners).all() and 0 < solid.reflectance <= 1


def heads(lane):
    """The heading is the direction of the middle of the road."""
    for x in (-40.0, 0.0, 25.0):
        before, after = lane(np.array([[x - 1e-4, 0, 0], [x + 1e-4, 0, 0]]))
        assert lane.heading(x) == pytest.approx(np.arctan2(*(after - before)[1::-1]), abs=1e-6)


def test_the_heading_follows_the_bend(lane):
    prove(Mutation("half the bend", town.Lane.heading, "self.bend * x", "self.bend * x / 2", partial(heads, lane)))


def test_sensors_stand_on_the_road(street, shots):
    places = ship.poses(street, np.random.default_rng([FIRST, 1]))
    assert np.allclose([streets.pose(*place) for place in places], [shot.pose for shot in shots["val"][:SCANS]])
    assert (np.diff(places[:, 0]) > 2.9).all() and (np.diff(places[:, 0]) < 6.1).all()


@pytest.mark.full
def test_open3d_sees_what_is_shipped(street):
    pytest.importorskip("open3d", reason="casting rays needs the extra threed")
    ranges, reflectance = ship.cast(street, ship.poses(street, np.random.default_rng([FIRST, 1])))
    for name, made in (("range", ranges), ("reflectance", reflectance)):
        with Image.open(streets.PLACE / f"val_{name}.png") as image:
            shipped = np.asarray(image)[: SCANS * 64].reshape(made.shape)
        assert (shipped != made).mean() < 1e-3  # rays that graze an edge
