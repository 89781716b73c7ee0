"""Measures of scenes against their formulas, dense histograms, and the table of the reference."""

# ruff: noqa: E501 (a fault is a row of a table)

import math
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import Mutation, prove
from scipy.integrate import simpson
from scipy.spatial.distance import jensenshannon

from domains.lidar import measures
from domains.lidar.measures import (
    VOXELS,
    chamfer,
    f_score,
    gaps,
    iou,
    jsd_3d,
    jsd_bev,
    overlap,
    reward,
    within,
)

SEQUENCES = Path(os.environ.get("DISTILLKIT_TEST_DATA", "")) / "lidar" / "sequences"


def scenes(num: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two scenes that meet in many cells of 0.5 m; some points lie on the edges of cells."""
    rng = np.random.RandomState(seed)
    ours, theirs = (rng.uniform(-1, 1, (num, 3)) * (12, 9, 3) for _ in range(2))
    ours[: num // 4] = np.round(ours[: num // 4] * 2) / 2
    return ours, np.concatenate([theirs, ours[: num // 3]])


# Distances


def check_chamfer() -> None:
    """Two points beside one: both halves count alike, by plain distance."""
    ours, theirs = torch.tensor([[0.0, 0, 0], [3, 4, 0]]), torch.tensor([[0.0, 0, 1]])
    expected = ((1 + math.sqrt(26)) / 2 + 1) / 2
    assert float(chamfer(ours, theirs)) == pytest.approx(expected, rel=1e-6)
    assert float(chamfer(theirs, ours)) == pytest.approx(expected, rel=1e-6)


def check_gaps(nearest=gaps) -> None:
    """Those of all pairs; `nearest` in several parts, of which the last is smaller."""
    ours, theirs = (torch.from_numpy(points[:60]).float() for points in scenes())
    between = (ours.double()[:, None] - theirs.double()).norm(dim=-1)
    there, back = nearest(ours, theirs[:50])
    torch.testing.assert_close(there.double(), between[:, :50].amin(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(back.double(), between[:, :50].amin(0), rtol=1e-5, atol=1e-6)


def check_gaps_by_pairs() -> None:
    own, measures.PAIRS = measures.PAIRS, 50 * 7
    try:
        check_gaps(measures._by_pairs)
    finally:
        measures.PAIRS = own


def test_chamfer():
    check_chamfer()


def test_gaps_are_those_of_all_pairs():
    check_gaps()
    check_gaps_by_pairs()


def test_an_accelerator_keeps_the_millimetres():
    far = torch.tensor([[45.0, 20, 1]])
    there, back = measures._by_pairs(far, far + torch.tensor([0.001, 0, 0]))
    assert float(there) == float(back) == pytest.approx(0.001, rel=0.01)


def released_f_score(there: np.ndarray, back: np.ndarray) -> float:
    """Threshold by threshold."""
    line = np.linspace(0.05, 0.1, 100)
    scores = []
    for threshold in line:
        p, r = (np.mean(distances < threshold) for distances in (there, back))
        scores.append(2 * p * r / (p + r) if p and r else 0)
    step = line[1] - line[0]
    return simpson(scores, dx=step) / simpson(np.ones(100), dx=step)


def check_f_score() -> None:
    rng = np.random.RandomState(0)
    there, back = rng.uniform(0.04, 0.2, 300), rng.uniform(0, 0.11, 200)
    there[:50] = np.linspace(0.05, 0.1, 100)[30]  # is not below this threshold
    given = [torch.from_numpy(x) for x in (there, back)]
    assert f_score(*given) == pytest.approx(released_f_score(there, back), rel=1e-9)


def test_f_score():
    check_f_score()
    near, far = torch.zeros(5), torch.ones(5)
    assert f_score(near, near) == pytest.approx(1) and f_score(near, far) == f_score(far, far) == 0


# Histograms


def check_jsd(reach: float = 16) -> None:
    """Equal to those of dense histograms over [-reach, reach]^3 metres."""

    def dense(points: np.ndarray) -> np.ndarray:
        return np.histogramdd(points, bins=int(4 * reach), range=[(-reach, reach)] * 3)[0]

    pair = scenes()
    ours, theirs = (dense(points) for points in pair)
    assert jsd_3d(*pair) == pytest.approx(jensenshannon(ours.ravel(), theirs.ravel()), abs=1e-9)
    columns = [(counts > 0).sum(-1).ravel() for counts in (ours, theirs)]
    assert jsd_bev(*pair) == pytest.approx(jensenshannon(*columns), abs=1e-9)


def check_disjoint() -> None:
    """Scenes that share no cell are as far apart as can be."""
    near = np.array([[0.25, 0.25, 0.25], [-0.25, -0.25, -0.25]])
    for apart in (near + [[1, 0, 0]], near + [[0, 1, 0]]):
        assert jsd_3d(near, apart) == pytest.approx(math.sqrt(math.log(2)), rel=1e-12)
        assert jsd_bev(near, apart) == pytest.approx(math.sqrt(math.log(2)), rel=1e-12)
    assert jsd_3d(near, near + [[0, 0, 1]]) == pytest.approx(math.sqrt(math.log(2)), rel=1e-12)
    assert jsd_bev(near, near + [[0, 0, 1]]) == 0


def check_overlap() -> None:
    """Numbers by sets of cells."""
    pair = scenes(1500)
    for voxel in VOXELS:
        a, b = ({*map(tuple, np.floor(points / voxel).tolist())} for points in pair)
        assert overlap(*pair, voxel).tolist() == [len(a & b), len(a - b), len(b - a)], voxel


def legacy_scenes() -> tuple[np.ndarray, np.ndarray]:
    """Scenes with points in the last voxel of 0.5 m that is seen, beyond it, and in a corner."""
    ours, theirs = scenes(1500)
    ours[:3] = [[25, 0, 0], [25.3, 0, 0], [-25, -25, 25]]
    return ours, theirs


def check_legacy() -> None:
    """Numbers by sets of rounded coordinates, of which 50 in each direction are seen."""
    pair = legacy_scenes()
    for voxel in VOXELS:
        places = (np.round(points / voxel) for points in pair)
        a, b = ({tuple(place) for place in each.tolist() if max(map(abs, place)) <= 50} for each in places)
        assert overlap(*pair, voxel, legacy=True).tolist() == [len(a & b), len(a - b), len(b - a)], voxel


def test_sparse_histograms_equal_dense_ones():
    check_jsd(50)
    check_overlap()
    check_legacy()


def test_the_released_overlap():
    """The histogram of rounded coordinates in cells as wide as voxels, as published."""
    pair = legacy_scenes()
    places = (np.round(points / 0.5).astype(int) for points in pair)
    a, b = (np.histogramdd(each, bins=200, range=[(-50, 50)] * 3)[0] > 0 for each in places)
    assert overlap(*pair, 0.5, legacy=True).tolist() == [(a & b).sum(), (a & ~b).sum(), (b & ~a).sum()]


def test_disjoint_scenes():
    check_disjoint()
    near = np.array([[0.25, 0.25, 0.25]])
    assert [iou(overlap(near, near + 1, voxel)) for voxel in VOXELS] == [0, 0, 0]
    assert iou(np.zeros(3)) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_scene_is_perfect_beside_itself_in_any_order(seed):
    ours, _ = scenes(seed=seed)
    again = torch.from_numpy(ours)[torch.randperm(len(ours), generator=torch.Generator().manual_seed(seed))]
    repeated = np.concatenate([ours] * 8)
    for theirs in (ours, again, repeated):
        assert float(chamfer(ours, theirs)) == jsd_3d(ours, theirs) == jsd_bev(ours, theirs) == 0
        assert [iou(overlap(ours, theirs, voxel, legacy)) for voxel in VOXELS for legacy in (False, True)] == [1] * 6
        assert f_score(*gaps(ours, theirs)) == pytest.approx(1)


def test_points_at_the_end_of_the_world_share_a_cell_with_none_nearby():
    near, far = np.array([[0.25, 0.25, 0.25]]), np.array([[1e30, 0, 0], [-1e30, 0, 0]])
    assert jsd_3d(near, far) == pytest.approx(math.sqrt(math.log(2)))


def check_range() -> None:
    """Points on the sphere and beyond are cut; height counts."""
    points = torch.tensor([[3.0, 0, 0], [0, 3, 4], [0, 3, 3.99], [6, 0, 0]])
    assert within(points, 5.0).tolist() == points[[0, 2]].tolist()


def test_range():
    check_range()


# Preferences


def check_reward() -> None:
    """Higher is better, scene by scene, and nothing is trained through it."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(3, 200, 3, generator=generator)
    spread = torch.tensor([0.3, 0.0, 0.1])[:, None, None]
    samples = (truth + spread * torch.randn(3, 200, 3, generator=generator)).requires_grad_()
    for metric in ("chamfer", "jsd_bev", "jsd_3d", "f_score"):
        found = reward(samples, {"data": truth}, metric)
        assert found.argsort().tolist() == [0, 2, 1], metric
        assert found.dtype == torch.float32 and not found.requires_grad
    expected = [-float(chamfer(*pair)) for pair in zip(samples, truth, strict=True)]
    assert reward(samples, {"data": truth}).tolist() == pytest.approx(expected)


def test_reward():
    check_reward()


@pytest.mark.parametrize("metric", ["chamfer", "jsd_bev", "jsd_3d", "f_score"])
def test_the_reward_of_a_lost_sample_is_the_least(metric):
    truth = torch.rand(3, 50, 3, generator=torch.Generator().manual_seed(0))
    samples = torch.stack([truth[0], truth[1] * torch.nan, truth[2] + torch.inf])
    best, *lost = reward(samples, {"data": truth}, metric).tolist()
    assert all(np.isfinite(value) and value < best for value in lost)


FAULTS = [
    ("a half forgotten", chamfer, "(there.mean() + back.mean()) / 2", "there.mean()", check_chamfer),
    ("squared distances", chamfer, "there.mean()", "there.square().mean()", check_chamfer),
    ("all points alike", chamfer, "(there.mean() + back.mean()) / 2", "torch.cat([there, back]).mean()", check_chamfer),
    ("ways exchanged", gaps, "((ours, theirs), (theirs, ours))", "((theirs, ours), (ours, theirs))", check_gaps),
    ("the last part alone", measures._by_pairs, "torch.minimum(back, squared.amin(0))", "squared.amin(0)", check_gaps_by_pairs),
    ("no root", measures._by_pairs, "torch.cat(there).sqrt()", "torch.cat(there)", check_gaps_by_pairs),
    ("thresholds count", measures._shares, "THRESHOLDS) / ", "THRESHOLDS, 'right') / ", check_f_score),
    ("not sorted", measures._shares, "np.sort(_array(distances))", "_array(distances)", check_f_score),
    ("the sum", f_score, "2 * precision * recall / np", "(precision + recall) / 2 / np", check_f_score),
    ("not divided by the width", f_score, " / (THRESHOLDS[-1] - THRESHOLDS[0])", "", check_f_score),
    ("no root of the divergence", measures._jsd, "float(jensenshannon(*histograms))", "float(jensenshannon(*histograms)) ** 2", check_disjoint),
    ("bits", measures._jsd, "(*histograms)", "(*histograms, 2)", check_disjoint),
    ("cells lost", measures._jsd, "np.union1d(ours[0], theirs[0])", "np.union1d(ours[0], ours[0][:1])", check_jsd),
    ("points in columns", jsd_bev, "np.unique(_cells(points))", "_cells(points)", check_jsd),
    ("rows instead of columns", jsd_bev, ">> BITS", ">> 2 * BITS", check_disjoint),
    ("occupancy in 3D", jsd_3d, "_cells(points)", "np.unique(_cells(points))", check_jsd),
    ("edges off by a half", measures._cells, "np.rint if legacy else np.floor", "np.rint", check_jsd),
    ("edges below", measures._cells, "np.rint if legacy else np.floor", "np.rint if legacy else lambda x: np.ceil(x) - 1", check_jsd),
    ("truncated", measures._cells, "np.rint if legacy else np.floor", "np.rint if legacy else np.trunc", check_overlap),
    ("y lost", measures._cells, "(y << BITS)", "(x << BITS)", check_disjoint),
    ("negative places overlap", measures._cells, " + half).T", ").T", check_overlap),
    ("legacy without the last voxel", measures._cells, "<= LEGACY", "< LEGACY", check_legacy),
    ("legacy without rounding", measures._cells, "np.rint if legacy else np.floor", "np.floor", check_legacy),
    ("errors exchanged", overlap, "len(a) - both, len(b) - both", "len(b) - both, len(a) - both", check_overlap),
    ("points instead of voxels", overlap, "np.unique(_cells(points, voxel, legacy))", "np.sort(_cells(points, voxel, legacy))", check_overlap),
    ("one voxel for all", overlap, "_cells(points, voxel, legacy)", "_cells(points, 0.5, legacy)", check_overlap),
    ("the sphere included", within, "< max_range", "<= max_range", check_range),
    ("a cylinder", within, "vector_norm(points,", "vector_norm(points[..., :2],", check_range),
    ("the wrong way", reward, "-chamfer(ours, theirs)", "chamfer(ours, theirs)", check_reward),
]  # fmt: skip


@pytest.mark.parametrize("fault", [Mutation(*fault) for fault in FAULTS], ids=str)
def test_faults_are_noticed(fault):
    prove(fault)


# The table of the reference, on real scans


@cache
def real_scans(name: str) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Points [n, 3], rings [n] and poses [3, 4] of a sequence."""
    folder = SEQUENCES / name
    poses = np.loadtxt(folder / "poses.txt").reshape(-1, 3, 4)
    paths = sorted((folder / "velodyne").glob("*.bin"))
    points = [np.fromfile(path, "<f4").reshape(-1, 4)[:, :3].astype(float) for path in paths]
    return list(zip(points, (np.load(folder / "ring" / f"{path.stem}.npy") for path in paths), poses, strict=True))


def seen(points: np.ndarray) -> np.ndarray:
    """The points that the protocol keeps."""
    distance = np.linalg.norm(points, axis=1)
    return points[(distance > 3.5) & (distance < 50) & (points[:, 2] > -4) & (points[:, 2] < 4.4)]


@cache
def scene_around(name: str) -> np.ndarray:
    """The scene around the first scan: the first point in each voxel of 0.1 m of all scans."""
    scans = real_scans(name)
    world = np.concatenate(
        [points[np.linalg.norm(points, axis=1) > 3.5] @ pose[:, :3].T + pose[:, 3] for points, _, pose in scans]
    )
    _, first = np.unique(np.floor(world / 0.1).astype(int) @ (2**40, 2**20, 1), return_index=True)
    pose = scans[0][2]
    local = (world[np.sort(first)] - pose[:, 3]) @ pose[:, :3]
    distance = np.linalg.norm(local, axis=1)
    return local[(distance < 50) & (local[:, 2] > -4) & (local[:, 2] < 4.4)]


SIZES = {"os1_128_street": 120_076, "os1_128_plaza": 106_572}
TABLE = [  # sequence, beams, points, Chamfer distance, JSD in 3D, from above, and IoU by voxel
    ("os1_128_street", 8, 5395, 0.531, 0.664, 0.574, 0.107, 0.053, 0.035),
    pytest.param("os1_128_street", 16, 11068, 0.302, 0.557, 0.506, 0.208, 0.106, 0.071, marks=pytest.mark.slow),
    pytest.param("os1_128_street", 32, 22476, 0.167, 0.433, 0.423, 0.370, 0.212, 0.142, marks=pytest.mark.slow),
    pytest.param("os1_128_street", 64, 45614, 0.093, 0.339, 0.332, 0.564, 0.391, 0.285, marks=pytest.mark.slow),
    pytest.param("os1_128_street", 128, 91831, 0.044, 0.281, 0.238, 0.744, 0.609, 0.517, marks=pytest.mark.slow),
    ("os1_128_plaza", 16, 9718, 0.373, 0.590, 0.531, 0.182, 0.100, 0.074),
]


@pytest.mark.skipif(not SEQUENCES.is_dir(), reason="DISTILLKIT_TEST_DATA names no folder with it")
@pytest.mark.parametrize(("name", "beams", "size", "cd", "jsd", "bev", "half", "fifth", "tenth"), TABLE)
def test_beams_of_a_scan_beside_the_scene(name, beams, size, cd, jsd, bev, half, fifth, tenth):
    truth = scene_around(name)
    points, ring, _ = real_scans(name)[0]
    some = seen(points[ring % (128 // beams) == 0])
    assert (len(truth), len(some)) == (SIZES[name], size)
    found = [float(chamfer(some, truth)), jsd_3d(some, truth), jsd_bev(some, truth)]
    found += [iou(overlap(some, truth, voxel)) for voxel in VOXELS]
    assert found == pytest.approx([cd, jsd, bev, half, fifth, tenth], abs=0.001)
