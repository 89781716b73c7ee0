"""Adversarial losses with the logit that is optimal for two Gaussians, known in closed form."""

import math

import pytest
import torch
from helpers import Line, f64

from distillkit.losses.gan import discriminator_loss, generator_loss

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
    """Two places, fake 3 : 1, real 1 : 3: the loss is stationary at logits log(1/3), log 3 and larger beside."""

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
