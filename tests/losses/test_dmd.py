"""DMD's injected gradient in closed form, its normaliser in many dimensions, its constants."""

import math

import pytest
import torch
from helpers import PROCESSES, Line, f64, gaussian, sigma_points
from torch.distributions import Normal, kl_divergence

from distillkit.diffusion.process import VarianceExploding
from distillkit.losses.dmd import dmd_loss, regression_loss
from distillkit.losses.reduce import distance_scale, mean_per_sample

M, S, MU, SIGMA = 0.4, 0.8, 1.1, 0.9


def loss_of(student, process, ratio=SIGMA, swap=False):
    z, eps = sigma_points()
    x_g, t = student(z), process.from_ratio(f64(ratio)).expand(4)
    x_t = process.add_noise(x_g, eps, t)
    real, fake = gaussian(M, S, process).denoiser(x_t, t), student.best_response(process)(x_t, t)
    return dmd_loss(x_g, *((fake, real) if swap else (real, fake)), normalise=None)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_mean_gradient(process):
    """Equal widths: dL/dmu = (mu - m) sigma^2 / V in units of the ratio."""
    student = Line(MU, S)
    found = student.gradient(loss_of(student, process))
    assert found == pytest.approx([(MU - M) * SIGMA**2 / (S**2 + SIGMA**2), 0], rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("s", [0.3, 0.8, 1.7])
def test_scale_gradient(s, process):
    """Equal means: dL/ds = s sigma^2 (s^2 - S^2) / (V v); zero where s = S."""
    student, V, v = Line(M, s), S**2 + SIGMA**2, s**2 + SIGMA**2
    expected = s * SIGMA**2 * (s**2 - S**2) / (V * v)
    assert student.gradient(loss_of(student, process)) == pytest.approx([0, expected], rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_it_is_the_gradient_of_the_reverse_kl(process):
    """(sigma^2 / alpha^2) grad KL(student_t || teacher_t) in both components."""
    t = process.from_ratio(f64(SIGMA))[0]
    alpha, sigma = process.alpha(t), process.sigma(t)
    mu, s = (f64(value)[0].requires_grad_() for value in (MU, 1.3))
    noised = Normal(alpha * mu, (alpha**2 * s**2 + sigma**2).sqrt())
    divergence = kl_divergence(noised, Normal(alpha * M, (alpha**2 * S**2 + sigma**2).sqrt()))
    expected = [(sigma**2 / alpha**2 * g).item() for g in torch.autograd.grad(divergence, [mu, s])]
    student = Line(MU, 1.3)
    assert student.gradient(loss_of(student, process)) == pytest.approx(expected, rel=1e-8)


def test_swapping_teacher_and_fake_score_turns_it_around():
    student = Line(MU, 1.3)
    right, swapped = (student.gradient(loss_of(student, VarianceExploding(), swap=w)) for w in (False, True))
    assert swapped == pytest.approx([-g for g in right])


def tensors(*shape):
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("normalise", [None, "sample", "batch"])
def test_the_gradient_is_g_over_the_number_of_elements(normalise):
    x, real, fake = tensors(5, 2, 3)
    x.requires_grad_()
    loss = dmd_loss(x, real, fake, normalise)
    g = fake - real
    if normalise:
        distance = (x - real).abs()
        g = g / (distance.mean((1, 2), keepdim=True) if normalise == "sample" else distance.mean())
    (gradient,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(gradient, g.detach() / x.numel())
    assert loss.item() == pytest.approx(0.5 * g.square().mean().item())


@pytest.mark.parametrize("normalise", [None, "sample", "batch"])
def test_the_weight_multiplies_the_injected_gradient(normalise):
    """Each row is `weight` (not its square) times the plain gradient; no gradient enters it."""
    x, real, fake = tensors(5, 2, 3)
    x.requires_grad_()
    weight = f64(0.5, 2.0, 0.0, -1.0, 3.0).requires_grad_()
    (plain,) = torch.autograd.grad(dmd_loss(x, real, fake, normalise), x)
    loss = dmd_loss(x, real, fake, normalise, weight=weight)
    gradient, into = torch.autograd.grad(loss, [x, weight], allow_unused=True)
    w = weight.detach()[:, None, None]
    torch.testing.assert_close(gradient, w * plain)
    assert into is None and not torch.allclose(gradient, w**2 * plain)
    assert loss.item() == pytest.approx(0.5 * (w * plain * x.numel()).square().mean().item())
    ones = torch.autograd.grad(dmd_loss(x, real, fake, normalise, weight=torch.ones(5)), x)[0]
    assert torch.equal(ones, plain)


def test_the_weight_of_a_set_is_that_of_all_its_members():
    x, real, fake = tensors(2, 4, 3)
    x.requires_grad_()
    mask, weight = torch.arange(4) < torch.tensor([[4], [1]]), f64(3.0, 0.5)
    losses = [dmd_loss(x, real, fake, None, mask, w) for w in (None, weight)]
    plain, found = (torch.autograd.grad(loss, x)[0] for loss in losses)
    torch.testing.assert_close(found, weight[:, None, None] * plain)


def swift(process, power=1):
    """SwiftBrush's gradient in `[mu, s]` with weight (sigma alpha)^power; alpha and sigma.

    The student has the width of the teacher N(M, S^2). The published weight is w(t) (eps_teacher -
    eps_fake) with w = sigma^2.
    """
    student, (z, eps) = Line(MU, S), sigma_points()
    x_g, t = student(z), process.from_ratio(f64(SIGMA)).expand(4)
    x_t = process.add_noise(x_g, eps, t).detach()
    teacher, fake = gaussian(M, S, process).denoiser, student.best_response(process)
    alpha, sigma = process.alpha(t), process.sigma(t)
    found = dmd_loss(x_g, teacher(x_t, t), fake(x_t, t), None, weight=(sigma * alpha) ** power)
    noises = (teacher.eps(x_t, t) - fake.eps(x_t, t)).detach()
    published = (sigma[:, None] ** 2 * noises * student(z)).mean()
    return student.gradient(found), student.gradient(published), alpha[0].item(), sigma[0].item()


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_weight_of_swiftbrush(process):
    """dL/dmu = (mu - m) sigma^3 alpha / V, V = alpha^2 S^2 + sigma^2."""
    found, published, alpha, sigma = swift(process)
    expected = (MU - M) * sigma**3 * alpha / (alpha**2 * S**2 + sigma**2)
    assert found == pytest.approx([expected, 0], rel=1e-8, abs=1e-10)
    assert found == pytest.approx(published, rel=1e-8, abs=1e-10)
    assert swift(process, power=2)[0][0] != pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("normalise", [None, "sample", "batch"])
def test_denoised_samples_are_constants(normalise):
    """The gradient is bit for bit the same whatever graph real and fake have; none enters them."""
    x, real, fake = tensors(5, 2, 3)
    x.requires_grad_()
    alone = torch.autograd.grad(dmd_loss(x, real, fake, normalise), x)[0]
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = dmd_loss(x, scale * real + 0 * x, scale * fake + 0 * x, normalise)
    gradient, into = torch.autograd.grad(loss, [x, scale], allow_unused=True)
    assert torch.equal(gradient, alone) and into is None


def test_distance_scale():
    x, real = torch.tensor([[3.0, 1.0], [1.0, 1.0]], requires_grad=True), torch.ones(2, 2)
    assert distance_scale(x, real, "sample").tolist() == [[1.0], [pytest.approx(1e-5)]]
    assert distance_scale(x, real, "batch").item() == 0.5 and not distance_scale(x, real, "batch").requires_grad


def test_normaliser_in_many_dimensions():
    """Equal widths, offset delta, 10^6 dimensions: g -> sqrt(pi / 2) sigma delta / (S sqrt(V)).

    Only n fluctuates: half-normal, relative standard error sqrt(pi / 2 - 1) / 1000; four of them
    are allowed.
    """
    num, delta, generator = 1_000_000, 0.01, torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 1, num, generator=generator, dtype=torch.float64)
    a = S**2 / (S**2 + SIGMA**2)
    x = (M + delta + S * z).requires_grad_()
    x_t = (x + SIGMA * eps).detach()
    (gradient,) = torch.autograd.grad(dmd_loss(x, a * x_t + (1 - a) * M, a * x_t + (1 - a) * (M + delta)), x)
    expected = math.sqrt(math.pi / 2) * SIGMA * delta / (S * math.sqrt(S**2 + SIGMA**2))
    assert gradient.sum().item() == pytest.approx(expected, rel=4 * math.sqrt(math.pi / 2 - 1) / math.sqrt(num))


def test_the_normaliser_is_per_sample_and_never_zero():
    x, real = torch.tensor([[1.0, 1.0], [5.0, 1.0], [1.0, 1.0]], requires_grad=True), torch.ones(3, 2)
    (gradient,) = torch.autograd.grad(dmd_loss(x, real, real + torch.tensor([[0.0], [1.0], [1.0]])), x)
    assert gradient[0].tolist() == [0, 0] and gradient[1].tolist() == pytest.approx([0.5 / 6] * 2)  # n = mean(4, 0) = 2
    assert gradient.isfinite().all() and (gradient[2] > 1000).all()


@pytest.mark.parametrize("ratio", [0.05, 1.0, 20.0])
def test_fixed_point(ratio):
    student = Line(M, S)
    assert student.gradient(loss_of(student, VarianceExploding(), ratio)) == [0, 0]


def test_regression_is_pseudo_huber_per_sample():
    x, y, _ = tensors(5, 2, 3)
    root = ((x - y).square().mean((1, 2)) + 0.03**2).sqrt() - 0.03
    assert regression_loss(x, y).item() == pytest.approx(root.mean().item())
    assert regression_loss(x, x).item() == pytest.approx(0, abs=1e-15)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(regression_loss(x, y), x)
    assert ((gradient * (x - y)).sum((1, 2)) > 0).all()


def test_mean_per_sample_broadcasts_back():
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert mean_per_sample(x).shape == (2, 1, 1) and mean_per_sample(x).flatten().tolist() == [5.5, 17.5]
