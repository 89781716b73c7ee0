"""SiD's loss and gradient in closed form: Gaussian student and teacher, optimal fake score.

Expectations are exact: the loss is quadratic, so four points stand for the two Gaussians (student
noise, diffusion noise).
"""

import pytest
import torch
from helpers import PROCESSES, Line, f64, gaussian, sigma_points

from distillkit.diffusion.process import VarianceExploding
from distillkit.losses.sid import sid_loss

ALPHAS = [-0.5, 0.0, 0.5, 1.0, 1.2]
M, S, MU, SIGMA = 0.4, 0.8, 1.1, 0.9  # teacher N(M, S^2); the student's mean; ratio of noise to signal


def noised(student, process, ratio):
    """Student samples, their noised versions and the time, [4, 1] each."""
    z, eps = sigma_points()
    x_g, t = student(z), process.from_ratio(f64(ratio)).expand(4)
    return x_g, process.add_noise(x_g, eps, t), t


def loss_of(student, alpha, process, ratio=SIGMA, m=M, s=S, detach=False, swap=False):
    x_g, x_t, t = noised(student, process, ratio)
    real, fake = gaussian(m, s, process).denoiser(x_t, t), student.best_response(process)(x_t, t)
    if detach:
        real, fake = real.detach(), fake.detach()
    if swap:
        real, fake = fake, real
    return sid_loss(x_g, real, fake, alpha, normalise=None)


def gains(s, ratio=SIGMA, teacher=S):
    """(a_phi, a_psi) = S^2 / (S^2 + sigma^2), s^2 / (s^2 + sigma^2)."""
    return teacher**2 / (teacher**2 + ratio**2), s**2 / (s**2 + ratio**2)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_mean_gradient(alpha, process):
    """Equal widths: dL/dmu = (mu - m) sigma^4 / V^2, whatever alpha."""
    student = Line(MU, S)
    found = student.gradient(loss_of(student, alpha, process))[0]
    assert found == pytest.approx((MU - M) * SIGMA**4 / (S**2 + SIGMA**2) ** 2, rel=1e-8)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("s", [0.3, 0.8, 1.7])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_scale_gradient(alpha, s, process):
    """Equal means: dL/ds = 2 s d [(1 - alpha) d - 1 + a_psi], d = a_phi - a_psi; zero at s = S."""
    student, (phi, psi) = Line(M, s), gains(s)
    expected = 2 * s * (phi - psi) * ((1 - alpha) * (phi - psi) - (1 - psi))
    assert student.gradient(loss_of(student, alpha, process)) == pytest.approx([0, expected], rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_value(alpha):
    """E L = (1 - alpha) E |D_phi - D_psi|^2: zero at alpha = 1, negative beyond."""
    s = 1.3
    phi, psi = gains(s)
    square = (phi - psi) ** 2 * (s**2 + SIGMA**2) + ((1 - phi) * M - (1 - psi) * MU + (phi - psi) * MU) ** 2
    assert loss_of(Line(MU, s), alpha, VarianceExploding()).item() == pytest.approx((1 - alpha) * square, abs=1e-12)


def fisher(mu, s, sampled=None):
    """`E |D_phi - D_psi|^2 / 2` with the fake score of (mu, s) on VE.

    The samples are those of `sampled`, by default of (mu, s) too.
    """
    a_mu, a_s = sampled or (mu, s)
    phi, psi = gains(s)
    difference = (1 - phi) * M - (1 - psi) * mu + (phi - psi) * a_mu
    return ((phi - psi) ** 2 * (a_s**2 + SIGMA**2) + difference**2) / 2


def test_half_is_the_gradient_of_the_fisher_divergence():
    """alpha = 0.5: the autograd gradient of sigma^4 / 2 E |s_psi - s_phi|^2, psi the student's."""
    mu, s = (f64(value)[0].requires_grad_() for value in (MU, 1.3))
    expected = [g.item() for g in torch.autograd.grad(fisher(mu, s), [mu, s])]
    student = Line(MU, 1.3)
    assert student.gradient(loss_of(student, 0.5, VarianceExploding())) == pytest.approx(expected, rel=1e-9)


def test_one_leaves_out_the_moving_samples():
    """alpha = 1: the same divergence with the samples held where they are."""
    mu, s = (f64(value)[0].requires_grad_() for value in (MU, 1.3))
    expected = [g.item() for g in torch.autograd.grad(fisher(mu, s, (MU, 1.3)), [mu, s])]
    student = Line(MU, 1.3)
    assert student.gradient(loss_of(student, 1.0, VarianceExploding())) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_detached_scores_would_be_dmd(alpha):
    """Detached scores give DMD's gradient for every alpha, an error that training does not show."""
    student, V = Line(MU, S), S**2 + SIGMA**2
    right, wrong = (student.gradient(loss_of(student, alpha, VarianceExploding(), detach=d))[0] for d in (False, True))
    assert wrong == pytest.approx((MU - M) * SIGMA**2 / V)
    assert right / wrong == pytest.approx(SIGMA**2 / V)
    assert SIGMA**2 / V < 0.6  # far enough from one to tell


@pytest.mark.parametrize("s, expected", [(2.9, 0.063), (3.6, -0.043)])
def test_basin_beyond_one(s, expected):
    """alpha = 1.2, S = sigma = 1: a student wider than 3.317 is pushed the wrong way."""
    student = Line(0.0, s)
    found = student.gradient(loss_of(student, 1.2, VarianceExploding(), ratio=1.0, m=0.0, s=1.0))[1]
    assert found == pytest.approx(expected, abs=5e-4)
    within = Line(0.0, s)
    assert within.gradient(loss_of(within, 1.0, VarianceExploding(), ratio=1.0, m=0.0, s=1.0))[1] > 0


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("ratio", [0.05, 1.0, 20.0])
def test_fixed_point(alpha, ratio):
    """A student that equals the teacher has no gradient, sample by sample."""
    student, process = Line(M, S), VarianceExploding()
    x_g, x_t, t = noised(student, process, ratio)
    real, fake = gaussian(M, S, process).denoiser(x_t, t), student.best_response(process)(x_t, t)
    for normalise in (None, "sample", "batch"):
        (gradient,) = torch.autograd.grad(sid_loss(x_g, real, fake, alpha, normalise), x_g, retain_graph=True)
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("alpha", ALPHAS)
def test_swapping_teacher_and_fake_score_turns_the_mean_around(alpha):
    student = Line(MU, S)
    right, swapped = (student.gradient(loss_of(student, alpha, VarianceExploding(), swap=w))[0] for w in (False, True))
    assert swapped == pytest.approx(-right)


def test_two_ways_to_write_it():
    """d [(real - x) - alpha d] = (1 - alpha) d^2 + d (fake - x), d = real - fake."""
    x, real, fake = torch.randn(3, 5, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = 0.3 * (real - fake) ** 2 + (real - fake) * (fake - x)
    assert sid_loss(x, real, fake, 0.7, normalise=None).item() == pytest.approx(other.mean().item())


@pytest.mark.parametrize("over, axes", [("sample", (1, 2)), ("batch", (0, 1, 2))])
def test_the_normaliser_is_a_constant_of_each_sample_or_of_the_batch(over, axes):
    x, real, fake = torch.randn(3, 5, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, real, fake = (v.requires_grad_() for v in (x, real, fake))
    gradients = torch.autograd.grad(sid_loss(x, real, fake, 1.2, over), [x, real, fake])
    n = (x - real).abs().mean(axes, keepdim=True).detach()
    plain = torch.autograd.grad((((real - fake) * ((real - x) - 1.2 * (real - fake))) / n).mean(), [x, real, fake])
    for got, expected in zip(gradients, plain, strict=True):
        torch.testing.assert_close(got, expected)
    assert (n - 1).abs().max() > 0.05


def test_the_normaliser_does_not_divide_by_zero():
    x = torch.ones(2, 3, requires_grad=True)
    loss = sid_loss(x, torch.ones(2, 3), torch.zeros(2, 3))
    assert loss.isfinite() and torch.autograd.grad(loss, x)[0].isfinite().all()
