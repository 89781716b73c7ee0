"""TrigFlow coordinates of every process, and both derivatives along the ODE, in closed form."""

import math

import pytest
import torch
from helpers import PROCESSES, f64, gaussian, wake

from distillkit.diffusion import trig
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, TrigFlow, VarianceExploding, expand
from distillkit.networks.dit import DiT
from distillkit.networks.mlp import MLP
from distillkit.networks.pair_transformer import PairTransformer
from distillkit.networks.set_dit import SetDiT
from distillkit.networks.unet import UNet
from distillkit.networks.video_unet import VideoUNet

MU, S, SD = 0.4, 0.3, 0.5
X, TAU = (grid.flatten() for grid in torch.meshgrid(f64(-1.7, -0.2, 0.9, 2.5), f64(0.1, 0.5, 1.0, 1.4), indexing="ij"))
X = X[:, None]


def law(tau, sd=SD):
    """`(b^2, slope)` of N(MU, S^2) at tau: dx/dtau = -sin MU + slope (x - cos MU)."""
    variance = (tau.cos() * S) ** 2 + (sd * tau.sin()) ** 2
    return variance, tau.sin() * tau.cos() * (sd**2 - S**2) / variance


def velocity(x, tau, sd=SD):
    return -tau.sin()[:, None] * MU + law(tau, sd)[1][:, None] * (x - tau.cos()[:, None] * MU)


def teacher_field(process, sd=SD):
    return trig.trig_field(gaussian(MU, S, process).denoiser, process, sd)


@pytest.mark.parametrize("sd", [0.5, 1.0])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_trig_coordinates_are_those_of_every_process(process, sd):
    """The angle and back, samples on the unit circle, and the ODE's velocity sd F."""
    ends = trig.angle(process, f64(process.t_min, process.t_max), sd)
    tau = ends[0] + (ends[1] - ends[0]) * torch.linspace(0.05, 0.95, 16, dtype=torch.float64)
    t = trig.native(process, tau, sd)
    torch.testing.assert_close(trig.angle(process, t, sd), tau, rtol=1e-9, atol=1e-12)
    eps = X.flip(0)
    x = process.add_noise(X, eps, t) / trig.scale(process, t, sd)[:, None]
    torch.testing.assert_close(trig.noised(X, tau, eps, sd), x, rtol=1e-9, atol=1e-9)
    own = TrigFlow(sd)
    torch.testing.assert_close(own.add_noise(X, eps, tau), x, rtol=1e-9, atol=1e-9)
    found = sd * teacher_field(process, sd)(X, tau)
    torch.testing.assert_close(found, velocity(X, tau, sd), rtol=1e-8, atol=1e-8)


def test_no_angle_is_pure_noise():
    """Whose ratio no process has."""
    tau = trig.angle(RectifiedFlow(), torch.tensor([1.0]), SD)
    assert tau < math.pi / 2 and 0.99 < trig.native(RectifiedFlow(), tau, SD) < 1


def test_a_hop_is_ddims_step():
    process, tau, after = VarianceExploding(), f64(1.2, 0.9), f64(0.7, 0.1)
    x, denoise = f64(0.3, -0.8)[:, None], gaussian(MU, S, VarianceExploding()).denoiser
    found = trig.hop(x, SD * teacher_field(process)(x, tau), tau - after)
    t, s = (trig.native(process, angle, SD) for angle in (tau, after))
    x_t = trig.scale(process, t, SD)[:, None] * x
    expected = process.jump(x_t, denoise(x_t, t), t, s) / trig.scale(process, s, SD)[:, None]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def second_derivative(x, tau):
    """`cos sin dF/dtau` along the ODE where sd F is the velocity itself: that of `velocity`.

    The slope a obeys d(a y)/dtau = (a' + a^2) y, and the mean's part turns.
    """
    variance, slope = law(tau)
    turning = (tau.cos() ** 2 - tau.sin() ** 2) * (SD**2 - S**2) / variance
    slope_rate = turning - 2 * slope**2  # b b' / b^2 is the slope
    y = x - tau.cos()[:, None] * MU
    pace = (tau.cos() * tau.sin())[:, None]
    return pace * (-tau.cos()[:, None] * MU + (slope_rate + slope**2)[:, None] * y) / SD


def test_the_exact_rate_is_that_along_the_ode():
    F = teacher_field(TrigFlow(SD))
    value, rate = trig.exact_rate(F, X, TAU, velocity(X, TAU))
    torch.testing.assert_close(value, velocity(X, TAU) / SD, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(rate, second_derivative(X, TAU), rtol=1e-9, atol=1e-9)
    _, standing = trig.exact_rate(F, X, TAU, torch.zeros_like(X))  # at a fixed x it is another number
    assert (standing - rate).abs().max() > 0.1


@pytest.mark.parametrize("end, order", [(None, 4), ("low", 2), ("high", 2)])
def test_the_quotient_is_of_second_order_and_of_first_at_the_ends(end, order):
    """Half the length leaves a quarter of the error, at either end half; the value is F's there."""
    F, errors = teacher_field(TrigFlow(SD)), []
    tau = TAU if end is None else torch.full_like(TAU, 0.2 if end == "low" else 1.3)
    low, high = (f64(0.001)[0], f64(1.57)[0]) if end is None else (f64(0.2)[0], f64(1.3)[0])
    dx = velocity(X, tau)
    for delta in (2e-2, 1e-2):
        value, rate = trig.quotient_rate(F, X, tau, dx, delta, low, high)
        errors.append((rate - second_derivative(X, tau)).norm().item())
        rough = 1e-12 if end else 2 * delta**2
        assert (value - dx / SD).abs().max() <= rough
    assert 0 < errors[0] < 0.2 and errors[0] / errors[1] == pytest.approx(order, rel=0.05)


MASK = torch.arange(8)[None] < torch.tensor([8, 5, 3])[:, None]
VOXELS = torch.stack([torch.arange(8)] * 3, dim=1).expand(3, 8, 3)
NETWORKS = {
    "mlp": (lambda: MLP([6], width=16, depth=2), (6,), {}),
    "unet": (lambda: UNet([1, 8, 8], channels=8), (1, 8, 8), {}),
    "dit": (lambda: DiT([2, 4, 4], width=16, depth=2, heads=2), (2, 4, 4), {}),
    "set_dit": (lambda: SetDiT([8, 3], side=8, width=16, depth=2, heads=2), (8, 3), {"coords": VOXELS, "mask": MASK}),
    "video_unet": (lambda: VideoUNet([1, 4, 8, 8], channels=8), (1, 4, 8, 8), {}),
    "pair_transformer": (lambda: PairTransformer([8, 3], width=16, depth=2, heads=2, pair=6), (8, 3), {"mask": MASK}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_both_rates_agree_on_every_network(name):
    """Also through attention, whose fused kernels have no rule in forward mode."""
    make, shape, cond = NETWORKS[name]
    network = wake(make().double())
    denoiser = Denoiser(network, VarianceExploding(), "edm", SD)
    F = trig.trig_field(lambda x_t, t: denoiser(x_t, t, cond), denoiser.process, SD)
    generator = torch.Generator().manual_seed(0)
    x, tau = torch.randn(3, *shape, generator=generator, dtype=torch.float64), f64(0.4, 0.9, 1.4)
    dx = SD * expand(tau.cos(), x) * x
    with torch.no_grad():
        value, exact = trig.exact_rate(F, x, tau, dx)
        quotient = trig.quotient_rate(F, x, tau, dx, 1e-4, f64(0.01)[0], f64(1.57)[0])[1]
        torch.testing.assert_close(value, F(x, tau), rtol=1e-10, atol=1e-10)
    assert exact.abs().max() > 1e-3 and (exact - quotient).norm() <= 1e-3 * exact.norm()
