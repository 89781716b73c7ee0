"""Flow coordinates of every process, and both derivatives along the ODE, against closed forms."""

import pytest
import torch
from helpers import PROCESSES, f64, gaussian

from distillkit.diffusion.flow import difference_quotient, flow_time, flow_velocity, forward_derivative, noised
from distillkit.diffusion.process import RectifiedFlow

MU, S = 0.4, 0.5
X, TAU = (grid.flatten() for grid in torch.meshgrid(f64(-1.7, -0.2, 0.9, 2.5), f64(0.15, 0.4, 0.7, 0.9), indexing="ij"))
X = X[:, None]


def law(tau):
    """`(b^2, v's slope in x)` of N(mu, s^2) noised to tau: v = -mu + slope (x - (1 - tau) mu)."""
    variance = ((1 - tau) * S) ** 2 + tau**2
    return variance, (tau - (1 - tau) * S**2) / variance


def velocity(x, tau):
    return -MU + law(tau)[1][:, None] * (x - (1 - tau)[:, None] * MU)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_flow_coordinates_are_those_of_every_process(process):
    """Flow time and back, scaled samples and a teacher's velocity agree with the flow process."""
    t = process.from_ratio(TAU / (1 - TAU))
    torch.testing.assert_close(flow_time(process, t), TAU, rtol=1e-10, atol=1e-12)
    x_0, eps = X, X.flip(0)
    x = process.add_noise(x_0, eps, t) / (process.alpha(t) + process.sigma(t))[:, None]
    torch.testing.assert_close(noised(x_0, TAU, eps), x, rtol=1e-10, atol=1e-10)
    found = flow_velocity(gaussian(MU, S, process).denoiser, process)(X, TAU)
    torch.testing.assert_close(found, velocity(X, TAU), rtol=1e-10, atol=1e-10)


def test_flow_time_of_pure_noise_is_one():
    assert flow_time(RectifiedFlow(), f64(1.0)).item() == 1


def test_the_forward_derivative_is_that_along_the_ode():
    """phi = v: `dv/dtau = s^2 / b^4 y`, and the hop agrees to first order in its length."""
    y = X - (1 - TAU)[:, None] * MU
    expected = (S**2 / law(TAU)[0] ** 2)[:, None] * y
    v = velocity(X, TAU)
    torch.testing.assert_close(forward_derivative(velocity, X, TAU, v), expected, rtol=1e-10, atol=1e-10)
    errors = [(difference_quotient(velocity, X, TAU, v, v, delta) - expected).norm() for delta in (1e-4, 5e-5)]
    assert errors[0] < 0.01 and (errors[0] / errors[1]).item() == pytest.approx(2, rel=0.01)
    standing = forward_derivative(velocity, X, TAU, torch.zeros_like(v))  # d/dtau at a fixed x is another number
    assert (standing - expected).abs().max() > 0.1
