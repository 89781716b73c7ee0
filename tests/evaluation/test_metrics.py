"""Every metric against a closed form or a set of points small enough to do by hand."""

import itertools
import json
import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import Mutation, prove

from distillkit.evaluation import metrics
from distillkit.evaluation.samples import Diverged


def gaussian_set(mean, covariance, num=200, seed=0):
    """Points whose sample mean and (n - 1) covariance are exactly the given ones."""
    mean, covariance = torch.tensor(mean).double(), torch.tensor(covariance).double()
    x = torch.randn(num, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    root = torch.linalg.cholesky(x.T @ x / (num - 1))
    white = torch.linalg.solve_triangular(root, x.T, upper=False).T
    return mean + white @ torch.linalg.cholesky(covariance).T


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def cloud(seed, num=20, dim=3):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def test_frechet_of_two_gaussians_is_the_closed_form():
    scipy = pytest.importorskip("scipy.linalg")
    a = [[2.0, 0.7], [0.7, 0.5]]
    b = [[1.0, -0.3], [-0.3, 3.0]]  # does not commute with a
    root = scipy.sqrtm(torch.tensor(a).double().numpy() @ torch.tensor(b).double().numpy()).real
    expected = 3.0**2 + 4.0**2 + 2.5 + 4.0 - 2 * root.trace()
    found = metrics.frechet_distance(gaussian_set([0, 0], a), gaussian_set([3.0, -4.0], b, num=77, seed=1))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_has_the_unbiased_variance():
    # std sqrt(2) and 2 sqrt(2) by n - 1; by n they would be 1 and 2, and the distance 1
    assert metrics.frechet_distance(column(-1, 1), column(-2, 2)) == pytest.approx(2.0)


def test_frechet_survives_a_singular_covariance():
    flat = torch.cat([cloud(0), cloud(0)], dim=1)
    assert metrics.frechet_distance(flat, flat) == pytest.approx(0.0, abs=1e-6)
    assert metrics.frechet_distance(flat, flat + 1) == pytest.approx(6.0, rel=1e-6)


def test_standardise_uses_the_reference_and_drops_what_is_constant():
    reference = torch.tensor([[0.0, 5.0, 10.0], [2.0, 5.0, 30.0]])  # mean 1, 5, 20; std sqrt 2, 0, sqrt 200
    found = metrics.standardise(torch.tensor([[3.0, 7.0, 20.0]]), reference)
    assert found.tolist() == [pytest.approx([math.sqrt(2.0), 0.0])]
    with pytest.raises(metrics.TooFew, match="every feature is constant"):
        metrics.standardise(reference, torch.ones(4, 3))


def test_kernel_distance_by_hand():
    # k(1, 1) = 8, k(0, 0) = k(1, 0) = 1: 8 + 1 - 2
    assert metrics.kernel_distance(column(1, 1), column(0, 0)) == pytest.approx(7.0)
    # off the diagonal k_aa is 1; with it, the biased estimate would be 1.75 higher
    assert metrics.kernel_distance(column(0, 1), column(0, 0)) == pytest.approx(0.0)


def test_kernel_distance_divides_by_the_dimension():
    # x.y / D = 1 whatever D
    assert metrics.kernel_distance(torch.ones(2, 5), torch.zeros(2, 5)) == pytest.approx(7.0)


def test_kernel_distance_over_subsets_estimates_the_full_one_and_has_no_bias():
    a, b = cloud(0, 600), cloud(1, 500) * 1.5 + 0.3
    full = metrics.kernel_distance(a[:500], b)
    subsets = metrics.kernel_distance(a[:500], b, subsets=200, size=100)
    assert subsets == pytest.approx(full, rel=0.1)
    assert subsets == metrics.kernel_distance(a[:500], b, subsets=200, size=100)
    same = [metrics.kernel_distance(cloud(2 * i, 50), cloud(2 * i + 1, 50)) for i in range(100)]
    mean, error = torch.tensor(same).mean(), torch.tensor(same).std() / 10
    assert min(same) < 0 and abs(mean) < 3 * error  # the biased one is 0.4 here, the error below 0.05


def test_precision_and_recall_by_hand():
    real, fake = column(0, 1, 2, 3), column(4, 4.5)  # radii 1 and 0.5
    assert metrics.precision_recall(real, fake, k=1) == (0.5, 0.0)
    assert metrics.precision_recall(fake, real, k=1) == (0.0, 0.5)


def test_a_collapsed_model_is_precise_and_forgets():
    real = torch.cat([cloud(0, 50), cloud(1, 50) + 20])
    precision, recall = metrics.precision_recall(real, cloud(2, 50))
    assert precision > 0.8 and 0.3 < recall <= 0.5


def test_density_and_coverage_by_hand():
    real, fake = column(0, 1, 2, 3), column(0, 10)
    # k = 1: radius 1 everywhere; the fake at 0 lies in the balls of 0 and 1, the other in none
    assert metrics.density_coverage(real, fake, k=1) == (1.0, 0.5)
    # k = 2: radii 2, 1, 1, 2; the fake at 0 again lies in two balls, divided by k
    assert metrics.density_coverage(real, fake, k=2) == (0.5, 0.5)


def distances(a, b):
    """By differences: those of copies are 0, and those of copies from a third are equal."""
    return (a.double()[:, None] - b.double()).square().sum(-1).sqrt()


def naive_radii(x, k):
    others = distances(x, x).fill_diagonal_(math.inf)
    return others.sort(1).values[:, k - 1]


def naive_prdc(real, fake, k_pr, k_dc):
    """The definitions, word for word."""
    across, ball = distances(fake, real), naive_radii(real, k_dc)
    ball_pr, back, ball_fake = naive_radii(real, k_pr), distances(real, fake), naive_radii(fake, k_pr)
    return {
        "precision": float((across <= ball_pr).any(1).double().mean()),
        "recall": float((back <= ball_fake).any(1).double().mean()),
        "density": int((across <= ball).sum()) / (k_dc * len(fake)),
        "coverage": float((across <= ball).any(0).double().mean()),
    }


def grid(seed, num, dim=3, values=3):
    return torch.randint(values, (num, dim), generator=torch.Generator().manual_seed(seed)).double()


def half_copied(num=40, dim=50):
    """A real set, and one that holds each of its first half twice."""
    real = cloud(0, num, dim)
    return real, real[: num // 2].repeat(2, 1)


def line(height):
    """Points 2 apart on a line, so that the third neighbour of most is 4 away."""
    return torch.stack([2 * torch.arange(30.0), torch.full((30,), height)], 1)


# Real and fake sets. In the last but one, points lie on the spheres of a set that is far from the
# mean of the other.
SETS = {
    "plain": (cloud(0, 30), cloud(1, 23) + 0.2),
    "narrow": (cloud(0, 40), cloud(1, 40) * 0.6),
    "ties": (grid(0, 40), grid(1, 30)),
    "copies": half_copied(),
    "repeated": (cloud(0, 12, 20).repeat(3, 1), torch.cat([cloud(0, 12, 20), cloud(1, 9, 20)])),
    "equal": (cloud(0, 35, 60), cloud(0, 35, 60)),
    "collapsed": (cloud(0, 20), cloud(0, 1).repeat(20, 1)),
    "constant": (torch.ones(20, 3), torch.ones(20, 3)),
    "far": (cloud(0, 30, 20).double() + 1e6, torch.cat([cloud(0, 10, 20), cloud(1, 10, 20)]).double() + 1e6),
    "outlier": (cloud(0, 30, 20), torch.cat([cloud(0, 30, 20), torch.full((1, 20), 1e4)])),
    "spheres": (torch.cat([line(4.0), line(4.0)[:17] - 9999]), line(0.0)),
    "wide": (cloud(0, 30, 700), cloud(1, 30, 700)),
}


def check_prdc(name, chunk, k_pr=3, k_dc=5):
    real, fake = SETS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "CHUNK", chunk)
        found = metrics.prdc(real, fake, precision_recall=k_pr, density_coverage=k_dc)
        assert found == naive_prdc(real, fake, k_pr, k_dc)
        assert metrics.precision_recall(real, fake, k_pr) == (found["precision"], found["recall"])
        assert metrics.density_coverage(real, fake, k_dc) == (found["density"], found["coverage"])


@pytest.mark.parametrize("chunk", [3, 20, 1024])
@pytest.mark.parametrize("name", SETS)
def test_precision_recall_density_coverage_are_their_definitions(name, chunk):
    check_prdc(name, chunk)


@pytest.mark.parametrize("k", [(1, 1), (5, 3), (11, 19)])
def test_any_number_of_neighbours_up_to_all_others(k):
    for name in ("collapsed", "ties"):
        check_prdc(name, 9, *k)


def check_nearest(name, chunk):
    real, fake = SETS[name]
    expected = distances(fake, real).amin(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "CHUNK", chunk)
        mean, low = metrics.nearest_distance(fake, real)
    assert mean == pytest.approx(float(expected.mean()), rel=1e-12)
    assert low == pytest.approx(float(expected.quantile(0.05)), rel=1e-12)


@pytest.mark.parametrize("chunk", [7, 1024])
@pytest.mark.parametrize("name", SETS)
def test_the_nearest_distance_is_its_definition_and_0_for_copies(name, chunk):
    check_nearest(name, chunk)


@pytest.mark.parametrize("name", ["plain", "ties", "repeated", "wide", "far"])
def test_the_energy_distance_is_its_definition(name):
    a, b = SETS[name]
    expected = 2 * distances(a, b).mean() - distances(a, a).mean() - distances(b, b).mean()
    assert metrics.energy_distance(a, b) == pytest.approx(float(expected), rel=1e-9, abs=1e-12)
    assert metrics.energy_distance(a, a) == 0


def check_kept():
    """What a set keeps changes no number, whatever it was compared with before."""
    real, models = cloud(0, 60), [cloud(1, 50) + 0.1, cloud(2, 50) * 0.9, cloud(3, 41)]
    kept = metrics.Points(real)
    for fake in models:
        for name, metric in TWO_SETS.items():
            few = {"subsets": 3, "size": 20} if name == "kernel" else {}
            assert metric(fake, kept, **few) == metric(fake, real, **few), name
            assert metric(kept, fake, **few) == metric(real, fake, **few), name
        assert metrics.standardise(fake, kept).equal(metrics.standardise(fake, real))


def test_a_set_is_compared_with_many_as_with_each():
    check_kept()


def test_what_belongs_to_a_set_is_found_once(monkeypatch):
    found = []
    for module, name in ((metrics, "_nearest"), (metrics, "_kernel_within"), (torch.linalg, "eigh")):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, of=name, plain=plain: (found.append(of), plain(*args))[1])
    real = metrics.Points(cloud(0, 60))
    for seed in range(1, 4):
        fake = cloud(seed, 50)
        metrics.frechet_distance(fake, real)
        metrics.kernel_distance(fake, real)
        metrics.prdc(real, fake, precision_recall=3, density_coverage=5)
    assert [found.count(name) for name in ("_nearest", "_kernel_within", "eigh")] == [1 + 3, 1 + 3, 1 + 3]


@pytest.mark.parametrize("half", [True, False])
def test_tiles_are_bounded_and_hold_every_pair_once(half, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 4)
    x = metrics.Points(cloud(0, 11))
    seen = torch.zeros(11, 11)
    for i, j, squared in metrics._tiles(x, x, "", half=half):
        assert max(squared.shape) <= 4
        assert torch.allclose(squared, distances(x.points_ND[i], x.points_ND[j]).square(), atol=1e-12)
        seen[i, j] += 1
        if half and i != j:
            seen[j, i] += 1
    assert (seen == 1).all()


def test_long_passes_show_their_progress(monkeypatch):
    shown = []
    monkeypatch.setattr(metrics, "counted", lambda what, total: (shown.append((what, total)), range(total))[1])
    a, b = cloud(0, 12), cloud(1, 16)
    for name in ("density_coverage", "nearest", "energy"):
        TWO_SETS[name](a, b)
    assert not shown
    monkeypatch.setattr(metrics, "CHUNK", 2)
    metrics.nearest_distance(a, b)
    metrics.density_coverage(a, b)
    assert [total for _, total in shown] == [6 * 8, 6 * 8]  # those within a set of twelve are 21, too few to tell
    metrics.kernel_distance(a, b, subsets=2, size=5)
    assert shown[-1] == ("kernel distance", 2)


def test_nothing_is_made_elsewhere_than_the_features():
    """The default device is one that holds no numbers."""
    a, b = cloud(0, 30), cloud(1, 25)
    expected = {name: metric(a, b) for name, metric in TWO_SETS.items()}
    few = metrics.kernel_distance(a, b, subsets=2, size=9)
    with torch.device("meta"):
        assert {name: metric(a, b) for name, metric in TWO_SETS.items()} == expected
        assert metrics.kernel_distance(a, b, subsets=2, size=9) == few


def everywhere():
    for name in ("plain", "ties", "copies", "constant", "far", "spheres"):
        check_prdc(name, 16)
        check_nearest(name, 16)


FAULTS = [
    (metrics.Points.radius, "k off by one", "[:, k - 1]", "[:, k - 2]"),
    (metrics.Points.radius, "ties by chance", "radius_N + _rounding(self.shape[1])", "radius_N + 0"),
    (metrics.Points.radius, "the rounding of the own tiles alone", "(self.mean_D, centre_D)", "(self.mean_D,)"),
    (metrics.Points.radius, "a rounding far too large", "_rounding(self.shape[1])", "1e-3"),
    (metrics.prdc, "recall by the radius of the real set", "reach_M[i, None]", "own[precision_recall][j]"),
    (metrics.prdc, "precision by the balls of density", "<= own[precision_recall]", "<= own[density_coverage]"),
    (metrics.prdc, "density by the balls of precision", "<= own[density_coverage]", "<= own[precision_recall]"),
    (metrics.prdc, "< for <= in precision", "<= own[precision_recall]", "< own[precision_recall]"),
    (metrics.prdc, "< for <= in recall", "<= reach_M", "< reach_M"),
    (metrics.prdc, "< for <= in density", "<= own[density_coverage]", "< own[density_coverage]"),
    (metrics.prdc, "the last tile alone covers", "covered_N[j] |=", "covered_N[j] ="),
    (metrics._nearest, "a point is its own neighbour", "if i == j", "if False"),
    (metrics._nearest, "half of the neighbours", "add(j, squared_IJ.T)", "pass"),
    (metrics._tiles, "an offset costs digits", "a.points_ND[i] - b.mean_D", "a.points_ND[i] + 0"),
    (metrics.nearest_distance, "the place within the tile", "j.start + where_I", "where_I"),
    (metrics.nearest_distance, "of the last tile", "torch.where(least_I < squared_N[i], ", "torch.where(least_I < 1e9, "),
]  # fmt: skip


@pytest.mark.parametrize("function, says, old, new", FAULTS, ids=[fault[1] for fault in FAULTS])
def test_the_definitions_notice(function, says, old, new):
    prove(Mutation(says, function, old, new, everywhere))


def test_kept_kernels_are_those_of_the_same_draws():
    prove(Mutation("", metrics.kernel_distance, "(len(a), subsets, size, seed)", "(subsets, size, seed)", check_kept))


def test_nearest_distance_by_hand():
    mean, low = metrics.nearest_distance(column(0, 3), column(1, 10))  # distances 1 and 2
    assert mean == pytest.approx(1.5) and low == pytest.approx(1.05)


def test_sliced_wasserstein_by_hand():
    assert metrics.sliced_wasserstein(column(0, 1), column(0.5)) == pytest.approx(0.5)
    # quantiles: [0, 1/3] 0 - 0, [1/3, 1/2] 0 - 1, [1/2, 2/3] 3 - 1, [2/3, 1] 3 - 3: (1 + 4) / 6
    assert metrics.sliced_wasserstein(column(3, 0), column(1, 3, 0)) == pytest.approx(math.sqrt(5 / 6))


def test_sliced_wasserstein_of_gaussians():
    x = gaussian_set([0.0], [[1.0]], num=500)
    rms = float(x.square().mean().sqrt())
    assert metrics.sliced_wasserstein(x, x + 3) == pytest.approx(3.0)
    assert metrics.sliced_wasserstein(x, 0.5 * x) == pytest.approx(0.5 * rms)  # |s_a - s_b|
    plane = cloud(0, 100, 2)
    shift = torch.tensor([3.0, 4.0])
    assert metrics.sliced_wasserstein(plane, plane + shift, 4096) == pytest.approx(5 / math.sqrt(2), rel=0.02)


def test_energy_distance_by_hand():
    assert metrics.energy_distance(column(0), column(1)) == pytest.approx(2.0)
    assert metrics.energy_distance(column(0, 2), column(1)) == pytest.approx(1.0)  # 2 * 1 - (0 + 2 + 2 + 0) / 4


TWO_SETS = {
    "frechet": metrics.frechet_distance,
    "kernel": metrics.kernel_distance,
    "precision_recall": metrics.precision_recall,
    "density_coverage": metrics.density_coverage,
    "nearest": metrics.nearest_distance,
    "sliced_wasserstein": metrics.sliced_wasserstein,
    "energy": metrics.energy_distance,
}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), num=st.integers(6, 30))
@pytest.mark.parametrize("name", TWO_SETS)
def test_order_and_a_common_permutation_of_features_do_not_matter(name, seed, num):
    a, b = cloud(seed, num), cloud(seed + 1, 15) + 0.5
    shuffled = b[torch.randperm(15, generator=torch.Generator().manual_seed(seed))]
    assert TWO_SETS[name](a, shuffled) == pytest.approx(TWO_SETS[name](a, b), rel=1e-9, abs=1e-9)
    if name != "sliced_wasserstein":  # its directions are drawn, so only their law is invariant
        assert TWO_SETS[name](a.flip(1), b.flip(1)) == pytest.approx(TWO_SETS[name](a, b), rel=1e-9, abs=1e-9)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), times=st.tuples(st.integers(1, 4), st.integers(1, 4)))
@pytest.mark.parametrize("name", ["sliced_wasserstein", "energy"])
def test_repeating_a_whole_set_leaves_its_law_alone(name, seed, times):
    a, b = cloud(seed, 7), cloud(seed + 1, 5)
    found = TWO_SETS[name](a.repeat(times[0], 1), b.repeat(times[1], 1))
    assert found == pytest.approx(TWO_SETS[name](a, b), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", ["frechet", "kernel", "sliced_wasserstein", "energy"])
def test_distances_are_symmetric(name):
    a, b = cloud(0, 20), cloud(1, 20) * 2 + 1
    assert TWO_SETS[name](a, b) == pytest.approx(TWO_SETS[name](b, a), rel=1e-9)


@pytest.mark.parametrize("name", ["precision_recall", "density_coverage", "nearest", "energy"])
def test_blocks_do_not_change_the_result(name, monkeypatch):
    a, b = cloud(0, 23), cloud(1, 17)
    whole = TWO_SETS[name](a, b)
    monkeypatch.setattr(metrics, "CHUNK", 4)
    assert TWO_SETS[name](a, b) == pytest.approx(whole, rel=1e-12)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    metrics.kernel_distance(cloud(0), cloud(1), size=5)
    metrics.sliced_wasserstein(cloud(0), cloud(1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name, bad", list(itertools.product(TWO_SETS, ["nan", "shape"])))
def test_bad_features_are_refused(name, bad):
    a, b = cloud(0), cloud(1)
    if bad == "nan":
        b[3, 1] = float("nan")
    else:
        b = b[:, :2]
    error, said = (Diverged, "NaN or infinity") if bad == "nan" else (ValueError, "one D for both")
    with pytest.raises(error, match=said):
        TWO_SETS[name](a, b)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="at least 4 points in each set, got 3"):
        metrics.precision_recall(cloud(0, 3), cloud(1), k=3)
    with pytest.raises(ValueError, match="at least 2 points"):
        metrics.frechet_distance(cloud(0, 1), cloud(1))
    with pytest.raises(metrics.TooFew, match=r"k = 5 neighbours need 1 <= k < number of points, got 5 points"):
        metrics.density_coverage(cloud(0, 5), cloud(1), k=5)
    with pytest.raises(metrics.TooFew, match="at least 4 points in each set, got 3"):
        metrics.prdc(metrics.Points(cloud(0, 3)), cloud(1), precision_recall=3, density_coverage=2)
    with pytest.raises(ValueError, match=r"got \[20, 3\] and \[20, 2\]"):
        metrics.energy_distance(metrics.Points(cloud(0)), cloud(1, 20, 2))


# What noise may do to a metric

ESTIMATES = {
    "frechet": metrics.frechet_distance,
    "energy": metrics.energy_distance,
    "sliced": partial(metrics.sliced_wasserstein, num_projections=8),
}


def check_influence(name, shift=0.0, scale=0.7):
    """To first order in 1 / N the jackknife's pseudo-values are the influences."""
    measure, num = ESTIMATES[name], 200
    x, y = scale * cloud(1, num) + shift, metrics.Points(cloud(2, 250))
    whole = measure(x, y)
    assert abs(float(whole.influence.mean())) < 1e-12 and whole.influence.shape == (num,)
    left = [(num - 1) * (whole - measure(torch.cat([x[:i], x[i + 1 :]]), y)) for i in range(0, num, 10)]
    left, influence = torch.tensor(left), whole.influence[::10]
    left, influence = left - left.mean(), influence - influence.mean()
    assert float((left - influence).norm() / left.norm()) < 0.15


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.parametrize("shift, scale", [(0.5, 1.0), (0.0, 0.7), (0.0, 1.0)])
def test_the_influence_of_a_sample_is_what_leaving_it_out_changes(name, shift, scale):
    check_influence(name, shift, scale)


@pytest.mark.parametrize("name", ESTIMATES)
def test_margins_are_as_wide_as_metrics_scatter(name):
    """Of a metric, and of the difference of two models that began from the same noise."""
    measure, y, found = ESTIMATES[name], metrics.Points(cloud(1, 400)), []
    for seed in range(60):
        noise = cloud(10 + seed, 100)
        one, two = measure(0.8 * noise + 0.2, y), measure(0.85 * noise + 0.25, y)
        found.append([one, metrics.margin(one), two - one, metrics.margin(two, one)])
    value, margin, apart, between = torch.tensor(found).double().T
    assert float(margin.mean() / (1.96 * value.std())) == pytest.approx(1, abs=0.25)
    assert float(between.mean() / (1.96 * apart.std())) == pytest.approx(1, abs=0.25)
    assert between.mean() < margin.mean() / 2  # what both have in common does not count


NOISE = [
    (metrics.frechet_distance, "the gap once", "2 * centred_ND", "1 * centred_ND", "frechet", 0.5),
    (metrics.frechet_distance, "the gap turned", "a.mean_D - b.mean_D", "b.mean_D - a.mean_D", "frechet", 0.5),
    (metrics.frechet_distance, "no map", "- (centred_ND @ map_DK).square().sum(1)", "", "frechet", 0.0),
    (metrics.frechet_distance, "the inverse for the root", "values[kept] ** 0.25", "values[kept] ** 0.5", "frechet", 0.0),
    (metrics.energy_distance, "once", "2 * (across_N", "1 * (across_N", "energy", 0.0),
    (metrics.energy_distance, "of the reference alone", "across_N - a.mean_distances", "across_N", "energy", 0.0),
    (metrics.sliced_wasserstein, "the way turned", "n * width", "-n * width", "sliced", 0.5),
    (metrics.sliced_wasserstein, "half of the way", "way_NP[1:] + way_NP[:-1]", "way_NP[1:]", "sliced", 0.5),
    (metrics.sliced_wasserstein, "of the square", "/ (2 * distance)", "/ 1", "sliced", 0.0),
    (metrics.sliced_wasserstein, "the order of the line", "order_a, along_NP", "order_a.sort(0)[0], along_NP", "sliced", 0.0),
]  # fmt: skip


@pytest.mark.parametrize("function, says, old, new, name, shift", NOISE, ids=[fault[1] for fault in NOISE])
def test_the_jackknife_notices(function, says, old, new, name, shift):
    prove(Mutation(says, function, old, new, partial(check_influence, name, shift)))


def test_points_of_a_sample_are_one_sample():
    """Places of an image are alike: as many independent points would scatter far less."""
    x, y = cloud(1, 50) * 0.8, metrics.Points(cloud(2, 500))
    alone = metrics.frechet_distance(x, y)
    copied = metrics.frechet_distance(x.repeat_interleave(20, 0), y, each=20)
    assert copied.influence.shape == (50,)
    assert metrics.margin(copied) == pytest.approx(metrics.margin(alone), rel=0.1)
    apart = metrics.margin(metrics.frechet_distance(x.repeat_interleave(20, 0), y))
    assert apart < metrics.margin(alone) / 4


def test_a_set_without_spread_has_a_margin_of_nothing():
    same = metrics.frechet_distance(torch.ones(8, 3), cloud(2, 50))
    assert same > 0 and metrics.margin(same) == 0


def test_margins_of_means():
    values = torch.tensor([0.0, 1.0, 1.0, 1.0])
    share = metrics.Estimate.mean(values > 0)
    assert share == 0.75 and metrics.margin(share) == pytest.approx(1.96 * 0.5 / 2)  # std with n - 1: 0.5
    assert metrics.margin(share, metrics.Estimate.mean(values)) == 0
    assert metrics.margin(share, metrics.Estimate.mean(1 - values)) == pytest.approx(1.96 / 2)
    unknown = (0.75, metrics.Estimate(0.75), metrics.Estimate.mean(values[:3]))
    assert [metrics.margin(share, other) for other in unknown] == [None] * 3
    assert metrics.margin(0.75) is None and metrics.margin(metrics.Estimate.mean(values[:1])) is None
    assert json.dumps({"share": share}) == '{"share": 0.75}' and float(deepcopy(share)) == 0.75
