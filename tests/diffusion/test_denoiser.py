"""Conversions from predictions of a network to x_0, and from x_0 to noise, score, velocity."""

import math

import pytest
import torch
from helpers import PROCESSES, f64, gaussian
from torch import nn

from distillkit.diffusion import denoiser as convert
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, TrigFlow, VarianceExploding, VariancePreserving, expand
from distillkit.networks.dit import DiT
from distillkit.networks.mlp import MLP
from distillkit.networks.unet import UNet

UNIT_CIRCLE = {"vp", "ddpm", "latent", "cosine", "zero_snr", "trig1"}  # alpha^2 + sigma^2 = 1
ALL = PROCESSES | {"trig1": TrigFlow(sigma_data=1.0)}
LEGAL = [(p, k) for p in ("x0", "eps", "v", "flow", "edm") for k in ALL if p != "v" or k in UNIT_CIRCLE]
SIGMA_DATA = 0.7


class Fixed(nn.Module):
    """A network with a known output that keeps its inputs."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, time, cond):
        self.seen = x, time, cond
        return self.answer


def setting(name, num=5):
    """Known x_0 and eps, noised at times over the middle of the range; all float64."""
    process, generator = ALL[name], torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(num, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = process.from_ratio(torch.logspace(-1.5, 1.3, num, dtype=torch.float64))
    return process, x_0, eps, t, process.add_noise(x_0, eps, t)


def target(prediction, process, x_0, eps, t):
    """The output of a perfect network of this kind, by definition, without project conversions."""
    alpha, sigma = expand(process.alpha(t), x_0), expand(process.sigma(t), x_0)
    if prediction == "x0":
        return x_0
    if prediction == "eps":
        return eps
    if prediction == "v":
        return alpha * eps - sigma * x_0
    if prediction == "flow":  # d x_t / dt at fixed x_0 and eps, numerically exact by autograd
        moving = t.clone().requires_grad_()
        slopes = [
            torch.autograd.grad(s(moving).sum(), moving, allow_unused=True)[0] for s in _scales_with_graph(process)
        ]
        return expand(slopes[0], x_0) * x_0 + expand(slopes[1], x_0) * eps
    # EDM: D = c_skip x + c_out F in the VE frame x = x_t / alpha, level ratio = sigma / alpha
    ratio, x = sigma / alpha, (alpha * x_0 + sigma * eps) / alpha
    c_skip = SIGMA_DATA**2 / (ratio**2 + SIGMA_DATA**2)
    c_out = ratio * SIGMA_DATA / (ratio**2 + SIGMA_DATA**2).sqrt()
    return (x_0 - c_skip * x) / c_out


def _scales_with_graph(process):
    return (lambda t: process.alpha(t) + 0 * t, lambda t: process.sigma(t) + 0 * t)


@pytest.mark.parametrize("prediction, name", LEGAL)
def test_the_exact_output_gives_back_x0(prediction, name):
    process, x_0, eps, t, x_t = setting(name)
    perfect = Denoiser(Fixed(target(prediction, process, x_0, eps, t)), process, prediction, SIGMA_DATA)
    assert (perfect(x_t, t) - x_0).abs().max() < 1e-10
    assert (perfect.eps(x_t, t) - eps).abs().max() < 1e-10
    score = -eps / expand(process.sigma(t), eps)
    torch.testing.assert_close(perfect.score(x_t, t), score, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(perfect.velocity(x_t, t), target("flow", process, x_0, eps, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction, name", LEGAL)
def test_the_loss_weight_is_that_of_the_own_target(prediction, name):
    """weight |x_0 error|^2 = |target error|^2 for any wrong output at the same x_t."""
    process, x_0, eps, t, x_t = setting(name)
    right = target(prediction, process, x_0, eps, t)
    error = torch.randn(right.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wrong = Denoiser(Fixed(right + error), process, prediction, SIGMA_DATA)
    weighted = expand(wrong.loss_weight(t), x_0) * (wrong(x_t, t) - x_0) ** 2
    torch.testing.assert_close(weighted, error**2, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_conversions_round_trip(name):
    process, x_0, _, t, x_t = setting(name)
    a, s = expand(process.alpha(t), x_0), expand(process.sigma(t), x_0)
    d = [expand(rate, x_0) for rate in process.derivatives(t)]
    assert (convert.x0_from_eps(x_t, convert.eps_from_x0(x_t, x_0, a, s), a, s) - x_0).abs().max() < 1e-10
    u = convert.velocity_from_x0(x_t, x_0, a, s, *d)
    assert (convert.x0_from_velocity(x_t, u, a, s, *d) - x_0).abs().max() < 1e-10
    assert ((x_t + s**2 * convert.score_from_x0(x_t, x_0, a, s)) / a - x_0).abs().max() < 1e-10
    if name in UNIT_CIRCLE:
        v = convert.v_from_x0(x_t, x_0, a, s)
        assert (convert.x0_from_v(x_t, v, a, s) - x_0).abs().max() < 1e-10
        assert (s * x_t + a * v - convert.eps_from_x0(x_t, x_0, a, s)).abs().max() < 1e-10


def test_the_flows_velocity_is_eps_minus_x0():
    process, x_0, eps, t, x_t = setting("flow")
    perfect = Denoiser(Fixed(eps - x_0), process, "flow")
    assert (perfect(x_t, t) - x_0).abs().max() < 1e-12
    assert (perfect.velocity(x_t, t) - (eps - x_0)).abs().max() < 1e-12


def test_differences_of_denoisers_are_differences_of_scores():
    """s_psi - s_phi = alpha (D_psi - D_phi) / sigma^2; eps_phi - eps_psi with alpha / sigma."""
    phi, psi = (gaussian(m, s, VariancePreserving()).denoiser for m, s in ((0.5, 0.8), (-0.2, 1.3)))
    x, t = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], torch.linspace(0.05, 0.9, 9, dtype=torch.float64)
    alpha, sigma = phi.scales(x, t)
    gap = psi(x, t) - phi(x, t)
    torch.testing.assert_close(psi.score(x, t) - phi.score(x, t), alpha * gap / sigma**2)
    torch.testing.assert_close(phi.eps(x, t) - psi.eps(x, t), alpha / sigma * gap)


def test_edm_preconditioning_is_the_papers():
    """D = c_skip x + c_out F(c_in x; ln(sigma) / 4) on VE."""
    sigma, sd = f64(0.01, 0.4, 70.0), 0.5
    x, out = torch.randn(3, 2).double(), torch.randn(3, 2).double()
    network = Fixed(out)
    found = Denoiser(network, VarianceExploding(), "edm", sd)(x, sigma)
    column = sigma[:, None]
    c_skip, c_out = sd**2 / (column**2 + sd**2), column * sd / (column**2 + sd**2).sqrt()
    torch.testing.assert_close(found, c_skip * x + c_out * out)
    seen, time, _ = network.seen
    torch.testing.assert_close(seen, x / (column**2 + sd**2).sqrt())
    torch.testing.assert_close(time, sigma.log() / 4)


@pytest.mark.parametrize("name", ALL)
def test_edm_adapters_agree_at_equal_ratio(name):
    """One network on VE and on any process: equal scaled states give equal inputs and outputs."""
    other, x, ratio = ALL[name], torch.randn(4, 2).double(), f64(0.05, 0.5, 2.0, 20.0)

    class Wave(nn.Module):
        def forward(self, x, time, cond):
            return (3 * x).sin()

    on_ve, on_other = (Denoiser(Wave(), process, "edm", SIGMA_DATA) for process in (VarianceExploding(), other))
    t = other.from_ratio(ratio)
    torch.testing.assert_close(on_other(other.alpha(t)[:, None] * x, t), on_ve(x, ratio), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("process", ALL.values(), ids=ALL)
def test_exact_gaussian(process):
    """Denoised sample, noise, score and velocity of N(m, S^2) in closed form."""
    m, S = 0.3, 0.8
    exact = gaussian(m, S, process).denoiser
    t = process.from_ratio(torch.logspace(-1.5, 1.5, 6, dtype=torch.float64))
    x = torch.linspace(-2, 3, 6, dtype=torch.float64)[:, None]
    alpha, sigma = (s(t)[:, None] for s in (process.alpha, process.sigma))
    V = alpha**2 * S**2 + sigma**2
    x_0 = m + alpha * S**2 / V * (x - alpha * m)
    torch.testing.assert_close(exact(x, t), x_0, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(exact.score(x, t), -(x - alpha * m) / V, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(exact.eps(x, t), sigma * (x - alpha * m) / V, rtol=1e-8, atol=1e-9)
    # the probability flow keeps (x - alpha m) / sqrt(V) fixed
    d_alpha, d_sigma = (d[:, None] for d in process.derivatives(t))
    velocity = d_alpha * m + (alpha * d_alpha * S**2 + sigma * d_sigma) / V * (x - alpha * m)
    torch.testing.assert_close(exact.velocity(x, t), velocity, rtol=1e-8, atol=1e-9)


def test_a_scalar_time_is_one_for_all():
    exact, x = gaussian(0.3, 0.8, RectifiedFlow()).denoiser, torch.randn(5, 1).double()
    t = torch.tensor(0.4, dtype=torch.float64)
    for read in (exact, exact.eps, exact.score, exact.velocity):
        assert torch.equal(read(x, t), read(x, t.expand(5)))
    torch.testing.assert_close(exact(x, 0.4), exact(x, t))


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow", "edm"])
def test_half_precision_samples_are_denoised_in_float32(prediction):
    """eps is divided by a small alpha at the noisy end: rounding it first would lose the sample."""
    x_t, t = torch.tensor([[0.3, -1.2]], dtype=torch.bfloat16), torch.tensor([0.9])
    denoiser = Denoiser(Fixed(torch.tensor([[0.123456, -0.654321]])), VariancePreserving(), prediction, SIGMA_DATA)
    found = denoiser(x_t, t)
    assert found.dtype == torch.float32
    assert torch.equal(found, denoiser(x_t.float(), t))


@pytest.mark.parametrize(
    "network, shape, features",
    [
        (MLP([2], width=8, classes={"label": 3}), (2,), (4, 8)),
        (UNet([1, 8, 8], channels=8, multipliers=[1, 2], classes={"label": 3}), (1, 8, 8), (4, 16, 4, 4)),
        (DiT([1, 8, 8], width=8, depth=2, heads=2, patch=2, classes={"label": 3}), (1, 8, 8), (4, 8, 16)),
    ],
    ids=["mlp", "unet", "dit"],
)
def test_networks_and_their_features(network, shape, features):
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # also those that start at zero
        nn.init.normal_(parameter, std=0.3, generator=generator)
    denoiser, cond = Denoiser(network, VarianceExploding()), {"label": torch.tensor([0, 1, 2, 3])}
    x, t = torch.randn(4, *shape, generator=generator), torch.tensor([0.1, 0.5, 2.0, 9.0])
    assert denoiser(x, t, cond).shape == x.shape
    found = denoiser.features(x, t, cond)
    assert found.shape == features and found.shape[1] == network.feature_channels
    other = denoiser.features(x, t, {"label": torch.tensor([1, 1, 2, 3])})
    assert (found[0] - other[0]).abs().max() > 1e-3 and torch.allclose(found[1:], other[1:], atol=1e-6)
    with pytest.raises(ValueError, match="conditioned on 'label', but the condition has nothing"):
        denoiser(x, t)


def test_features_see_the_scaled_input():
    """The network's input has unit variance at any noise level, for features as for outputs."""

    class Spy(Fixed):
        def features(self, x, time, cond):
            return self(x, time, cond)

    spy, x, t = Spy(torch.zeros(1, 1)), torch.full((1, 1), 5.0).double(), f64(3.0)
    denoiser = Denoiser(spy, VarianceExploding(), "edm", 4.0)
    denoiser.features(x, t)
    assert spy.seen[0].item() == pytest.approx(5 / math.hypot(3, 4)) and spy.seen[1].item() == pytest.approx(
        math.log(3) / 4
    )


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="prediction must be x0, eps, v, flow or edm, got 'score'"):
        Denoiser(nn.Identity(), VarianceExploding(), "score")
    with pytest.raises(ValueError, match="sigma_data must be positive, got 0"):
        Denoiser(nn.Identity(), VarianceExploding(), sigma_data=0)


@pytest.mark.parametrize("name", sorted(ALL.keys() - UNIT_CIRCLE))
def test_v_prediction_off_the_unit_circle_is_refused(name):
    """`v` is a rotation: on VE or on a flow it would silently be another number."""
    with pytest.raises(ValueError, match="v"):
        Denoiser(nn.Identity(), ALL[name], "v")


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow", "edm"])
def test_a_network_that_does_not_see_the_noise_leaves_none_in_samples(prediction):
    network = Fixed(torch.zeros(2, 1))
    network.blind = True
    if prediction in ("x0", "edm"):
        process = VarianceExploding()
        made = Denoiser(network, process, prediction)(process.sigma_max * torch.ones(2, 1), torch.tensor(process.t_max))
        assert made.abs().max() < 0.01
    else:
        with pytest.raises(
            ValueError, match=f"Fixed does not see the noise, which {prediction} prediction would leave"
        ):
            Denoiser(network, VariancePreserving(), prediction)
