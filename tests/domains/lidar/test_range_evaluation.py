"""Range images beside the held-out ones of the same rays, and pictures of them."""

import json

import numpy as np
import pytest
import torch
from mutations import Mutation, prove

from domains.lidar import measures
from domains.lidar.projection import back_project, image, levels, metres
from domains.lidar.range_data import HeldOut
from domains.lidar.range_evaluation import RangeEvaluator
from domains.lidar.range_media import RangeMedia
from domains.lidar.rays import is_given

FARTHEST = 50.0
BEAMS = torch.tensor([2.0, -4.0, -8.0, -16.0], dtype=torch.float64)


def scenes(seed: int = 0) -> torch.Tensor:
    """Three images [2, 4, 24]: a room whose walls are at random distances, open to one side."""
    generator = torch.Generator().manual_seed(seed)
    ranges = 4 + 20 * torch.rand(3, 1, 24, generator=generator) + torch.rand(3, 4, 24, generator=generator)
    ranges[:, :2, 18:] = 0
    return image(ranges, torch.full((3, 4, 24), 0.25), FARTHEST)


DATA = HeldOut(scenes(), 2, scenes().clamp(-1, 1) * 0.999)
BATCH = DATA[torch.arange(6)]
EVALUATOR = RangeEvaluator([DATA], BEAMS, FARTHEST)


def moved(by: float) -> torch.Tensor:
    """The true images with all rays longer by some metres."""
    x = BATCH["data"].clone()
    x[:, 0] = torch.where(x[:, 0] > -1, levels(metres(x[:, 0], FARTHEST) + by, FARTHEST), x[:, 0])
    return x


def test_the_truth_is_perfect():
    found = EVALUATOR(BATCH["data"], BATCH)
    assert found == {
        "chamfer": 0,
        "jsd_bev": 0,
        "iou": 1,
        "range_mae": 0,
        "reflectance_mae": 0,
        "hit_accuracy": 1,
        "outside": 0,
    }
    assert {*found, *EVALUATOR.paired(moved(1), BATCH["data"], BATCH)} == set(EVALUATOR.better)


def test_numbers_are_those_of_the_points():
    found = EVALUATOR(moved(0.2), BATCH)
    assert found["range_mae"] == pytest.approx(0.2, abs=1e-4) and found["hit_accuracy"] == 1
    expected, counts = [], np.zeros(3)
    for ours, theirs in zip(moved(0.2), BATCH["data"], strict=True):
        sets = []
        for x in (ours, theirs):
            ranges = metres(x[0], FARTHEST)
            sets.append(back_project(ranges, BEAMS)[ranges > 0])
        expected.append((float(measures.chamfer(*sets)), measures.jsd_bev(*sets)))
        counts += measures.overlap(*sets, 0.5)
    assert (found["chamfer"], found["jsd_bev"]) == pytest.approx(np.mean(expected, 0).tolist())
    assert found["iou"] == pytest.approx(counts[0] / counts.sum()) and 0 < found["iou"] < 1
    assert EVALUATOR.paired(moved(2), moved(1), BATCH)["teacher_mae"] == pytest.approx(1, abs=1e-4)


def test_only_rays_that_were_not_given_count():
    x, rays = moved(3), is_given(BATCH["rays"])[:, None]
    kept = EVALUATOR(torch.where(rays, x, BATCH["data"]), BATCH)
    assert kept["range_mae"] == 0 and kept["chamfer"] > 0
    assert EVALUATOR(torch.where(rays, BATCH["data"], x), BATCH)["range_mae"] == pytest.approx(3, abs=1e-4)


def test_returns_that_are_missing_or_made_up_count():
    x = BATCH["data"].clone()
    x[:, :, :2, 12:] = torch.where(x[:, :1, :2, 12:] > -1, -1.0, 0.5)  # one quarter is the other way around
    assert EVALUATOR(x, BATCH)["hit_accuracy"] == pytest.approx(0.75)
    assert EVALUATOR(x, BATCH)["range_mae"] == 0  # where both have a return they are alike


def test_an_image_without_a_return_is_far_from_everything():
    found = EVALUATOR(torch.full_like(BATCH["data"], -1.0), BATCH)
    assert found["chamfer"] > 3 and found["iou"] == 0 and found["range_mae"] == FARTHEST
    assert all(np.isfinite(value) for value in found.values())


def test_reflectance_is_in_parts_of_the_whole():
    x = BATCH["data"].clone()
    x[:, 1] += 0.2
    assert EVALUATOR(x, BATCH)["reflectance_mae"] == pytest.approx(0.1)


BESIDE, POINTS = RangeEvaluator._beside, RangeEvaluator.points
FAULTS = [
    Mutation("all rays count", BESIDE, "& asked", "| asked", test_only_rays_that_were_not_given_count),
    Mutation("misses are far off", BESIDE, "(ours > 0) & ", "", test_returns_that_are_missing_or_made_up_count),
    Mutation("halves are whole", BESIDE, ".abs() / 2", ".abs()", test_reflectance_is_in_parts_of_the_whole),
    Mutation("misses are points", POINTS, "ranges > 0", "ranges >= 0", test_numbers_are_those_of_the_points),
]


@pytest.mark.parametrize("mutation", FAULTS, ids=str)
def test_faults_are_noticed(mutation):
    prove(mutation)


def test_samples_are_compared_with_the_images_of_their_rays():
    order = torch.tensor([4, 0, 5])
    some = {name: value[order] for name, value in BATCH.items()}
    assert EVALUATOR(some["data"], some)["chamfer"] == 0
    assert EVALUATOR(BATCH["data"][:3], some)["chamfer"] > 0
    with pytest.raises(ValueError, match="there is none for sample 1"):
        EVALUATOR(some["data"], {"rays": torch.cat([some["rays"][:1], -some["rays"][1:]])})


def test_baselines_and_floor():
    made = EVALUATOR.baselines(BATCH)
    assert list(made) == ["nearest beam", "between beams"]
    assert all(x.shape == BATCH["data"].shape and EVALUATOR(x, BATCH)["chamfer"] > 0 for x in made.values())
    floor = EVALUATOR.floor(9)  # more than there are
    assert 0 < floor["range_mae"] < 0.2 < min(EVALUATOR(x, BATCH)["range_mae"] for x in made.values())
    json.dumps([floor, EVALUATOR.describe()], allow_nan=False)


@pytest.mark.parametrize(
    "samples, message",
    [(BATCH["data"] * torch.nan, "NaN or infinity"), (BATCH["data"][:, :1], r"samples have shape \[1, 4, 24\]")],
)
def test_samples_that_cannot_be_measured_are_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        EVALUATOR(samples, BATCH)


# Pictures


def test_pictures_show_what_there_is():
    media = RangeMedia(BEAMS, FARTHEST)
    one = np.asarray(media.picture(BATCH["data"][:1]))
    assert (one != np.asarray(media.picture(moved(5)[:1]))).any()
    six = media.picture(BATCH["data"])
    assert six.width == 4 * one.shape[1] and six.height == 2 * one.shape[0]
    both = media.compare({"student": BATCH["data"], "real": BATCH["data"]}, BATCH)
    assert both.height == 4 * one.shape[0] and both.width > 4 * one.shape[1]
    lost = media.picture(BATCH["data"] * torch.nan)
    assert len(np.unique(np.asarray(lost))) == 2  # black, and white between the cells
    with pytest.raises(ValueError, match=r"N >= 1, got \[0, 2, 4, 24\]"):
        media.picture(BATCH["data"][:0])


def test_ahead_is_up_and_left_is_left():
    """In the view from above, below a range image of 2 x 4 x 11 pixels of height."""
    media, x = RangeMedia(BEAMS, FARTHEST), torch.full((1, 2, 4, 24), -1.0)
    x[0, 0, 2, 11] = levels(torch.tensor(20.0), FARTHEST)  # almost ahead
    x[0, 0, 2, 5] = levels(torch.tensor(20.0), FARTHEST)  # almost left
    drawn = np.asarray(media.picture(x))
    side = drawn.shape[1] - 6
    above = drawn[-6 - side : -6, :side].any(-1).nonzero()
    (top, ahead), (left_row, left) = zip(*above, strict=True)
    assert top < side / 4 and abs(ahead - side / 2) < side / 10
    assert left < side / 4 and abs(left_row - side / 2) < side / 10
