"""Range images beside the held-out ones of the same rays, and pictures of them."""

import json

import numpy as np
import pytest
import torch
from mutations import Mutation, prove

from distillkit.evaluation.samples import Diverged
from domains.lidar.evaluation import compare
from domains.lidar.media import CELL, GAP
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
    best = dict.fromkeys(found, 0.0) | {name: 1.0 for name, way in EVALUATOR.better.items() if way == "higher"}
    assert found == best
    assert {*found, *EVALUATOR.paired(moved(1), BATCH["data"], BATCH)} == set(EVALUATOR.better)


def test_numbers_are_those_of_the_points():
    found = EVALUATOR(moved(0.2), BATCH)
    assert found["range_mae"] == pytest.approx(0.2, abs=1e-4) and found["hit_accuracy"] == 1
    sets = []
    for images in (moved(0.2), BATCH["data"]):
        ranges = metres(images[:, 0], FARTHEST)
        sets.append([back_project(each, BEAMS)[each > 0] for each in ranges])
    expected = compare(*sets)
    assert {name: found[name] for name in expected} == pytest.approx(expected) and 0 < expected["iou_0.5"] < 1
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
    assert found["chamfer"] > 3 and found["iou_0.5"] == 0 and found["range_mae"] == FARTHEST
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
    with pytest.raises((ValueError, Diverged), match=message):
        EVALUATOR(samples, BATCH)


# Pictures


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_pictures_show_what_there_is():
    media = RangeMedia(BEAMS, FARTHEST)
    one = pixels(media.picture(BATCH["data"][:1]))
    assert (one != pixels(media.picture(moved(5)[:1]))).any()
    six = media.picture(BATCH["data"])
    assert six.width == 4 * (CELL + GAP) + GAP and six.height == 2 * (len(one) - GAP) + GAP
    both = media.compare({"student": BATCH["data"], "real": BATCH["data"], "teacher": moved(1)}, BATCH)
    assert both.width == 5 * (CELL + GAP) + GAP and both.height > six.height
    assert pixels(media.picture(BATCH["data"] * torch.nan)).shape == six.size[::-1] + (3,)
    with pytest.raises(ValueError, match=r"N >= 1, got \[0, 2, 4, 24\]"):
        media.picture(BATCH["data"][:0])
    with pytest.raises(ValueError, match="nothing to compare"):
        media.compare({}, BATCH)


def test_ahead_is_up_and_left_is_left():
    """In the view from above, at the lower end of the picture."""
    media, x = RangeMedia(BEAMS, FARTHEST), torch.full((1, 2, 4, 24), -1.0)
    places = {}
    for name, column in (("ahead", 11), ("left", 5)):
        seen = x.clone()
        seen[0, 0, 2, column] = levels(torch.tensor(20.0), FARTHEST)
        view = [pixels(media.picture(each))[-CELL - GAP : -GAP, GAP : GAP + CELL] for each in (seen, x)]
        places[name] = np.argwhere((view[0] != view[1]).any(-1)).mean(0) / CELL
    assert places["ahead"] == pytest.approx([0.10, 0.45], abs=0.02)  # 7.5 degrees to the left
    assert places["left"] == pytest.approx([0.55, 0.10], abs=0.02)  # 97.5 degrees


def test_files_hold_the_points(tmp_path):
    x = torch.cat([BATCH["data"][:1], torch.full_like(BATCH["data"][:1], -1.0)])
    paths = RangeMedia(BEAMS, FARTHEST).save(x, {"rays": BATCH["rays"][:2]}, tmp_path)
    assert [path.name for path in paths] == ["scene_0.ply", "scene_0.bin", "scene_1.ply", "scene_1.bin", "scenes.html"]
    points = np.fromfile(tmp_path / "scene_0.bin", "<f4").reshape(-1, 4)[:, :3]
    np.testing.assert_allclose(points, EVALUATOR.points(x[0]).numpy(), rtol=1e-6)
