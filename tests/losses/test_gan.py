"""Adversarial losses with the logit that is optimal for two Gaussians, known in closed form."""

import math

import pytest
import torch
from helpers import Line, f64
from torch import nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.losses.denoising import denoising_loss
from distillkit.losses.gan import (
    discriminator_loss,
    generator_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    r1_penalty,
    sida_discriminator_loss,
    sida_generator_loss,
)
from distillkit.losses.reduce import distance_scale
from distillkit.losses.sid import sid_loss

M, S, MU, SIGMA = 0.4, 0.8, 1.1, 0.9
V = S**2 + SIGMA**2


def optimal_logit(x_t, m=M, mu=MU, v=V):
    """log p_data,t - log p_theta,t = -1/2 [(x - m)^2 / V - (x - mu)^2 / v - log(v / V)]."""
    return -0.5 * ((x_t - m) ** 2 / V - (x_t - mu) ** 2 / v - math.log(v / V))


def test_generator_gradient_on_the_mean():
    """Equal widths: (mu - m) / V * mean sigmoid(-L*): towards the data."""
    student, generator = Line(MU, S), torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 64, 1, generator=generator, dtype=torch.float64)
    x_t = student(z) + SIGMA * eps
    logits = optimal_logit(x_t)
    expected = (MU - M) / V * torch.sigmoid(-logits).mean().item()
    found = student.gradient(generator_loss(logits))[0]
    assert found == pytest.approx(expected) and found > 0.05


@pytest.mark.parametrize("mu", [-2.0, 0.3, 0.5, 3.0])
def test_generator_moves_towards_the_data(mu):
    student = Line(mu, S)
    found = student.gradient(generator_loss(optimal_logit(student(f64(-1, 0, 1)), mu=mu)))[0]
    assert math.copysign(1, found) == math.copysign(1, mu - M)


def test_the_discriminators_optimum_is_the_log_ratio():
    """Two places, fake 3 : 1, real 1 : 3: stationary at log(1/3), log 3, and larger beside."""

    def loss(logits):
        return discriminator_loss(logits[[0, 0, 0, 1]], logits[[0, 1, 1, 1]])

    best = f64(-math.log(3), math.log(3)).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(best), best)
    assert gradient.abs().max() < 1e-15
    assert all(
        loss(best + shift) > loss(best) + 1e-3 for shift in (f64(0.3, 0), f64(-0.3, 0), f64(0, 0.3), f64(0, -0.3))
    )


def test_signs_and_values():
    """A positive logit means real."""
    good, bad = f64(20, 20), f64(-20, -20)
    assert discriminator_loss(bad, good).item() < 1e-6 and discriminator_loss(good, bad).item() == pytest.approx(40)
    assert generator_loss(good).item() < 1e-6 and generator_loss(bad).item() == pytest.approx(20)
    nothing = torch.zeros(4)
    assert discriminator_loss(nothing, nothing).item() == pytest.approx(2 * math.log(2))
    assert generator_loss(nothing).item() == pytest.approx(math.log(2))


def test_huge_logits_stay_finite():
    assert (
        generator_loss(torch.tensor([-1e4])).item() == 1e4
        and discriminator_loss(torch.tensor([1e4]), torch.tensor([0.0])).isfinite()
    )


def test_softplus_is_the_binary_cross_entropy():
    fake, real = f64(-3, 0.5, 2), f64(-1, 0, 4)
    bce, zero, one = nn.BCEWithLogitsLoss(), torch.zeros_like(fake), torch.ones_like(fake)
    torch.testing.assert_close(generator_loss(fake), bce(fake, one))
    torch.testing.assert_close(discriminator_loss(fake, real), bce(fake, zero) + bce(real, one))


# Hinge


def test_the_hinge_generators_gradient_on_the_mean():
    """d/dmu (-E L*) = (mu - m) / V for the optimal logit of two Gaussians, never saturated."""
    for mu in (MU, -2.0, 9.0):
        student = Line(mu, S)
        z, eps = torch.randn(2, 16, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = student.gradient(hinge_generator_loss(optimal_logit(student(z) + SIGMA * eps, mu=mu)))[0]
        assert found == pytest.approx((mu - M) / V)


def test_the_hinge_discriminator_pulls_within_its_margin_alone():
    """Fake logits down until -1, real ones up until 1; each term is a mean over its own samples."""
    fake, real = f64(-1.5, -0.5, 0.5, 2).requires_grad_(), f64(2, 0.5).requires_grad_()
    loss = hinge_discriminator_loss(fake, real)
    assert loss.item() == pytest.approx((0 + 0.5 + 1.5 + 3) / 4 + (0 + 0.5) / 2)
    down, up = torch.autograd.grad(loss, [fake, real])
    assert down.tolist() == [0, 0.25, 0.25, 0.25] and up.tolist() == [0, -0.5]


def test_the_hinge_discriminators_optimum_is_the_sign_of_the_ratio():
    """Two places, fake 3 : 1, real 1 : 3: the least loss is at -1 and 1."""

    def loss(logits):
        return hinge_discriminator_loss(logits[[0, 0, 0, 1]], logits[[0, 1, 1, 1]])

    best = f64(-1, 1)
    assert loss(best) == 1
    assert all(loss(best + shift) > loss(best) for shift in (f64(0.3, 0), f64(-0.3, 0), f64(0, 0.3), f64(0, -0.3)))


# The gradient penalty


def test_r1_is_the_mean_squared_gradient_at_real_samples():
    """Logits a |x|^2 / 2: the squared gradient is a^2 |x|^2, with derivative 2 a |x|^2 in a."""
    a, x = f64(0.7).requires_grad_(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    x.requires_grad_()
    penalty = r1_penalty(a * x.square().sum(1) / 2, [x])
    square = x.detach().square().sum(1).mean()
    torch.testing.assert_close(penalty, (a**2 * square).squeeze())
    (slope,) = torch.autograd.grad(penalty, a)
    torch.testing.assert_close(slope, 2 * a * square)


def test_r1_of_several_inputs_is_their_sum():
    """Heads on their own features: 4 and 9, whatever the batch; heads of one image: (2 + 3)^2."""
    x, y = (torch.ones(6, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert r1_penalty(torch.cat([2 * x, 3 * y], 1), [x, y]).item() == 13
    assert r1_penalty(torch.cat([2 * x, 3 * x], 1), [x]).item() == 25


# SiDA: the published losses once more, as sums over pixels that are divided by the batch, in loops


def published_student(x_g, real, fake, logits, lsg=100.0, lsg_gan=0.01):
    """The student's published loss, with alpha = 1.

    `0.5 lsg / B sum_b sum_pixels L_SiD / n_b`
    `+ 0.5 lsg_gan / B sum_b C H W / n_b BCE(clip(logits), 1)`
    """
    bce = -torch.log(torch.sigmoid(logits.clip(-10, 10))).mean()  # a scalar of the batch
    total = 0.0
    for x, r, f in zip(x_g, real, fake, strict=True):
        n = (x - r).detach().abs().mean().clip(1e-5)
        total += 0.5 * lsg * ((r - f) * ((r - x) - (r - f)) / n).sum()
        total += 0.5 * lsg_gan * x.numel() * bce / n
    return total / len(x_g)


def published_fake_score(denoised, x_g, sigma, fake_logits, real_logits, ls=1.0, lsd=1.0, sigma_data=0.5):
    """`ls / B sum_b w_b |D - x|^2 + lsd / B sum_b w_b (BCE(real, 1) + BCE(fake, 0)) / 2`."""
    bce_real = -torch.log(torch.sigmoid(real_logits)).mean()
    bce_fake = -torch.log(1 - torch.sigmoid(fake_logits)).mean()
    total = 0.0
    for d, x, s in zip(denoised, x_g, sigma, strict=True):
        w = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
        total += ls * w * (d - x).square().sum() + lsd * w * (bce_real + bce_fake) / 2
    return total / len(x_g)


def images(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_students_loss_is_the_published_one_times_a_constant():
    """Value and gradient agree with weight 1e-4 at any image size: the constant is 50 C H W."""
    for shape in ((5, 3, 4, 4), (5, 1, 8, 8)):
        # some logits are clipped: 30 times a unit Gaussian
        x_g, maps = images(0, *shape).requires_grad_(), 30 * images(1, 5, 1, 2, 2)
        real, fake = 0.7 * x_g + 0.1, 0.6 * x_g.sin()
        logits = maps + x_g.mean()
        ours = sid_loss(x_g, real, fake, 1.0) + 1e-4 * sida_generator_loss(logits, distance_scale(x_g, real, "sample"))
        theirs = published_student(x_g, real, fake, logits)
        (own,), (published,) = (torch.autograd.grad(loss, x_g, retain_graph=True) for loss in (ours, theirs))
        constant = 50 * x_g[0].numel()
        torch.testing.assert_close(constant * ours, theirs)
        torch.testing.assert_close(constant * own, published)


def test_the_discriminators_loss_is_the_published_one_times_a_constant():
    """Value and gradient agree with weight 1: the constant is C H W.

    Noise levels span four orders of magnitude, so that each sample's weight counts.
    """
    for shape in ((5, 3, 4, 4), (5, 1, 8, 8)):
        x_g, eps, sigma = images(0, *shape), images(1, *shape), f64(0.01, 0.1, 1.0, 10.0, 100.0)
        denoiser = Denoiser(nn.Identity(), VarianceExploding(), "edm", 0.5)
        share = f64(0.3).requires_grad_()
        denoised, fake_logits, real_logits = share * x_g, share * images(2, 5, 2, 2), share**2 * images(3, 5, 2, 2)
        ours = denoising_loss(denoiser, x_g, sigma, eps, {}, lambda x_t, t, cond, answer=denoised: answer)
        ours = ours + sida_discriminator_loss(fake_logits, real_logits, denoiser.loss_weight(sigma), x_g)
        theirs = published_fake_score(denoised, x_g, sigma, fake_logits, real_logits)
        (own,), (published,) = (torch.autograd.grad(loss, share, retain_graph=True) for loss in (ours, theirs))
        torch.testing.assert_close(x_g[0].numel() * ours, theirs)
        torch.testing.assert_close(x_g[0].numel() * own, published)


def test_a_clipped_logit_moves_nobody_and_none_is_clipped_without_a_limit():
    logits = f64(-30.0, -5.0, 30.0).requires_grad_()
    (clipped,) = torch.autograd.grad(sida_generator_loss(logits, f64(1.0)), logits)
    (all_of_them,) = torch.autograd.grad(sida_generator_loss(logits, f64(1.0), clamp=None), logits)
    assert clipped.ne(0).tolist() == [False, True, False] and clipped[1] == all_of_them[1]
    assert all_of_them[0] == pytest.approx(-1 / 3)


def test_the_scale_is_not_differentiated():
    """`mean(1 / n)` falls when samples leave the teacher's: this must not be rewarded."""
    x_g = images(0, 5, 3).requires_grad_()
    loss = sida_generator_loss(torch.zeros(5), distance_scale(x_g, 0.7 * x_g, "sample"))
    assert not loss.requires_grad


def test_of_sets_the_discriminator_counts_what_the_mask_shows():
    """Padding doubles the tensor, not N."""
    logits, weight, mask = f64(0.5, -1.0), f64(1.0, 3.0), torch.tensor([[True, True, False, False]] * 2)
    padded = sida_discriminator_loss(logits, -logits, weight, images(0, 2, 4, 3), mask)
    torch.testing.assert_close(padded, sida_discriminator_loss(logits, -logits, weight, images(0, 2, 2, 3)))
