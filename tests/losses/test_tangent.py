"""The residual of sCM: zero at exact students, its size elsewhere, its normalisers, its gradients.

s, mu: of a Gaussian teacher; b: the spread of its noised samples; y: a noised sample less its mean.
All in TrigFlow coordinates: x = cos(tau) x_0 + sin(tau) sd eps, whatever the process.
"""

import math

import pytest
import torch
from helpers import PROCESSES, f64, gaussian

from distillkit.diffusion import trig
from distillkit.diffusion.process import TrigFlow, expand
from distillkit.losses.tangent import normalised, residual, tangent_loss

MU, S, SD = 0.4, 0.5, 0.5
TRIG = TrigFlow(SD)


def jump(mu, s, process=TRIG):
    """The exact student of N(mu, s^2): `f = mu + (s / b) (x_t - alpha mu)`."""

    def denoise(x_t, t):
        alpha, sigma = (expand(scale(t), x_t) for scale in (process.alpha, process.sigma))
        return mu + s * (alpha**2 * s**2 + sigma**2).rsqrt() * (x_t - alpha * mu)

    return denoise


def field(denoise, process=TRIG, sd=SD):
    return trig.trig_field(denoise, process, sd)


def points(process=TRIG, sd=SD):
    """x on both sides of every mean, and angles of the process's own range: [N, 1], [N]."""
    low, high = trig.angle(process, f64(process.t_min, process.t_max), sd)
    angles = low + (high - low) * f64(0.1, 0.4, 0.7, 0.95)
    x, tau = torch.meshgrid(f64(-30.0, -1.7, 0.9, 2.5), angles, indexing="ij")
    return x.reshape(-1, 1), tau.flatten()


def found(F, teacher, x, tau, sd=SD, r=1.0):
    dx = sd * teacher(x, tau)
    value, rate = trig.exact_rate(F, x, tau, dx)
    return residual(value, rate, x, tau, dx, sd, r)


# Zero where the student is exact


@pytest.mark.parametrize("sd", [0.5, 1.0])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_no_residual_at_the_exact_jump_at_any_state(process, sd):
    student, teacher = field(jump(MU, S, process), process, sd), field(gaussian(MU, S, process).denoiser, process, sd)
    x, tau = points(process, sd)
    assert found(student, teacher, x, tau, sd).abs().max() < 1e-12 * x.abs().max() / tau.min()


def test_it_is_the_derivative_of_the_jump_times_the_cosine():
    """Of a student that is exact for another Gaussian: `cos df/dtau` along the teacher's ODE."""
    denoise, teacher = jump(-0.3, 0.9), field(gaussian(MU, S, TRIG).denoiser)
    x, tau = points()
    dx = SD * teacher(x, tau)
    rate = torch.func.jvp(denoise, (x, tau), (dx, torch.ones_like(tau)))[1]
    torch.testing.assert_close(found(field(denoise), teacher, x, tau), tau.cos()[:, None] * rate, rtol=1e-9, atol=1e-9)
    assert rate.abs().max() > 0.1


def test_without_tangent_the_teachers_own_field_rests():
    """With r = 0 the residual is `-cos^2 sd (F - F_T)`; with r = 1 a copy of the teacher moves."""
    teacher, other = (field(gaussian(MU, s, TRIG).denoiser) for s in (S, 0.9))
    x, tau = points()
    assert found(teacher, teacher, x, tau, r=0.0).abs().max() == 0
    expected = -(tau.cos() ** 2)[:, None] * SD * (other(x, tau) - teacher(x, tau))
    torch.testing.assert_close(found(other, teacher, x, tau, r=0.0), expected, rtol=1e-9, atol=1e-12)
    half = (found(other, teacher, x, tau, r=0.0) + found(other, teacher, x, tau)) / 2
    torch.testing.assert_close(found(other, teacher, x, tau, r=0.5), half, rtol=1e-9, atol=1e-12)
    assert found(teacher, teacher, x, tau).abs().max() > 0.1


# Its size elsewhere

PROBES = {
    "offset": lambda x, tau, mu: torch.ones_like(x),
    "scale": lambda x, tau, mu: x - tau.cos()[:, None] * mu,
    "scale growing": lambda x, tau, mu: tau.sin()[:, None] * (x - tau.cos()[:, None] * mu),
}
MIDDLES = 0.05 + 1.5 * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000  # tau uniform in (0.05, 1.55)


def slope_of_the_loss(probe, s, sd=SD, mu=MU, r=1.0):
    """d loss / d a at a = 0.1 for a student that is exact but for a probe: F + a probe."""
    tau, process = MIDDLES.repeat(2), TrigFlow(sd)
    b = ((MIDDLES.cos() * s) ** 2 + (sd * MIDDLES.sin()) ** 2).sqrt()
    y = torch.cat([b, -b])[:, None]  # both sides: exact for quadratic functions of y
    x = tau.cos()[:, None] * mu + y
    a = f64(0.1)[0].requires_grad_()
    exact = field(jump(mu, s, process), process, sd)
    student = lambda x, tau: exact(x, tau) + a * PROBES[probe](x, tau, mu)  # noqa: E731
    with torch.no_grad():
        g = found(student, field(gaussian(mu, s, process).denoiser, process, sd), x, tau, sd, r)
    return torch.autograd.grad(tangent_loss(student(x, tau), g), a)[0].item()


@pytest.mark.parametrize("probe, s", [(probe, s) for probe in PROBES for s in (0.5, 0.3, 1.0)])
def test_gradient_back_to_the_exact_jump(probe, s):
    """`2 a sd E[h (cos^2 h + cos sin dh/dtau)] > 0` for a probe a h."""
    tau = MIDDLES
    variance = (tau.cos() * s) ** 2 + (SD * tau.sin()) ** 2
    growth = (tau.sin() * tau.cos()) ** 2 * (SD**2 - s**2) / variance  # cos sin dy/dtau = growth y
    closed = {
        "offset": tau.cos() ** 2,
        "scale": variance * (tau.cos() ** 2 + growth),
        "scale growing": tau.sin() ** 2 * variance * (2 * tau.cos() ** 2 + growth),
    }
    slope = slope_of_the_loss(probe, s)
    assert slope == pytest.approx(0.2 * SD * closed[probe].mean().item(), rel=1e-8) and slope > 0


@pytest.mark.parametrize("probe, expected", [("offset", 0.098), ("scale", 0.064), ("scale growing", 0.043)])
def test_the_slopes_are_those_found_by_sampling(probe, expected):
    """`expected` was found independently, for sd = 1, to two digits."""
    assert slope_of_the_loss(probe, 0.5, sd=1.0) == pytest.approx(expected, abs=6e-4)


def test_an_offset_cannot_see_the_sign_of_the_tangent_but_a_scale_can():
    """The sign of cos sin (x + sd dF/dtau) is flipped."""
    assert slope_of_the_loss("offset", 0.5, r=-1.0) == pytest.approx(slope_of_the_loss("offset", 0.5), rel=1e-6)
    assert slope_of_the_loss("scale", 0.5, r=-1.0) < -0.05
    x, tau = points()
    teacher = field(gaussian(MU, S, TRIG).denoiser)
    assert found(field(jump(MU, S)), teacher, x, tau, r=-1.0).square().mean().sqrt() > 0.3


# Normalisers and the loss

G = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MASK = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])


def test_the_normalisers_are_lengths_of_whole_samples():
    norm = G.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(normalised(G, "norm"), G / (norm + 0.1))
    torch.testing.assert_close(normalised(G, "rms"), G / (norm / math.sqrt(8) + 0.1))
    assert torch.equal(normalised(G, None), G)


@pytest.mark.parametrize("how", ["rms", "norm"])
def test_padding_has_no_part_in_the_normalisers(how):
    hostile = torch.where(MASK[..., None], G, 1e30)
    for i, num in enumerate(MASK.sum(1)):
        alone = normalised(G[i : i + 1, :num], how)
        torch.testing.assert_close(normalised(hostile, how, MASK)[i : i + 1, :num], alone)


def parts():
    generator = torch.Generator().manual_seed(1)
    F, g = (torch.randn(3, 4, 2, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    a = f64(0.3, -0.7, 1.1).requires_grad_()
    return F, g, a, f64(2.0, 0.5, 1.5)


def test_the_loss_and_its_gradients_in_closed_form():
    """`mean_b [w e^-a mean |g|^2 + a]`; in F it is -2 w e^-a g / N, in g nothing."""
    F, g, a, w = parts()
    loss = tangent_loss(F, g, w, a)
    size = w * g.square().flatten(1).mean(1) * (-a).exp()
    torch.testing.assert_close(loss, (size + a).mean())
    in_F, in_a, in_g = torch.autograd.grad(loss, [F, a, g], allow_unused=True)
    torch.testing.assert_close(in_F, -2 * (w * (-a).exp())[:, None, None] * g / g.numel())
    torch.testing.assert_close(in_a, (1 - size) / 3)
    assert in_g is None
    plain = torch.autograd.grad(tangent_loss(F, g), F)[0]
    torch.testing.assert_close(plain, -2 * g / g.numel())


def test_the_log_variance_rests_at_the_logarithm_of_the_weighted_loss():
    F, g, _, w = parts()
    a = (w * g.square().flatten(1).mean(1)).log().detach().requires_grad_()
    assert torch.autograd.grad(tangent_loss(F, g, w, a), a)[0].abs().max() < 1e-15


def test_the_loss_of_a_padded_batch_is_the_mean_of_the_samples_alone():
    F, g, a, w = parts()
    sizes = MASK.sum(1).tolist()
    alone = [tangent_loss(F[i : i + 1, :n], g[i : i + 1, :n], w[i : i + 1], a[i : i + 1]) for i, n in enumerate(sizes)]
    hostile = [torch.where(MASK[..., None], v, 1e30) for v in (F, g)]
    torch.testing.assert_close(tangent_loss(*hostile, w, a, MASK), torch.stack(alone).mean())
