"""Beams that are found again where a file does not name them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from domains.lidar.files import read_scan
from domains.lidar.rings import rings

REAL = Path(os.environ.get("DISTILLKIT_TEST_DATA", "")) / "lidar"
SCANS = sorted(REAL.glob("singles/*.bin")) + sorted(REAL.glob("sequences/*/velodyne/*.bin"))


def scan(beams=32, columns=360, seed=0, clockwise=True, lost=0.2):
    """Points [n, 3] beam by beam, and their rings: each beam begins up to 10 degrees off the start.

    A sector of 200 degrees, another one for each beam, is lost, and single points are.
    """
    generator = np.random.default_rng(seed)
    elevation = np.linspace(10, -20, beams)[:, None] + 0.02 * generator.standard_normal((beams, columns))
    azimuth = (137 + np.arange(columns) * 360 / columns + generator.uniform(-10, 10, (beams, 1))) * (-1) ** clockwise
    away = generator.uniform(5, 60, (beams, columns))
    kept = generator.random((beams, columns)) > lost
    start = generator.integers(0, columns, (beams, 1))
    kept &= ((np.arange(columns) - start) % columns > columns * 200 / 360) | (generator.random((beams, 1)) > 0.3)
    e, a = np.radians(elevation), np.radians(azimuth)
    points = away[..., None] * np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], -1)
    ring = np.broadcast_to(np.arange(beams)[:, None], kept.shape)
    return torch.from_numpy(points[kept]).float(), torch.from_numpy(ring[kept])


@pytest.mark.skipif(not SCANS, reason="DISTILLKIT_TEST_DATA names no folder with it")
@pytest.mark.parametrize("path", SCANS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_real_scans(path):
    found = read_scan(path)
    assert (rings(found.points) == found.ring).float().mean() > 0.998


@pytest.mark.parametrize("clockwise", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_beam_after_beam(clockwise, seed):
    points, ring = scan(seed=seed, clockwise=clockwise)
    assert (rings(points) == ring).float().mean() > 0.99


def test_another_order_is_cut_into_slices():
    points, ring = scan()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    found = rings(points[order])
    height = torch.atan2(points[:, 2], points[:, :2].norm(dim=1))[order]
    assert found.min() == 0 and found.unique().tolist() == [*range(found.max() + 1)]
    for upper in range(found.max()):
        assert height[found == upper].min() > height[found == upper + 1].max()
    together = torch.stack([ring[order], found]).unique(dim=1).shape[1]
    assert together <= found.max() + 1 + ring.max()  # slices of 0.4 degrees: a beam, 1 degree apart, is in one or two


@pytest.mark.parametrize("number", [1, 2, 5])
def test_few_points(number):
    points, _ = scan()
    found = rings(points[:: len(points) // number][:number])
    assert found.shape == (number,) and found.min() == 0
