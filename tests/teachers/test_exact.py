"""Exact teachers against integration, autograd and the equation of the flow."""

import copy
import math

import pytest
import torch
from helpers import PROCESSES, f64, gaussian

from distillkit.diffusion.process import RectifiedFlow, VarianceExploding
from distillkit.networks.mlp import MLP
from distillkit.spec import from_spec, to_spec
from distillkit.teachers.exact import CorrectedDenoiser, ExactDenoiser, ExactTeacher, Mixture

MEANS, VARIANCES, WEIGHTS, LABELS = [-1.2, 0.4, 2.0], [0.3, 0.05, 0.6], [1.0, 2.0, 0.5], [0, 1, 0]
TILTED = [[[0.8, 0.3], [0.3, 0.4]], [[0.2, -0.1], [-0.1, 0.3]]]


def line():
    """Three Gaussians on a line in two classes."""
    return Mixture([[m] for m in MEANS], [[[v]] for v in VARIANCES], WEIGHTS, LABELS)


def plane():
    return Mixture([[1.0, -0.5], [-1.0, 0.8]], TILTED, [0.3, 0.7])


def density(x, components):
    """The density of the clean mixture restricted to some components, written independently."""
    total = sum(WEIGHTS[k] for k in components)
    parts = [
        WEIGHTS[k]
        / total
        * torch.exp(-((x - MEANS[k]) ** 2) / (2 * VARIANCES[k]))
        / math.sqrt(2 * math.pi * VARIANCES[k])
        for k in components
    ]
    return sum(parts)


@pytest.mark.parametrize("label, components", [(None, [0, 1, 2]), (0, [0, 2]), (1, [1]), (2, [0, 1, 2])])
@pytest.mark.parametrize("alpha, sigma", [(1.0, 0.4), (0.6, 0.8), (0.05, 0.99)])
def test_denoiser_and_density_by_integration(alpha, sigma, label, components):
    """E[x_0 | x_t] and p(x_t) on a fine grid of x_0; label 2 is the null class."""
    x_0 = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    x_t = torch.linspace(-2.5, 2.5, 7, dtype=torch.float64)[:, None]
    likelihood = torch.exp(-((x_t - alpha * x_0) ** 2) / (2 * sigma**2)) / math.sqrt(2 * math.pi * sigma**2)
    joint = density(x_0, components) * likelihood
    marginal = torch.trapezoid(joint, x_0)
    mean = torch.trapezoid(joint * x_0, x_0) / marginal
    label, (alpha, sigma) = None if label is None else torch.full((7,), label), f64(alpha, sigma)
    torch.testing.assert_close(line().denoise(x_t, alpha, sigma, label)[:, 0], mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(line().log_prob(x_t, alpha, sigma, label), marginal.log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("label, components", [(0, [0, 2]), (1, [1])])
def test_the_posterior_of_a_class_is_its_share_of_the_density(label, components):
    """Far from all components too, where the densities themselves are zero."""
    x = torch.linspace(-2.5, 2.5, 7, dtype=torch.float64)[:, None]
    share = sum(WEIGHTS[k] for k in components) / sum(WEIGHTS)
    expected = (share * density(x, components) / density(x, [0, 1, 2])).log()[:, 0]
    torch.testing.assert_close(line().log_posterior(x, torch.full((7,), label)), expected, rtol=1e-9, atol=1e-9)
    far = torch.tensor([[-90.0], [90.0]], dtype=torch.float64, requires_grad=True)
    found = line().log_posterior(far, torch.full((2,), label))
    (slope,) = torch.autograd.grad(found.sum(), far)
    assert found.isfinite().all() and slope.isfinite().all() and (label == 0 or slope.abs().min() > 1)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_score_is_the_slope_of_the_density(process):
    """In the plane with tilted covariances: autograd of log p_t against (alpha D - x) / sigma^2."""
    exact = ExactDenoiser(plane(), process)
    t = process.from_ratio(torch.logspace(-1.3, 1.3, 6, dtype=torch.float64))
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    log = exact.mixture.log_prob(x, process.alpha(t), process.sigma(t))
    (slope,) = torch.autograd.grad(log.sum(), x)
    torch.testing.assert_close(exact.score(x, t).detach(), slope, rtol=1e-7, atol=1e-8)


def test_density_in_the_plane_is_torchs():
    mixture, x = plane(), torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alpha, sigma = 0.7, 0.5
    covariances = alpha**2 * torch.tensor(TILTED).double() + sigma**2 * torch.eye(2).double()
    components = torch.distributions.MultivariateNormal(alpha * mixture.means, covariances)
    law = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(f64(0.3, 0.7)), components)
    torch.testing.assert_close(mixture.log_prob(x, alpha, sigma), law.log_prob(x))


def test_gaussian_denoiser_with_a_full_covariance():
    """m + alpha C (alpha^2 C + sigma^2 I)^-1 (x - alpha m)."""
    mean, C, alpha, sigma = f64(1.0, -0.5), torch.tensor(TILTED[0]).double(), 0.7, 0.5
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gain = alpha * C @ torch.linalg.inv(alpha**2 * C + sigma**2 * torch.eye(2).double())
    found = Mixture([mean.tolist()], [TILTED[0]]).denoise(x, alpha, sigma)
    torch.testing.assert_close(found, mean + (x - alpha * mean) @ gain.T)


def test_every_sample_has_its_own_level_and_class():
    mixture, x = line(), torch.linspace(-2, 2, 4, dtype=torch.float64)[:, None]
    alpha, sigma, label = f64(1, 0.8, 0.3, 0.1), f64(0.1, 0.6, 1.0, 5.0), torch.tensor([0, 1, 2, 1])
    together = mixture.denoise(x, alpha, sigma, label)
    for i in range(4):
        torch.testing.assert_close(
            together[i : i + 1], mixture.denoise(x[i : i + 1], alpha[i], sigma[i], label[i : i + 1])
        )


def test_plain_numbers_keep_their_precision():
    """Levels, weights and times such as 0.6 and 0.3 are not rounded to float32."""
    mixture, x = plane(), torch.zeros(1, 2).double()
    assert torch.equal(mixture.denoise(x, 0.6, 0.8), mixture.denoise(x, *f64(0.6, 0.8)))
    assert mixture.weights.tolist() == pytest.approx([0.3, 0.7], rel=1e-15)
    exact = ExactDenoiser(mixture, RectifiedFlow())
    assert torch.equal(exact(x, 0.6), exact(x, f64(0.6)))


def test_moments():
    mixture = plane()
    w, m, C = f64(0.3, 0.7), mixture.means, torch.tensor(TILTED).double()
    mean = w[0] * m[0] + w[1] * m[1]
    second = sum(w[k] * (C[k] + torch.outer(m[k], m[k])) for k in range(2))
    torch.testing.assert_close(mixture.mean, mean)
    torch.testing.assert_close(mixture.covariance, second - torch.outer(mean, mean))


def test_samples_have_the_moments():
    """40,000 samples: five standard errors."""
    mixture, num = plane(), 40_000
    x, component = mixture.sample(num, torch.Generator().manual_seed(0))
    std = mixture.covariance.diagonal().sqrt()
    assert ((x.mean(0) - mixture.mean).abs() < 5 * std / math.sqrt(num)).all()
    torch.testing.assert_close(
        torch.cov(x.T), mixture.covariance, rtol=0, atol=5 * 2 * float(std.max()) ** 2 / math.sqrt(num)
    )
    assert component.double().mean().item() == pytest.approx(0.7, abs=5 * 0.46 / math.sqrt(num))
    for k in range(2):
        own = x[component == k]
        torch.testing.assert_close(torch.cov(own.T), torch.tensor(TILTED[k]).double(), rtol=0, atol=0.05)
        torch.testing.assert_close(own.mean(0), mixture.means[k], rtol=0, atol=0.05)
    assert torch.equal(x, mixture.sample(num, torch.Generator().manual_seed(0))[0])


def test_batches_have_float32_data_and_matching_classes():
    teacher = ExactTeacher(line(), VarianceExploding(), classes={"label": 2})
    batch = teacher.exact_samples(20_000, torch.Generator().manual_seed(0))
    assert (
        batch["data"].dtype == torch.float32
        and batch["data"].shape == (20_000, 1)
        and batch["label"].dtype == torch.int64
    )
    ones = batch["data"][batch["label"] == 1].double()
    assert len(ones) / 20_000 == pytest.approx(2 / 3.5, abs=0.02)
    assert ones.mean().item() == pytest.approx(0.4, abs=0.01) and ones.std().item() == pytest.approx(
        math.sqrt(0.05), rel=0.05
    )


def test_classes_and_the_null_condition():
    teacher = ExactTeacher(line(), VarianceExploding(), classes={"label": 2})
    cond = teacher.condition({"data": torch.zeros(3, 1), "label": torch.tensor([0, 1, 1])})
    null = teacher.null_condition(cond)
    assert null["label"].tolist() == [2, 2, 2] and cond["label"].tolist() == [0, 1, 1]
    x, t = torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None], f64(0.3)
    torch.testing.assert_close(teacher.denoiser(x, t, null), teacher.denoiser(x, t))
    assert (teacher.denoiser(x, t, cond) - teacher.denoiser(x, t, null)).abs().max() > 0.05
    with pytest.raises(ValueError, match=r"conditioned on \['label'\], but batches have \['data'\]"):
        teacher.condition({"data": torch.zeros(3, 1)})


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_flow_map_solves_the_probability_flow(process):
    """d x_s / d s of the map is the velocity there, it starts as the identity, and it composes."""
    teacher = ExactTeacher(Mixture([[1.0, -0.5]], [TILTED[0]]), process)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t, r, s = process.from_ratio(f64(4.0, 1.0, 0.2)).tolist()
    torch.testing.assert_close(teacher.flow_map(x, t, t), x)
    torch.testing.assert_close(teacher.flow_map(teacher.flow_map(x, t, r), r, s), teacher.flow_map(x, t, s))
    s = float(int(s)) + 0.5 if process.t_max > 99 and s > 1 else s  # off the kinks of a table
    h = 1e-5 * s
    slope = (teacher.flow_map(x, t, s + h) - teacher.flow_map(x, t, s - h)) / (2 * h)
    torch.testing.assert_close(
        slope, teacher.denoiser.velocity(teacher.flow_map(x, t, s), f64(s)[0]), rtol=1e-5, atol=1e-7
    )


def test_flow_map_is_the_published_pair():
    """VE from sigma_max: x_0 = m + S / sqrt(S^2 + sigma_max^2) (x_T - m)."""
    x = f64(-40, 3, 90)[:, None]
    torch.testing.assert_close(gaussian(0.4, 0.9).flow_map(x, 80.0, 0.0), 0.4 + 0.9 / math.hypot(0.9, 80) * (x - 0.4))


def test_flow_map_of_a_mixture_is_refused():
    with pytest.raises(ValueError, match="only a single Gaussian has a closed flow map, this mixture has 3 components"):
        ExactTeacher(line(), VarianceExploding()).flow_map(torch.zeros(1, 1), 1.0, 0.1)


@pytest.mark.parametrize("process", [VarianceExploding(), RectifiedFlow()], ids=["ve", "flow"])
def test_the_slow_reference_samples_the_law(process):
    """Its best solver, from unit noise with four points that have the moments of a Gaussian."""
    teacher = gaussian(0.4, 0.9, process)
    noise = f64(1, -1)[:, None]
    found = teacher.sample(noise, {})
    assert found.mean().item() == pytest.approx(0.4, abs=0.02)
    assert found.std(correction=0).item() == pytest.approx(0.9, rel=0.01)
    assert not found.requires_grad


def test_given_times_are_started_from_their_first():
    """Noise of the first time that is visited, not of the largest there is."""
    teacher, noise = gaussian(0.4, 0.9), f64(1, -1)[:, None]
    found = teacher.sample(noise, {}, solver="ddim", times=f64(2.5, 0.5))
    first = teacher.denoiser(2.5 * noise, 2.5)
    second = first + 0.5 * (2.5 * noise - first) / 2.5
    torch.testing.assert_close(found, teacher.denoiser(second, 0.5))


def test_a_stochastic_solver_needs_no_further_argument():
    """`solver=ancestral` runs by its name alone and makes the same samples every time."""
    teacher, noise = gaussian(0.4, 0.9), torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
    found = teacher.sample(noise, {}, steps=100, solver="ancestral")
    assert found.std().item() == pytest.approx(0.9, rel=0.1)
    assert torch.equal(found, teacher.sample(noise, {}, steps=100, solver="ancestral"))


def test_a_teacher_that_is_guided_on_an_interval_is_sampled_so():
    class Late(ExactTeacher):
        def guidance(self, t, kappa):
            return kappa if t < 1 else 1.0

    law = Mixture([[0.5], [1.0], [-0.2]], [[[0.25]]] * 3, labels=[0, 1, 2])
    teacher, cond = Late(law, VarianceExploding(), classes={"label": 2}), {"label": torch.tensor([1, 1])}
    x, step = f64(0.3, -0.7)[:, None], teacher.stepper(cond, 3.0)
    for t, kappa in ((f64(2.0)[0], 1.0), (f64(0.5)[0], 3.0)):
        own, null = teacher.denoiser(x, t, cond), teacher.denoiser(x, t, teacher.null_condition(cond))
        torch.testing.assert_close(step(x, t), null + kappa * (own - null))
        assert (own - null).abs().min() > 0.05


@pytest.mark.parametrize("kappa", [3.0, torch.tensor([0.0, 1.0, 3.0, -1.0, 2.0])], ids=["one", "each"])
def test_generating_is_sampling_from_the_seeds_noise_with_the_same_guidance(kappa):
    """Cut into chunks, every sample keeps its noise, its class and its kappa."""
    law = Mixture([[0.5], [1.0], [-0.2]], [[[0.25]]] * 3, labels=[0, 1, 2])
    teacher = ExactTeacher(law, VarianceExploding(), classes={"label": 2})
    cond, noise = {"label": torch.arange(5) % 2}, teacher.noise(5, {}, 5)
    found = teacher.generate(5, cond, 5, kappa=kappa, chunk=2)
    torch.testing.assert_close(found, teacher.sample(noise, cond, kappa=kappa))
    assert not torch.allclose(found, teacher.sample(noise, cond), atol=0.1)
    assert not torch.equal(noise, teacher.noise(5, {}, 6))


def test_an_unknown_solver_is_refused_with_the_names():
    with pytest.raises(ValueError, match="ddim"):
        gaussian(0.4, 0.9).sample(torch.zeros(1, 1), {}, solver="dimm")


def test_guided_reference_is_the_guided_law():
    """With a null class of equal width kappa = 3 moves the mean to m_0 + 3 (m_c - m_0)."""
    law = Mixture([[0.5], [1.0], [-0.2]], [[[0.25]]] * 3, labels=[0, 1, 2])
    teacher = ExactTeacher(law, VarianceExploding(), classes={"label": 2})
    found = teacher.sample(f64(1, -1)[:, None], {"label": torch.tensor([1, 1])}, kappa=3.0)
    assert found.mean().item() == pytest.approx(-0.2 + 3 * 1.2, abs=0.05) and found.std(
        correction=0
    ).item() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)])
def test_any_event_shape(shape):
    law = Mixture([[0.1, 0.2, 0.3, 0.4]], [(0.5 * torch.eye(4)).tolist()])
    teacher = ExactTeacher(law, VarianceExploding(), event_shape=shape)
    x = torch.randn(3, *shape)
    assert teacher.denoiser(x, torch.tensor(0.5)).shape == teacher.exact_samples(3)["data"].shape == (3, *shape)
    assert teacher.new_denoiser()(x, torch.full((3,), 0.5)).shape == (3, *shape)


def test_precision_survives_module_conversions():
    """Casts such as Lightning's half precision leave the law exact; samples keep their own type."""
    mixture = line()
    for convert in (lambda m: m.float(), lambda m: m.bfloat16(), lambda m: m.to(torch.float16)):
        changed = convert(copy.deepcopy(mixture))
        assert changed.means.dtype == torch.float64 and torch.equal(changed.means, mixture.means)
    assert mixture.denoise(torch.zeros(2, 1), 1.0, 0.5).dtype == torch.float32


def test_a_trainable_denoiser_starts_as_the_exact_one_and_can_change():
    teacher = ExactTeacher(plane(), RectifiedFlow())
    own = teacher.new_denoiser(MLP([2], width=8, depth=1))
    x, t = torch.randn(5, 2), torch.linspace(0.1, 0.9, 5)
    assert isinstance(own, CorrectedDenoiser) and torch.equal(own(x, t), teacher.denoiser(x, t))
    assert own.training and all(p.requires_grad for p in own.parameters()) and list(own.parameters())
    own(x, t).square().sum().backward()
    assert own.network.out.weight.grad.abs().max() > 0
    # one unit of network output is one unit of EDM's target
    with torch.no_grad():
        own.network.out.bias.fill_(1.0)
    error = (own(x, t) - teacher.denoiser(x, t)) ** 2 * own.loss_weight(t)[:, None]
    torch.testing.assert_close(error, torch.ones_like(error), rtol=1e-4, atol=1e-4)


def test_two_new_denoisers_share_nothing_that_learns():
    teacher = ExactTeacher(plane(), RectifiedFlow())
    network = MLP([2], width=8, depth=1)
    one, two = teacher.new_denoiser(network), teacher.new_denoiser(network)
    storages = [{p.data_ptr() for p in module.parameters()} for module in (one, two, network)]
    assert not storages[0] & storages[1] and not storages[0] & storages[2]
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_teachers_stay_frozen_and_in_eval_mode():
    teacher = ExactTeacher(plane(), RectifiedFlow()).train()
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


def test_a_spec_makes_the_same_law():
    exact = ExactDenoiser(line(), RectifiedFlow(), "label")
    again = from_spec(to_spec(exact))
    x, t, cond = torch.randn(4, 1), torch.rand(4), {"label": torch.tensor([0, 1, 2, 0])}
    assert torch.equal(exact(x, t, cond), again(x, t, cond))


def test_fingerprints_tell_laws_and_processes_apart():
    prints = {
        gaussian(0.4, 0.9).fingerprint(),
        gaussian(0.41, 0.9).fingerprint(),
        gaussian(0.4, 0.9, RectifiedFlow()).fingerprint(),
    }
    assert len(prints) == 3 and gaussian(0.4, 0.9).fingerprint() in prints


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([[0.0, 0.0]], [[[1.0]]]), r"1 means in 2 dimensions need covariances \[1, 2, 2\], got \(1, 1, 1\)"),
        (([[0.0]], [[[1.0]]], [1.0, 1.0]), "a mixture of 1 components needs 1 positive weights"),
        (([[0.0]], [[[1.0]]], [0.0]), "positive weights"),
        (([[0.0]], [[[-1.0]]]), "positive definite"),
    ],
)
def test_impossible_mixtures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixture(*arguments)


def test_a_stochastic_solver_draws_anew_for_each_row_and_seed_however_a_run_is_cut():
    teacher = gaussian(1.0, 0.5)

    def made(seed, chunk):
        return teacher.generate(12, {}, seed, "ancestral", teacher.grid(20), chunk=chunk).flatten(1)

    whole, other = made(0, 12), made(1, 12)
    torch.testing.assert_close(made(0, 5), whole)
    assert len(teacher.generate(0, {}, 0, "ancestral", teacher.grid(20))) == 0
    rows = torch.cat([whole, other])
    assert torch.pdist(rows).min() > 1e-3  # the solver forgets the start: of the same noise it makes the same
