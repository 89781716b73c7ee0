"""Completed scenes beside their true ones, and which true scene that is."""

# ruff: noqa: E501 (a fault is a row of a table)

import json

import pytest
import torch
from mutations import Mutation, prove

from distillkit.data import TensorData
from distillkit.evaluation import references
from distillkit.evaluation.samples import Diverged
from domains.lidar import evaluation, measures
from domains.lidar.evaluation import LidarEvaluator, compare

NUM, POINTS, GIVEN = 5, 160, 20


class Streets(TensorData):
    """Walls and ground; a scene is so many of its points, others when it is drawn anew."""

    def __init__(self, num: int = NUM, seed: int = 0):
        self.seed = seed
        data = torch.stack([self.draw(number, 0) for number in range(num)])
        super().__init__({"data": data, "part": data[:, ::8] + torch.tensor([0.0, 0, 0.25])})

    def draw(self, number: int, turn: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + 10 * number + turn)
        u, v, which = torch.rand(3, POINTS, generator=generator)
        ground = torch.stack([12 * u - 6, 12 * v - 6, torch.full_like(u, -2.0)], -1)
        wall = torch.stack([12 * u - 6, torch.full_like(u, 1.0 + number), 4 * v - 2], -1)
        return torch.where(which[:, None] < 0.5, ground, wall)

    def again(self, indices):
        return {**self[indices], "data": torch.stack([self.draw(number, 1) for number in indices.tolist()])}


@pytest.fixture(scope="module")
def held_out():
    return Streets()


@pytest.fixture(scope="module")
def batch(held_out):
    return held_out[torch.arange(NUM)]


@pytest.fixture(scope="module")
def evaluator(held_out):
    return LidarEvaluator([held_out])


PERFECT = {"f_score": 1.0} | {f"iou_{voxel}": 1.0 for voxel in (0.5, 0.2, 0.1)}


def test_scenes_are_perfect_beside_themselves(evaluator, batch):
    found = evaluator(batch["data"], batch)
    assert list(found)[:3] == ["chamfer", "to_truth", "from_truth"]  # the order of the table
    assert found == pytest.approx({name: PERFECT.get(name, 0.0) for name in found})
    assert {*found, "teacher_distance"} == {*evaluator.better}
    assert evaluator.better[evaluator.headline] == "lower"


def test_the_order_of_points_does_not_matter(evaluator, batch):
    order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(0))
    samples = batch["data"] + 0.1
    assert evaluator(samples[:, order], batch) == pytest.approx(evaluator(samples, batch))


def test_the_floor_is_that_of_other_points_of_the_same_scenes(evaluator, batch, held_out):
    floor, baselines = evaluator.floor(2 * NUM), evaluator.baselines(batch)
    again = held_out.again(torch.arange(NUM))["data"]
    assert not torch.equal(again, batch["data"])
    assert floor == pytest.approx(evaluator(again, batch))  # repeated scenes change nothing
    assert 0 < floor["chamfer"] < min(evaluator(x, batch)["chamfer"] for x in baselines.values())
    assert LidarEvaluator([TensorData(batch)]).floor() == {}
    json.dumps(floor, allow_nan=False)


def test_baselines(evaluator, batch):
    made = evaluator.baselines(batch)
    assert list(made) == ["copy", "noised anchor"]
    assert torch.equal(made["copy"], torch.cat([batch["part"]] * 8, 1))
    noise = made["noised anchor"] - made["copy"]
    assert noise.shape == batch["data"].shape and abs(noise.std() - 1) < 0.05
    assert not torch.equal(noise[:, :GIVEN], noise[:, GIVEN : 2 * GIVEN])  # each copy has its own
    assert torch.equal(evaluator.baselines(batch)["noised anchor"], made["noised anchor"])


def test_paired_is_the_mean_distance_of_points_of_one_number(evaluator, batch):
    moved = batch["data"] + torch.tensor([3.0, 4, 0]) * torch.arange(NUM)[:, None, None]
    found = evaluator.paired(moved, batch["data"], batch)
    assert found == {"teacher_distance": pytest.approx(10.0, rel=1e-6)}


def test_describe(evaluator, held_out):
    described = evaluator.describe()
    assert json.loads(json.dumps(described)) == described
    told = {"num_reference": NUM, "true_points": POINTS, "given_points": GIVEN, "max_range": 50.0, "stray": 1.0}
    assert {name: described[name] for name in told} == told
    assert described["iou"] == {"voxels": [0.5, 0.2, 0.1], "counts": "added up over scenes", "legacy": False}
    assert LidarEvaluator([held_out], legacy_iou=True).describe()["iou"]["legacy"] is True


# What is measured


def check_scenes() -> None:
    """Two scenes of different sizes whose metrics are known."""
    truths = [torch.tensor([[0.25, 0.25, 0.25]]), torch.tensor([[5.25, 0.25, 0.25]] * 3)]
    scenes = [torch.tensor([[0.25, 0.25, 0.25], [0.25, 2.25, 0.25]]), torch.tensor([[5.25, 0.25, 1.25]])]
    found = compare(scenes, iter(truths))
    assert found["to_truth"] == pytest.approx((1 + 1) / 2)  # (0 + 2) / 2 and 1
    assert found["from_truth"] == pytest.approx((0 + 1) / 2)
    assert found["chamfer"] == pytest.approx(0.75)
    assert found["stray"] == pytest.approx(1 / 4)  # 2 m are astray, 1 m is not
    # one voxel in common, then one of ours alone; none, one of ours and one of theirs
    assert found["iou_0.5"] == found["iou_0.2"] == found["iou_0.1"] == pytest.approx(1 / 4)
    assert found["f_score"] == pytest.approx((2 / 3 + 0) / 2)  # precision 1/2, recall 1
    own = [measures.jsd_3d(*pair) for pair in zip(scenes, truths, strict=True)]
    assert found["jsd_3d"] == pytest.approx(sum(own) / 2) and own[1] == pytest.approx(0.8326, abs=1e-4)
    assert found["jsd_bev"] == pytest.approx(measures.jsd_bev(scenes[0], truths[0]) / 2)


def check_range() -> None:
    """Points beyond the range are cut from both; how many of ours is told."""
    near, far = torch.tensor([[1.0, 2, 0], [3, 0, 1]]), torch.tensor([[0.0, 9, 9]])
    scenes, truths = [torch.cat([near, far])], [torch.cat([near, far + 1, far + 2])]
    found = compare(scenes, truths, max_range=10.0)
    away = {"outside": 1 / 3, "outside_by": (162**0.5 - 10) / 20}
    assert found == pytest.approx({name: PERFECT.get(name, 0.0) for name in found} | away)
    assert compare(scenes, truths)["outside"] == 0 < compare(scenes, truths)["chamfer"]


def check_legacy() -> None:
    """The published overlap sees nothing beyond 5 m at 0.1 m."""
    scenes = [torch.tensor([[1.0, 0, 0], [6, 0, 0]])]
    truths = [torch.tensor([[1.0, 0, 0], [6, 1, 0]])]
    found = [compare(scenes, truths, legacy_iou=legacy)["iou_0.1"] for legacy in (False, True)]
    assert found == pytest.approx([1 / 3, 1])


def test_scenes_of_different_sizes():
    check_scenes()


def test_range():
    check_range()


def test_legacy():
    check_legacy()


def test_evaluators_hand_their_protocol_on(held_out, batch, monkeypatch):
    monkeypatch.setattr(evaluation, "compare", lambda *given: given)
    samples, truths, *protocol = LidarEvaluator([held_out], 40.0, legacy_iou=True)(batch["data"], batch)
    assert samples is batch["data"] and torch.equal(torch.stack([*truths]), batch["data"])
    assert protocol == [40.0, True, torch.device("cpu")]


# The scene of a scan


def check_truths() -> None:
    """Scans know their scenes in any order, in either data set; these are read in parts."""
    one, other = Streets(), Streets(seed=1)
    data, part = (torch.cat([x.tensors[name] for x in (one, other)]) for name in ("data", "part"))
    order, own = torch.tensor([4, 9, 0, 2, 7, 7, 1]), evaluation.READ
    evaluation.READ = 3
    try:
        found = LidarEvaluator([one, other])(data[order], {"part": part[order]})
    finally:
        evaluation.READ = own
    assert found["chamfer"] == 0


def test_scenes_are_known_by_their_scans():
    check_truths()


FAULTS = [
    ("the mean of ratios", compare, "counts += [", "counts = counts * (i == 0) + [", check_scenes),
    ("both halves the same", compare, "float(back.mean())", "float(there.mean())", check_scenes),
    ("a half forgotten", compare, "(one[\"to_truth\"] + one[\"from_truth\"]) / 2", "one[\"to_truth\"]", check_scenes),
    ("the sum of halves", compare, "(one[\"to_truth\"] + one[\"from_truth\"]) / 2", "one[\"to_truth\"] + one[\"from_truth\"]", check_scenes),
    ("true points astray", compare, "(there > STRAY)", "(back > STRAY)", check_scenes),
    ("a metre is astray", compare, "(there > STRAY)", "(there >= STRAY)", check_scenes),
    ("ours alone are cut", compare, "measures.within(points, max_range).to(device) for points in (scenes[i], truth)", "points for points in (measures.within(scenes[i], max_range), truth)", check_range),
    ("what is left instead of what is cut", compare, "away - max_range", "max_range - away", check_range),
    ("metres instead of widths", compare, "2 * max_range", "1.0", check_range),
    ("the switch is lost", compare, ", legacy_iou)", ")", check_legacy),
    ("the order of a part lost", LidarEvaluator._truths, "first + READ]", "first + READ][::-1]", check_truths),
]  # fmt: skip


@pytest.mark.parametrize("fault", [Mutation(*fault) for fault in FAULTS], ids=str)
def test_faults_are_noticed(fault):
    prove(fault)


def test_what_is_refused(evaluator, batch, held_out):
    x, cond = batch["data"][:2], {"part": batch["part"][:2]}
    with pytest.raises(ValueError, match="none for sample 1: evaluate with the data that it was made for"):
        evaluator(x, {"part": torch.stack([cond["part"][0], cond["part"][1] + 1])})
    with pytest.raises(Diverged, match="1 of 2 samples hold NaN"):
        evaluator(torch.stack([x[0], x[1] * torch.nan]), cond)
    with pytest.raises(Diverged, match="1 of 2 samples hold NaN"):
        evaluator([x[0, :5], x[1] * torch.inf], cond)
    with pytest.raises(ValueError, match=r"a scene has shape \[160, 2\], but points are \[m, 3\]"):
        evaluator(x[..., :2], cond)
    with pytest.raises(Diverged, match="the completed scene 1 has no point within 50 m"):
        evaluator(torch.stack([x[0], x[1] + 100]), cond)
    with pytest.raises(ValueError, match="the true scene 0 has no point within 0.1 m"):
        compare([torch.zeros(1, 3)], x, 0.1)
    with pytest.raises(ValueError, match="max_range must be positive, got 0"):
        LidarEvaluator([held_out], max_range=0)


def test_the_data_are_read_before_scenes_are_counted(batch, held_out, monkeypatch):
    """So that no bar stands still for another."""
    told = []

    def counts(what, total):
        told.append((what, total))
        yield from range(total)
        told.append("done")

    for module in (references, evaluation):
        monkeypatch.setattr(module, "counted", counts)
    LidarEvaluator([held_out])(batch["data"], batch)
    assert told == [("reading the held-out data", NUM), "done", ("comparing scenes", NUM), "done"]
