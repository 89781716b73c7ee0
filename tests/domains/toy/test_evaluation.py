"""The toy evaluator against samples made wrong in one known way."""

import math

import pytest
import torch

from distillkit.diffusion.process import VarianceExploding
from distillkit.evaluation.samples import Diverged
from distillkit.teachers.exact import ExactTeacher, Mixture
from domains.toy.evaluation import ToyEvaluator, mode_distances
from domains.toy.media import ToyMedia, _marginal

NUM = 4096
COVARIANCE = [[4.0, 1.2], [1.2, 1.0]]  # std 2 and 1, correlation 0.6
MEANS, STD, WEIGHTS = [[-5.0, 0.0], [5.0, 0.0], [0.0, 5.0]], 0.5, [0.2, 0.3, 0.5]


def gaussian():
    return ExactTeacher(Mixture([[1.0, -1.0]], [COVARIANCE]), VarianceExploding())


def three_modes(**kwargs):
    round_ = [[[STD**2, 0.0], [0.0, STD**2]]] * 3
    return ExactTeacher(Mixture(MEANS, round_, WEIGHTS, kwargs.pop("labels", None)), VarianceExploding(), **kwargs)


def draw(teacher, num=NUM, seed=7):
    return teacher.exact_samples(num, torch.Generator().manual_seed(seed))["data"]


@pytest.mark.parametrize("teacher", [gaussian(), three_modes()])
def test_exact_samples_reach_the_floor(teacher):
    evaluator = ToyEvaluator(teacher)
    floor, found = evaluator.floor(), evaluator(draw(teacher), {})
    assert set(floor) == set(found) == set(evaluator.better) and evaluator.headline in found
    for name in ("std_error", "correlation_error", "mean_error"):
        assert max(floor[name], found[name]) < 5 / math.sqrt(NUM)
    assert found == evaluator(draw(teacher), {})


def test_moments_of_a_gaussian():
    teacher = gaussian()
    evaluator, x, mean = ToyEvaluator(teacher), draw(teacher), torch.tensor([1.0, -1.0])
    wide = evaluator((x - mean) * torch.tensor([1.0, 1.3]) + mean, {})
    assert wide["std_error"] == pytest.approx(0.3, abs=0.05) and wide["correlation_error"] < 0.05
    narrow = evaluator((x - mean) * 0.5 + mean, {})
    assert narrow["std_error"] == pytest.approx(0.5, abs=0.03)
    # W_2 along direction u is 0.5 sqrt(u'Cu), so the mean square is 0.25 tr(C) / 2
    assert narrow["sliced_w2"] == pytest.approx(math.sqrt(0.25 * 5.0 / 2), rel=0.1)
    shifted = evaluator(x + torch.tensor([1.0, 0.0]), {})
    assert shifted["mean_error"] == pytest.approx(0.5, abs=0.1) and shifted["std_error"] < 0.05  # std is 2
    mirrored = evaluator((x - mean) * torch.tensor([1.0, -1.0]) + mean, {})
    assert mirrored["correlation_error"] == pytest.approx(1.2, abs=0.05) and mirrored["std_error"] < 0.05
    assert mirrored["sliced_w2"] > 5 * evaluator.floor()["sliced_w2"]


def test_a_collapsed_student_is_all_wrong():
    evaluator = ToyEvaluator(gaussian())
    found = evaluator(torch.tensor([[1.0, -1.0]]).expand(100, 2), {})
    assert found["std_error"] == 1.0 and found["correlation_error"] == pytest.approx(0.6)
    assert found["mean_error"] == pytest.approx(0.0)


def on_modes(counts, std=STD):
    rng = torch.Generator().manual_seed(3)
    centres = torch.tensor(MEANS).repeat_interleave(torch.tensor(counts), dim=0)
    return centres + std * torch.randn(len(centres), 2, generator=rng)


def test_mode_weights():
    evaluator = ToyEvaluator(three_modes())
    right = evaluator(on_modes([800, 1200, 2000]), {})
    assert right["weight_error"] == pytest.approx(0.0, abs=1e-6) and right["modes_found"] == 3
    assert right["mode_std_error"] < 0.05 and right["outliers"] < 2e-3
    uneven = evaluator(on_modes([1200, 800, 2000]), {})  # 0.2 -> 0.3 is the worst relative error
    assert uneven["weight_error"] == pytest.approx(0.5)
    assert uneven["sliced_w2"] > 3 * right["sliced_w2"]


def test_a_dropped_mode_is_seen():
    found = ToyEvaluator(three_modes())(on_modes([0, 1500, 2500]), {})
    assert found["modes_found"] == 2 and found["weight_error"] == pytest.approx(1.0)
    nearly = ToyEvaluator(three_modes())(on_modes([10, 1490, 2500]), {})  # 0.25 % where 20 % should be
    assert nearly["modes_found"] == 2


def test_sharpened_modes_are_seen_where_moments_hardly_notice():
    found = ToyEvaluator(three_modes())(on_modes([800, 1200, 2000], std=STD / 2), {})
    assert found["mode_std_error"] == pytest.approx(0.5, abs=0.03)
    assert found["weight_error"] < 1e-6 and found["std_error"] < 0.05


def test_outliers_are_counted_and_do_not_count_as_spread():
    x = on_modes([800, 1200, 2000])
    x[:200] = torch.tensor([0.0, -1.0])  # between the modes, 10 std away
    found = ToyEvaluator(three_modes())(x, {})
    assert found["outliers"] == pytest.approx(0.05, abs=2e-3) and found["mode_std_error"] < 0.05


def test_distances_follow_the_shape_of_a_mode():
    law = Mixture([[0.0, 0.0], [9.0, 9.0]], [[[4.0, 0.0], [0.0, 1.0]], COVARIANCE])
    x = torch.tensor([[4.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    found = mode_distances(law, x)
    assert found[:, 0].tolist() == pytest.approx([2.0, 4.0])
    gap, inverse = torch.tensor([-5.0, -9.0]).double(), torch.tensor(COVARIANCE).double().inverse()
    assert float(found[0, 1]) == pytest.approx(float((gap @ inverse @ gap).sqrt()))


def test_classes_are_those_asked_for():
    teacher = three_modes(labels=[0, 1, 1], classes={"label": 2})
    evaluator = ToyEvaluator(teacher)
    batch = teacher.exact_samples(NUM, torch.Generator().manual_seed(3))
    assert evaluator(batch["data"], {"label": batch["label"]})["class_agreement"] > 0.999
    assert evaluator(batch["data"], {"label": 1 - batch["label"]})["class_agreement"] < 0.001
    assert evaluator.floor()["class_agreement"] > 0.999 and evaluator.better["class_agreement"] == "higher"


def test_bad_samples_are_refused():
    evaluator = ToyEvaluator(gaussian())
    with pytest.raises(ValueError, match=r"got \[10, 3\]"):
        evaluator(torch.zeros(10, 3), {})
    with pytest.raises(Diverged, match="1 of 10 samples hold NaN"):
        evaluator(torch.zeros(10, 2).index_fill(0, torch.tensor([4]), float("inf")), {})


def test_the_marginal_is_that_of_the_law():
    law = Mixture([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], [torch.diag(torch.tensor([1.0, 4.0, 9.0])).tolist()] * 2, [1, 3])
    marginal = _marginal(law, 2)
    assert torch.allclose(marginal.mean, law.mean[:2])
    assert torch.allclose(marginal.covariance, law.covariance[:2, :2])


def red(picture):
    """Columns and rows, in [0, 1], of the points drawn."""
    import numpy as np

    pixels = np.asarray(picture).astype(int)
    rows, columns = np.nonzero(pixels[..., 0] - pixels[..., 1:].max(-1) > 60)
    return columns / picture.width, rows / picture.height


def test_the_picture_shows_points_where_they_are():
    media = ToyMedia(three_modes())
    picture = media.picture(torch.tensor([[5.0, 0.0]]).expand(50, 2), {})
    assert picture.size == (400, 400)
    columns, _ = red(picture)
    assert len(columns) and columns.min() > 0.5  # on the right
    _, rows = red(media.picture(torch.tensor([[0.0, 5.0]]).expand(50, 2)))
    assert len(rows) and rows.max() < 0.5  # above


def test_compare_shows_panels_side_by_side():
    sheet = ToyMedia(gaussian()).compare({"teacher": torch.zeros(9, 2), "student": torch.full((9, 2), float("nan"))})
    assert sheet.size == (800, 400)
    assert ToyMedia(gaussian()).compare({f"step {i}": torch.zeros(9, 2) for i in range(6)}).size == (2000, 800)


def test_one_dimension_and_three_are_drawn_too():
    for dim in (1, 3):
        teacher = ExactTeacher(Mixture(torch.zeros(1, dim), torch.eye(dim)[None]), VarianceExploding())
        assert ToyMedia(teacher).picture(draw(teacher, 100)).size == (400, 400)
        assert set(ToyEvaluator(teacher).floor()) >= {"sliced_w2", "std_error"}
