"""Crops of scenes: fixed sizes, metres, each a function of its index; partial scans by beams."""

import numpy as np
import pytest
import torch
from mutations import Mutation, prove

from domains.lidar import crops as module
from domains.lidar.crops import HEIGHTS, TEST, VAL, Crops, Cut, filled, partial
from domains.lidar.views import Scan, View

CUT = Cut(crop=8.0, max_range=30.0, num_full=48, num_part=6, beams=4)


def view(seed: int, num: int = 4000, height: float = 0.0) -> View:
    """Ground and a wall, of which 8 beams see a quarter."""
    random = np.random.default_rng(seed)
    points = random.uniform([-30, -30, -2.1], [30, 30, -1.9], (num, 3))
    points[: num // 4, 1] = 5.0
    points[: num // 4, 2] = random.uniform(-2, 3, num // 4)
    truth = torch.tensor(points + [0, 0, height], dtype=torch.float32)
    seen = torch.from_numpy(random.permutation(num)[: num // 4])
    return View(Scan(truth[seen], None, torch.arange(len(seen)) % 8), truth, f"town/{seed}")


VIEWS = [view(0), view(1), view(2)]


def items(data: Crops, *indices: int) -> dict[str, torch.Tensor]:
    return data[torch.tensor(indices)]


def test_a_batch_follows_from_its_indices_alone():
    data, again = (Crops(VIEWS, CUT, seed=0) for _ in range(2))
    first = items(data, 5, 900_000, 7)
    assert first["data"].shape == (3, 48, 3) and first["part"].shape == (3, 6, 3)
    assert first["data"].dtype == first["part"].dtype == torch.float32
    for name, value in items(again, 900_000).items():
        torch.testing.assert_close(value[0], first[name][1], rtol=0, atol=0)
    assert not torch.equal(items(data, 5)["data"], items(data, 6)["data"])
    assert not torch.equal(items(data, 5)["data"], items(Crops(VIEWS, CUT, seed=1), 5)["data"])


def test_crops_are_squares_around_a_point_of_the_scan():
    batch = items(Crops(VIEWS, CUT, seed=0), *range(32))
    for points in batch.values():
        assert points[..., :2].abs().max() <= 4 and points[..., :2].abs().amax((1, 2)).min() > 2.5
        assert points[..., 2].min() >= HEIGHTS[0] and points[..., 2].max() <= HEIGHTS[1]


def test_a_crop_shows_one_scene_to_both():
    """Every point of the partial scan lies among the scene's, turned, mirrored and moved alike."""
    data = Crops(VIEWS, CUT._replace(num_full=4800, num_part=60), seed=0)
    batch = items(data, *range(8))
    assert torch.cdist(batch["part"].double(), batch["data"].double()).amin(2).max() < 1e-5
    heights = [set(points[:, 2].tolist()) for points in batch["data"]]
    scenes = [next(k for k, v in enumerate(VIEWS) if each <= set(v.truth[:, 2].tolist())) for each in heights]
    assert len(set(scenes)) == 3  # turns leave heights as they are, so they tell the view


def test_training_is_turned_and_mirrored_and_held_out_data_are_not():
    """The wall of every scene runs along x; in turned crops it runs anywhere."""
    wall = [view(0)]
    directions = {"train": [], "held out": []}
    for name, data in (("train", Crops(wall, CUT, 0)), ("held out", Crops(wall, CUT, 0, VAL, 24))):
        for points in data[torch.arange(24)]["data"]:
            high = points[points[:, 2] > -1, :2]
            if len(high) > 8:
                _, _, axes = torch.linalg.svd(high - high.mean(0))
                directions[name].append(abs(float(axes[0, 0])))
    assert min(map(len, directions.values())) >= 4
    assert min(directions["held out"]) > 0.999 and np.std(directions["train"]) > 0.1


def test_a_turn_is_a_turn_or_a_mirror():
    for mirrored, sign in ((False, 1), (True, -1)):
        turn = module._turn(0.7, mirrored)
        torch.testing.assert_close(turn @ turn.T, torch.eye(3))
        assert float(torch.det(turn)) == pytest.approx(sign)
    ahead = torch.tensor([[1.0, 0, 0]]) @ module._turn(np.pi / 2, False)
    torch.testing.assert_close(ahead, torch.tensor([[0.0, 1, 0]]), atol=1e-6, rtol=0)


def test_held_out_crops_are_spread_over_the_views_and_differ_between_parts():
    val, test = (Crops(VIEWS, CUT, 0, part, 6) for part in (VAL, TEST))
    random = np.random.default_rng(0)
    assert [val._view(i, random) for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [Crops(VIEWS, CUT, 0, VAL, 2)._view(i, random) for i in range(2)] == [0, 2]
    assert len(val) == 6 and not torch.equal(items(val, 0)["data"], items(test, 0)["data"])


def test_other_points_of_the_same_scene_are_for_the_floor():
    data = Crops(VIEWS, CUT, 0, VAL, 6)
    first, again = items(data, 0, 3), data.again(torch.tensor([0, 3]))
    torch.testing.assert_close(first["part"], again["part"], rtol=0, atol=0)
    assert not torch.equal(first["data"], again["data"])


def test_whole_scans_stay_in_the_sensors_frame():
    data = Crops(VIEWS, CUT._replace(crop=None), 0, VAL, 3)
    batch = items(data, 0, 1, 2)
    for points in batch.values():
        ground = points[..., :2].norm(dim=-1)
        assert ground.max() <= 30 and ground.max() > 20
    assert torch.cdist(items(data, 0)["part"][0].double(), VIEWS[0].truth.double()).amin(1).max() < 1e-5


def check_beams(shifted: bool = False):
    scan, random = VIEWS[0].scan, np.random.default_rng(0)
    firsts = set()
    for _ in range(12):
        seen = partial(scan, 4, random, shifted)
        rings = {int(scan.ring[(scan.points == point).all(1)][0]) for point in seen}
        assert len(rings) == 4 and {ring % 2 for ring in rings} == {min(rings)}
        assert len(seen) == sum(int(ring) in rings for ring in scan.ring)
        firsts.add(min(rings))
    assert firsts == ({0, 1} if shifted else {0})


@pytest.mark.parametrize("shifted", [True, False])
def test_partial_scans_have_evenly_spread_beams(shifted):
    check_beams(shifted)


def test_a_scan_of_few_or_unknown_beams_is_taken_whole():
    scan, random = VIEWS[0].scan, np.random.default_rng(0)
    assert partial(scan, None, random, True) is scan.points
    assert partial(scan, 16, random, True).shape == scan.points.shape
    assert partial(scan._replace(ring=None), 4, random, True) is scan.points


def check_filled():
    points = torch.arange(15.0).reshape(5, 3)
    more, fewer = filled(points, 13, np.random.default_rng(0)), filled(points, 3, np.random.default_rng(0))
    often = [int((more == point).all(1).sum()) for point in points]
    assert sorted(often) == [2, 2, 3, 3, 3] and len({tuple(row) for row in fewer.tolist()}) == 3


def test_sets_are_filled_with_each_point_as_often():
    check_filled()


@pytest.mark.parametrize("points", [0, 1])
def test_a_view_without_points_makes_a_crop_all_the_same(points):
    none = View(Scan(torch.zeros(points, 3)), torch.zeros(points, 3), "fog/0")
    for crop in (8.0, None):
        batch = items(Crops([none], CUT._replace(crop=crop), 0), 0, 1)
        assert batch["data"].shape == (2, 48, 3) and batch["part"].isfinite().all()


MUTATIONS = [
    Mutation("every beam", partial, "% every", "% 1", check_beams),
    Mutation("too many beams", partial, "every = max(1, round(", "every = max(1, 1 + round(", check_beams),
    Mutation("the first beam alone", partial, "if shifted else 0", "if not shifted else 0", lambda: check_beams(True)),
    Mutation(
        "points drawn with repetition",
        filled,
        "random.permutation(len(points))",
        "random.integers(len(points), size=len(points))",
        check_filled,
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_tests_notice(mutation):
    prove(mutation)
