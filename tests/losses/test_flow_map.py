"""Losses of two-time flow maps: zero where the map is exact, gradients elsewhere, weights.

s, mu: of a Gaussian teacher; b: std of its noised samples; y: a noised sample less its mean. All in
flow coordinates: x = (1 - tau) x_0 + tau eps, whatever the process.
"""

import math

import pytest
import torch
from helpers import PROCESSES, Line, f64, gaussian, sigma_points

from distillkit.diffusion.flow import flow_time, flow_velocity, forward_derivative
from distillkit.diffusion.process import CLEAN, RectifiedFlow, expand
from distillkit.diffusion.sampling import jump_steps
from distillkit.losses.flow_map import (
    adaptive_weight,
    hop_residual,
    jump,
    rectifying,
    span_weight,
    weighted_pull,
)
from distillkit.losses.mdt import residual
from distillkit.students.few_step import told_end

MU, S = 0.4, 0.5
FLOW = RectifiedFlow()


def spread(tau, s=S):
    return ((1 - tau) ** 2 * s**2 + tau**2).sqrt()


def growth(tau, s=S):
    """`d log y / dtau = b'/b` along the ODE."""
    return (tau - (1 - tau) * s**2) / spread(tau, s) ** 2


def average(mu, s):
    """`(x, tau, r) -> u` of N(mu, s^2): `X = (1 - r) mu + (b_r / b_tau) (x - (1 - tau) mu)`."""

    def u(x, tau, r):
        still = (tau - r).abs() < 1e-9  # a level has been through its time and back
        tau_, r_ = expand(tau, x), expand(r, x)
        y = x - (1 - tau_) * mu
        ends = (1 - r_) * mu + spread(r_, s) / spread(tau_, s) * y
        span = torch.where(expand(still, x), 1, tau_ - r_)
        return torch.where(expand(still, x), -mu + growth(tau_, s) * y, (x - ends) / span)

    return u


def told(mu, s, process):
    """The exact student `(x_t, t, end) -> x_0`; the end is told as a flow time."""

    def denoise(x_t, t, end):
        alpha, sigma = (expand(scale(t), x_t) for scale in (process.alpha, process.sigma))
        x, tau = x_t / (alpha + sigma), flow_time(process, t)
        return x - expand(tau, x) * average(mu, s)(x, tau, end)

    return denoise


def velocities(mu=MU, s=S, process=FLOW, teacher=None):
    """`(u(x, tau, r), v(x, tau))` as methods have them: through denoisers of a process."""
    denoise = told(mu, s, process)
    u = lambda x, tau, r: flow_velocity(lambda x_t, t: denoise(x_t, t, r), process)(x, tau)  # noqa: E731
    return u, flow_velocity((teacher or gaussian(MU, S, process)).denoiser, process)


def points():
    """x on both sides of every mean, its level and an end below it, at it or at the datum."""
    x, tau, part = torch.meshgrid(f64(-1.7, 0.9, 2.5), f64(0.15, 0.4, 0.9), f64(0.0, 0.3, 0.8, 1.0), indexing="ij")
    return x.reshape(-1, 1), tau.flatten(), (tau * part).flatten()


def exact_tangent(u, v, x, tau, r):
    rate = forward_derivative(lambda x, tau: u(x, tau, r), x, tau, v)
    return residual(u(x, tau, r), rate, v, tau - r)


def by_hop(u, v, x, tau, r, delta, order=1):
    """R by a hop and `order` jumps of u behind it."""
    hop = (tau - r).clamp_max(delta)
    after, level = x - expand(hop, x) * v, tau - hop
    for k in range(order - 1, -1, -1):
        end = r + (tau - hop - r) * k / order
        after, level = jump(after, level, end, u(after, level.clamp_min(1e-9), end)), end
    return hop_residual(u(x, tau, r), v, x, after, tau, r, hop)


# Zero where the map is exact


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_no_residual_at_the_exact_map(process):
    """At any level, for any end: in between, at the datum and at the level itself."""
    x, tau, r = points()
    u, v = velocities(process=process)
    still = tau == r
    assert exact_tangent(u, v(x, tau), x, tau, r)[~still].abs().max() < 1e-9
    torch.testing.assert_close(u(x, tau, r)[still], v(x, tau)[still], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_hop_leaves_a_residual_of_its_own_length(order):
    """O(delta), the same for any number of jumps behind it, as exact jumps compose."""
    x, tau, r = points()
    u, v = velocities()
    one, half = (by_hop(u, v(x, tau), x, tau, r, delta, order).norm() for delta in (1e-3, 5e-4))
    assert 0 < one < 0.05 and (one / half).item() == pytest.approx(2, rel=0.02)
    single = by_hop(u, v(x, tau), x, tau, r, 1e-3)
    torch.testing.assert_close(by_hop(u, v(x, tau), x, tau, r, 1e-3, order), single, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("delta", [0.02, 0.01, 0.005])
def test_the_size_of_that_residual(delta):
    """`R = (b_r / b_e) ((1 - delta g) - b_e / b) y / delta`, e the end of Euler's hop, g = b'/b."""
    x, tau, r = (value[points()[1] - points()[2] > delta] for value in points())
    u, v = velocities()
    b, b_e, b_r = (spread(level)[:, None] for level in (tau, tau - delta, r))
    y = x - (1 - tau[:, None]) * MU
    expected = b_r / b_e * (1 - delta * growth(tau)[:, None] - b_e / b) * y / delta
    torch.testing.assert_close(by_hop(u, v(x, tau), x, tau, r, delta, 2), expected, rtol=1e-7, atol=1e-10)
    assert expected.abs().max() < 8 * delta


def test_a_hop_that_does_not_fit_ends_at_the_end():
    """Its residual is `u - v`: no jump is left behind it, and nothing is divided by zero."""
    u, v, x = (torch.randn(3, 2, dtype=torch.float64) for _ in range(3))
    tau, r = f64(0.5, 0.505, 0.7), f64(0.5, 0.5, 0.693)
    hop = (tau - r).clamp_max(0.01)
    assert torch.equal(hop_residual(u, v, x, x + torch.nan, tau, r, hop), u - v)


def test_jumps_in_a_row_are_one_jump():
    """1 to 0.5 to 0 ends where 1 to 0 ends, and so does the sampler, at the law of the data."""
    u = average(MU, S)
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    one, half, none = (f64(level).expand(7) for level in (1.0, 0.5, 0.0))
    middle = jump(x, one, half, u(x, one, half))
    torch.testing.assert_close(jump(middle, half, none, u(middle, half, none)), MU + S * x)
    denoise = told(MU, S, FLOW)
    for times in ([1.0], [1.0, 0.5], [1.0, 0.7, 0.2]):
        made = jump_steps(
            lambda x_t, t, end: denoise(x_t, t.expand(7), told_end(FLOW, end, x_t)), FLOW, f64(*times), lambda i: x
        )
        torch.testing.assert_close(made, MU + S * x)
    assert told_end(FLOW, f64(CLEAN)[0], x).eq(0).all() and told_end(FLOW, f64(0.3)[0], x).eq(0.3).all()


@pytest.mark.parametrize("kappa", [1.0, 4.0])
def test_a_guided_teacher_is_answered_by_the_shifted_map(kappa):
    """Equal widths: kappa moves the mean to m_0 + kappa (m_c - m_0)."""
    m_c, m_0 = 1.0, 0.8
    x, tau, r = points()
    v_c, v_0 = (velocities(m)[1] if m == MU else flow_velocity(gaussian(m, S, FLOW).denoiser, FLOW) for m in (m_c, m_0))
    v = v_0(x, tau) + kappa * (v_c(x, tau) - v_0(x, tau))
    right, wrong = (velocities(m_0 + k * (m_c - m_0))[0] for k in (kappa, kappa + 1))
    apart = tau != r
    assert exact_tangent(right, v, x, tau, r)[apart].abs().max() < 1e-9
    assert exact_tangent(wrong, v, x, tau, r)[apart].abs().min() > 0.01


# Gradients elsewhere


PROBES = {
    "scale": (lambda x, tau, y: y, lambda tau, g: 1 + 0 * tau, lambda tau, g: g),
    "scale growing": (lambda x, tau, y: expand(tau, y) * y, lambda tau, g: tau, lambda tau, g: 1 + tau * g),
}  # h, and h and dh/dtau over y
MIDDLES = 0.02 + 0.98 * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000


def slope_of_the_loss(probe, part, found=residual):
    """d loss / d a at a = 0.1 of a map that is exact but for a probe, u + a h; r = part tau."""
    tau = MIDDLES.repeat(2)
    r = part * tau
    x = (1 - tau[:, None]) * MU + torch.cat([spread(MIDDLES), -spread(MIDDLES)])[:, None]
    a = f64(0.1)[0].requires_grad_()
    exact = average(MU, S)
    h = PROBES[probe][0]
    u = lambda x, tau: exact(x, tau, r) + a * h(x, tau, x - (1 - expand(tau, x)) * MU)  # noqa: E731
    v = average(MU, S)(x, tau, tau)
    value = u(x, tau)
    with torch.no_grad():
        R = found(value, forward_derivative(u, x, tau, v), v, tau - r)
    return torch.autograd.grad(weighted_pull(value, R, torch.ones_like(R)), a)[0].item()


@pytest.mark.parametrize("part", [0.0, 0.4])
@pytest.mark.parametrize("probe", PROBES)
def test_gradient_back_to_the_exact_map(probe, part):
    """`2 a E[h (h + (tau - r) dh/dtau)] > 0` for a probe a h."""
    g = growth(MIDDLES)
    h, slope = (f(MIDDLES, g) for f in PROBES[probe][1:])
    expected = 0.2 * (spread(MIDDLES) ** 2 * h * (h + (1 - part) * MIDDLES * slope)).mean().item()
    assert slope_of_the_loss(probe, part) == pytest.approx(expected, rel=1e-9) and expected > 0


def test_a_flipped_derivative_pushes_away():
    flipped = lambda u, rate, v, span: residual(u, -rate, v, span)  # noqa: E731
    assert slope_of_the_loss("scale", 0.0, flipped) < -1


def test_the_value_and_the_gradient_of_the_loss():
    """`mean w R^2`, and `2 w R / N` in u alone: R and the weight are constants."""
    u, R = f64(1.0, -2.0, 0.5, 3.0).reshape(2, 2).requires_grad_(), f64(0.3, -0.1, 2.0, 1.0).reshape(2, 2)
    R.requires_grad_(), (w := f64(0.5, 3.0)[:, None]).requires_grad_()
    loss = weighted_pull(u, R, w)
    torch.testing.assert_close(loss, (w * R.square()).mean())
    loss.backward()
    torch.testing.assert_close(u.grad, 2 * (w * R).detach() / 4)
    assert R.grad is None and w.grad is None
    mask = torch.tensor([[True, False], [True, True]])
    torch.testing.assert_close(weighted_pull(u, R, w, mask), (0.5 * R[0, 0] ** 2 + 3 * R[1].square().mean()) / 2)


@pytest.mark.parametrize("m, swapped, expected", [(0.4, False, 1.80), (0.4, True, -1.80), (-0.2, False, 0.0)])
def test_the_rectification_pulls_the_mean_to_the_teacher(m, swapped, expected):
    """`d/dm = 2 (m - mu) t / b^2`, zero at m = mu; swapped sides flip the sign."""
    mu, t = -0.2, 0.6
    line, (z, eps) = Line(m, S), sigma_points()
    x_g = line(z)
    x = (1 - t) * x_g.detach() + t * eps
    level = f64(t).expand(4)
    own, data = (average(mean, S)(x, level, level) for mean in (m, mu))
    push = rectifying(data, own, 10.0) if swapped else rectifying(own, data, 10.0)
    found = line.gradient(weighted_pull(x_g, push, torch.ones_like(push)))[0]
    closed = 2 * (m - mu) * t / spread(f64(t)).item() ** 2 * (-1 if swapped else 1)
    assert found == pytest.approx(closed, abs=1e-12) and found == pytest.approx(expected, abs=0.01)


def test_the_rectification_is_clamped_and_constant():
    own, data = f64(3.0, -3.0, 0.2)[:, None].requires_grad_(), f64(0.0, 0.0, 0.0)[:, None]
    push = rectifying(own, data, 1.0)
    assert push.flatten().tolist() == [-1.0, 1.0, -0.2] and not push.requires_grad


# Weights


def test_the_adaptive_weight():
    """`1 / (mean R^2 + c)^p` of each sample, constant; power 1/2 is Barron's loss, about |R|."""
    R = f64(3.0, 4.0, 0.0, 0.0).reshape(2, 2).requires_grad_()
    weight = adaptive_weight(R, 1.0, 0.5)
    torch.testing.assert_close(weight, f64(1 / 13, 2.0)[:, None])
    assert not weight.requires_grad
    torch.testing.assert_close(adaptive_weight(R, 0.0, 0.5), f64(1.0, 1.0)[:, None])
    R = f64(0.3, -0.2)[:, None]
    c = 1e-3
    barron = R.square() / (R.square() / c**2 + 1).sqrt() / c
    torch.testing.assert_close(adaptive_weight(R, 0.5, c**2) * R.square(), barron)
    mask = torch.tensor([[True, False], [True, True]])
    torch.testing.assert_close(
        adaptive_weight(f64(3.0, 4.0, 1.0, 1.0).reshape(2, 2), 1.0, 0.5, mask), f64(1 / 9.5, 1 / 1.5)[:, None]
    )


def test_short_ways_weigh_more():
    weight = span_weight(f64(1.0, 0.5, 0.9), f64(0.0, 0.5, 0.4))
    torch.testing.assert_close(weight, 1 + f64(0.0, math.tan(math.pi / 2.5), math.tan(0.2 * math.pi)))
