"""Points become range images and come back; ranges become levels and come back."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import Mutation, prove

from domains.lidar.projection import (
    NEAR,
    back_project,
    columns,
    directions,
    image,
    levels,
    metres,
    project,
    rows,
    scan_image,
)
from domains.lidar.views import Scan

FARTHEST = 50.0
LIDAR = Path(os.environ.get("DISTILLKIT_TEST_DATA", "")) / "lidar"


def at(azimuth: float, elevation: float = 0.0, far: float = 10.0) -> list[float]:
    """A point in the direction of two angles in degrees."""
    a, e = np.deg2rad([azimuth, elevation])
    return [far * np.cos(e) * np.cos(a), far * np.cos(e) * np.sin(a), far * np.sin(e)]


def test_columns_go_from_behind_over_the_left():
    points = torch.tensor([at(angle) for angle in (179.9, 90.1, 0.1, -0.1, -90.1, -179.9)])
    assert columns(points, 360).tolist() == [0, 89, 179, 180, 270, 359]


def test_straight_behind_is_within_the_image():
    points = torch.tensor([[-1.0, 0.0, 0.0], [-1.0, -0.0, 0.0], [-1.0, -1e-9, 0.0]])
    assert set(columns(points, 1024).tolist()) <= {0, 1023}


def test_rows_are_those_of_the_formula_for_even_beams():
    """Of 64 beams between 3 and -25 degrees: floor((1 - (elevation + 25) / 28) 64)."""
    beams = 3 - 28 * (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    seen = 27.9 * np.random.default_rng(0).random(500) - 24.95
    points = torch.tensor([at(7 * i, e) for i, e in enumerate(seen)])
    assert rows(points, beams).tolist() == np.floor((1 - (seen + 25) / 28) * 64).astype(int).tolist()
    assert rows(torch.tensor([at(0, 80), at(0, -80)]), beams).tolist() == [0, 63]


def test_near_points_hide_far_ones():
    points = torch.tensor([at(1, far=9), at(1.1, far=3), at(0.9, far=5), at(104, far=2)])
    seen = project(points, torch.tensor([1, 1, 1, 0]), 2, 36)
    assert seen[1, 17] == 1 and seen[0, 7] == 3 and (seen >= 0).sum() == 2


def test_pixels_come_back_to_where_they_were():
    ranges = 2 + 40 * torch.rand(4, 90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    beams = torch.tensor([10.0, 2.0, -5.0, -21.0], dtype=torch.float64)
    points = back_project(ranges, beams).reshape(-1, 3)
    seen = project(points, rows(points, beams), 4, 90)
    assert torch.equal(seen, torch.arange(360).reshape(4, 90))
    torch.testing.assert_close(points.norm(dim=1).reshape(4, 90), ranges)


def test_levels_of_ranges():
    far = levels(torch.tensor([1.5, 10.0, 49.9]), FARTHEST)
    torch.testing.assert_close(
        far, torch.tensor([np.log2(d + 1) / np.log2(51) * 2 - 1 for d in (1.5, 10, 49.9)]).float()
    )
    assert levels(torch.tensor([0.0, 1.0, NEAR, 50.0, 90.0]), FARTHEST).tolist() == [-1] * 5


def test_levels_come_back_and_what_is_too_near_is_no_return():
    ranges = torch.linspace(1.46, 49.9, 300)
    torch.testing.assert_close(metres(levels(ranges, FARTHEST), FARTHEST), ranges, rtol=1e-5, atol=1e-5)
    assert metres(torch.tensor([-1.0, -0.9, -3.0, 7.0]), FARTHEST).tolist() == [0, 0, 0, pytest.approx(50, abs=1e-4)]


def test_what_has_no_return_has_no_reflectance():
    made = image(torch.tensor([[0.0, 10.0]]), torch.tensor([[0.7, 0.7]]), FARTHEST)
    assert made.shape == (2, 1, 2) and made[:, 0, 0].tolist() == [-1, -1]
    assert made[1, 0, 1] == pytest.approx(0.4)


def test_a_scan_without_rings_is_seen_by_its_elevations():
    beams = torch.tensor([5.0, 0.0, -5.0])
    points = torch.tensor([at(12, 4.9), at(52, -5.2, 20)])
    made = scan_image(Scan(points), beams, 36, FARTHEST)
    by_ring = scan_image(Scan(points, ring=torch.tensor([0, 2])), beams, 36, FARTHEST)
    assert torch.equal(made, by_ring) and (made[0] > -1).nonzero().tolist() == [[0, 16], [2, 12]]


FAULTS = [
    Mutation("azimuth the other way", columns, "(1 - ", "(1 + ", test_columns_go_from_behind_over_the_left),
    Mutation("a quarter off", columns, "% 1)", "+ 0.25) % 1", test_columns_go_from_behind_over_the_left),
    Mutation("far points win", project, "descending=True", "descending=False", test_near_points_hide_far_ones),
    Mutation("corners for middles", directions, "+ 0.5", "+ 0", test_pixels_come_back_to_where_they_were),
    Mutation("natural logarithm", levels, "log2(ranges", "log(ranges", test_levels_of_ranges),
    Mutation("NEAR is a return", levels, "ranges > NEAR", "ranges >= NEAR", test_levels_of_ranges),
]


@pytest.mark.parametrize("mutation", FAULTS, ids=str)
def test_faults_are_noticed(mutation):
    prove(mutation)


@pytest.mark.skipif(not LIDAR.is_dir(), reason="DISTILLKIT_TEST_DATA names no folder with it")
def test_a_real_scan_returns():
    """Of an OS1-128 on a street, whose beams are not even and do not start in one point."""
    shipped = np.load(LIDAR / "range" / "os1_128_street_000000.npz")
    street = LIDAR / "sequences" / "os1_128_street"
    raw = torch.from_numpy(np.fromfile(street / "velodyne" / "000000.bin", "<f4").reshape(-1, 4))
    scan = Scan(raw[:, :3], raw[:, 3], torch.from_numpy(np.load(street / "ring" / "000000.npy")).long())
    beams = torch.from_numpy(shipped["beam_altitude_deg"])
    seen = project(scan.points, scan.ring, 128, 1024)
    ranges = metres(scan_image(scan, beams, 1024, 80.0)[0], 80.0)
    hit = ranges > 0
    assert hit.sum() > 0.9 * len(raw)
    assert (back_project(ranges, beams)[hit] - scan.points[seen[hit]]).norm(dim=1).mean() < 0.10
    assert (ranges > 0).float().mean() == pytest.approx(float((shipped["range_mm"] > NEAR * 1000).mean()), abs=0.02)
