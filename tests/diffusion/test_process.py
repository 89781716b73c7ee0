"""Every process: scales, their derivatives, the inverse of the noise-to-signal ratio, grids."""

import math

import pytest
import torch
from helpers import PROCESSES, f64
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.diffusion.process import (
    DiscreteVarianceExploding,
    DiscreteVariancePreserving,
    RectifiedFlow,
    ResShift,
    TrigFlow,
    VarianceExploding,
    VariancePreserving,
    expand,
)

DISCRETE = ("ddpm", "latent", "cosine", "zero_snr")


def inside(process, num=64, margin=1e-3):
    """Times strictly inside the range and off the discrete processes' kinks."""
    u = torch.linspace(margin, 1 - margin, num, dtype=torch.float64)
    return process.t_min + u * (process.t_max - process.t_min)


@pytest.mark.parametrize("name", ["vp", *DISCRETE])
def test_variance_is_preserved(name):
    t = inside(PROCESSES[name])
    assert (PROCESSES[name].alpha(t) ** 2 + PROCESSES[name].sigma(t) ** 2 - 1).abs().max() < 1e-12


def test_scales_of_the_others():
    t = f64(0.002, 0.3, 0.9)
    ve, flow, trig = PROCESSES["ve"], PROCESSES["flow"], TrigFlow(sigma_data=0.7)
    assert torch.equal(ve.alpha(t), torch.ones(3).double()) and torch.equal(ve.sigma(t), t)
    assert torch.equal(flow.alpha(t) + flow.sigma(t), torch.ones(3).double()) and torch.equal(flow.sigma(t), t)
    assert ((trig.alpha(t)) ** 2 + (trig.sigma(t) / 0.7) ** 2 - 1).abs().max() < 1e-12
    assert torch.equal(trig.alpha(t), t.cos())


def test_continuous_vp_solves_its_sde():
    """`log alpha = -1/2 int beta`, beta(t) = 0.1 + 19.9 t, by the (here exact) trapezium rule."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    beta = 0.1 + 19.9 * t
    log_alpha = -torch.cumulative_trapezoid(beta, t) / 2
    assert (PROCESSES["vp"].alpha(t[1:]) - log_alpha.exp()).abs().max() < 1e-14


# Of LiDiff's table: alpha and sigma of the variance preserving process, by time.
LIDIFF = {0: (1.000, 0.006), 249: (0.893, 0.450), 499: (0.641, 0.767), 749: (0.370, 0.929), 999: (0.172, 0.985)}


@pytest.mark.parametrize("time, scales", LIDIFF.items())
def test_lidiffs_noise_stays_around_a_signal_that_stays(time, scales):
    t = f64(time)
    table, local = DiscreteVariancePreserving(1000, 3.5e-5, 0.007), DiscreteVarianceExploding()
    assert (float(table.alpha(t)), float(table.sigma(t))) == pytest.approx(scales, abs=1e-3)
    assert local.alpha(t) == 1 and float(local.sigma(t)) == pytest.approx(scales[1], abs=1e-3)
    torch.testing.assert_close(local.sigma(t), table.sigma(t), rtol=1e-12, atol=0)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_derivatives_are_those_of_autograd(process):
    t = inside(process).requires_grad_()
    for scale, slope in zip((process.alpha(t), process.sigma(t)), process.derivatives(t), strict=True):
        expected = torch.autograd.grad(scale.sum(), t)[0] if scale.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_noise_grows_and_signal_does_not(process):
    t = inside(process, 200)
    assert (
        (process.ratio(t).diff() > 0).all()
        and (process.alpha(t).diff() <= 0).all()
        and (process.sigma(t).diff() > 0).all()
    )
    torch.testing.assert_close(process.ratio(t), process.sigma(t) / process.alpha(t), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", PROCESSES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(u=st.floats(0, 0.9999))
def test_the_ratio_leads_back_to_the_time(name, u):
    process = PROCESSES[name]
    t = f64(process.t_min + u * (process.t_max - process.t_min))
    assert (process.from_ratio(process.ratio(t)) - t).abs() <= 1e-9 * process.t_max


@pytest.mark.parametrize("name", PROCESSES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(log_ratio=st.floats(math.log(0.02), math.log(60.0)))
def test_the_time_has_the_ratio(name, log_ratio):
    """The inverse map, where all processes overlap."""
    ratio = f64(log_ratio).exp()
    torch.testing.assert_close(PROCESSES[name].ratio(PROCESSES[name].from_ratio(ratio)), ratio, rtol=1e-9, atol=0)


def table(name):
    """alpha_bar of each schedule as a running product of Python numbers, without the project."""
    if name == "ddpm":
        betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    elif name in ("latent", "zero_snr"):
        low, high = math.sqrt(0.00085), math.sqrt(0.012)
        betas = [(low + (high - low) * i / 999) ** 2 for i in range(1000)]
    else:
        bar = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
        betas = [min(1 - b / a, 0.999) for a, b in zip(bar, bar[1:], strict=False)]
    product, found = 1.0, []
    for beta in betas:
        product *= 1 - beta
        found.append(product)
    if name == "zero_snr":
        found = [bar / (3 - 2 * bar) for bar in found]  # the ratio bar / (1 - bar) is three times smaller
        first, last = math.sqrt(found[0]), math.sqrt(found[-1])
        found = [((math.sqrt(bar) - last) * first / (first - last)) ** 2 for bar in found]
        found[-1] = 1e-12  # that is 0
    return f64(*found)


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_table_is_the_running_product(name):
    process, bar, t = PROCESSES[name], table(name), torch.arange(1000).double()
    torch.testing.assert_close(process.alpha(t) ** 2, bar, rtol=1e-9, atol=0)
    torch.testing.assert_close(process.sigma(t) ** 2, 1 - bar, rtol=1e-9, atol=0)


def test_known_values_of_published_tables():
    """alpha_bar at the ends: 0.9999, 4.04e-5 (DDPM); 0.99915, 4.66e-3 (latent diffusion)."""
    ends = f64(0, 999)
    assert (PROCESSES["ddpm"].alpha(ends) ** 2).tolist() == pytest.approx([0.9999, 4.0358e-5], rel=1e-4)
    assert (PROCESSES["latent"].alpha(ends) ** 2).tolist() == pytest.approx([0.99915, 4.6602e-3], rel=1e-4)


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_interpolates_the_log_ratio(name):
    process, t = PROCESSES[name], torch.arange(0, 998, 7).double()
    middle, below, above = (process.ratio(t + shift).log() for shift in (0.25, 0.0, 1.0))
    torch.testing.assert_close(middle, 0.75 * below + 0.25 * above, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_grid_falls_and_hits_the_ends(process):
    grid = process.grid(7)
    assert grid.dtype == torch.float64 and (grid.diff() < 0).all()
    assert grid[[0, -1]].tolist() == pytest.approx([process.t_max, process.t_min], rel=1e-12)
    low, high = (
        process.t_min + 0.1 * (process.t_max - process.t_min),
        process.t_min + 0.7 * (process.t_max - process.t_min),
    )
    assert process.grid(4, high, low)[[0, -1]].tolist() == pytest.approx([high, low])
    assert process.grid(1).tolist() == pytest.approx([process.t_max])


@pytest.mark.parametrize("shift", [0.2, 1.0, 3.0])
def test_a_shifted_grid_is_the_shift_of_an_even_one(shift):
    process = RectifiedFlow(t_min=0.02, shift=shift)
    grid = process.grid(9)
    assert grid[[0, -1]].tolist() == pytest.approx([1, 0.02])
    even = grid / (shift - (shift - 1) * grid)  # t = s u / (1 + (s - 1) u), solved for u
    torch.testing.assert_close(even.diff(), even.diff()[:1].expand(8))
    assert (grid[4] > 0.51) == (shift > 1) and process.grid(3, 0.8, 0.1)[[0, -1]].tolist() == pytest.approx([0.8, 0.1])
    with pytest.raises(ValueError, match="shift must be positive"):
        RectifiedFlow(shift=0.0)


def test_edm_grid_is_equation_5():
    num, rho = 18, 7
    expected = [(80 ** (1 / rho) + i / (num - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho for i in range(num)]
    torch.testing.assert_close(VarianceExploding().grid(num), f64(*expected))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_add_noise_broadcasts_times_over_the_batch(process):
    x, eps, t = torch.randn(3, 2, 4, 4).double(), torch.randn(3, 2, 4, 4).double(), inside(process, 3)
    noised = process.add_noise(x, eps, t)
    for i in range(3):
        torch.testing.assert_close(noised[i], process.alpha(t[i]) * x[i] + process.sigma(t[i]) * eps[i])
    torch.testing.assert_close(process.add_noise(x, eps, t[1]), process.add_noise(x, eps, t[1].expand(3)))


# From a noise level to a noisier one


def factors(process, s, t):
    """The factors of x_s and eps in `travel`, [N] each."""
    one, none = torch.ones(len(s), 1, dtype=torch.float64), torch.zeros(len(s), 1, dtype=torch.float64)
    return process.travel(one, s, t, none)[:, 0], process.travel(none, s, t, one)[:, 0]


def levels(process):
    """All pairs s <= t of a grid that begins next to the data and ends in pure noise: [N], [N]."""
    grid = process.grid(12).flip(0)
    first, second = torch.triu_indices(12, 12)
    return grid[first], grid[second]


def marginal(process, gain, added, s):
    """Signal and variance at the end of a walk from s: [2, N]."""
    return torch.stack([gain * process.alpha(s), (gain * process.sigma(s)) ** 2 + added])


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_travel_keeps_the_marginal(process):
    """Signal alpha_t, variance sigma_t^2 between all levels; any other radicand changes the law."""
    s, t = levels(process)
    gain, std = factors(process, s, t)
    found, expected = marginal(process, gain, std**2, s), torch.stack([process.alpha(t), process.sigma(t) ** 2])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)
    carried = process.alpha(t) * process.sigma(s) / process.alpha(s).clamp_min(1e-9)
    radicands = {
        "without the ratio of alphas": process.sigma(t) ** 2 - process.sigma(s) ** 2,
        "not squared": process.sigma(t) - carried,
        "added": process.sigma(t) ** 2 + carried**2,
        "all of the noise": process.sigma(t) ** 2,
        "alpha of t alone": process.sigma(t) ** 2 - (process.alpha(t) * process.sigma(s)) ** 2,
    }
    same = {"without the ratio of alphas", "alpha of t alone"} if bool((process.alpha(t) == 1).all()) else set()
    wrong = {k for k, v in radicands.items() if not torch.allclose(marginal(process, gain, v, s), expected, rtol=1e-2)}
    assert wrong == radicands.keys() - same


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_two_walks_have_the_law_of_one(process):
    """s to t to u: the gains multiply, the variances add."""
    grid = process.grid(9).flip(0)
    s, t, u = (grid[i] for i in torch.combinations(torch.arange(9), 3).T)
    (first, std), (second, more), (gain, whole) = (factors(process, *pair) for pair in ((s, t), (t, u), (s, u)))
    torch.testing.assert_close(first * second, gain, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close((second * std) ** 2 + more**2, whole**2, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_staying_at_a_level_is_the_identity(process, dtype):
    """Bit for bit, at both ends of the range and for times given as scalars too."""
    t = process.grid(7).to(dtype)
    x, eps = torch.randn(2, 7, 3, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert torch.equal(process.travel(x, t, t, eps), x)
    assert torch.equal(process.travel(x, t[0], t[0], eps), x)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_travel_is_as_precise_as_its_times(process):
    """float32 samples, float64 times: the factors are right to the last float32 digit."""
    s, t = levels(process)
    gain, std = factors(process, s, t)
    x, eps = torch.ones(2, len(s), 1)
    found = process.travel(x, s, t, 0 * eps), process.travel(0 * x, s, t, eps)
    assert found[0].dtype == torch.float32
    for one, exact in zip(found, (gain, std), strict=True):
        torch.testing.assert_close(one[:, 0].double(), exact, rtol=1e-6, atol=0)


def test_travel_takes_a_time_per_sample_or_one_for_all():
    process, (x, eps) = VariancePreserving(), torch.randn(2, 3, 2, 4, dtype=torch.float64)
    s, t = f64(0.1, 0.2, 0.3), f64(0.5)[0]
    found = process.travel(x, s, t, eps)
    for i in range(3):
        torch.testing.assert_close(found[i], process.travel(x[i : i + 1], s[i], t, eps[i : i + 1])[0])


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_way_back_is_refused_but_rounding_is_not(process):
    x, t = torch.ones(2, 1), process.grid(4)[1:3].float()
    with pytest.raises(ValueError, match="travel goes from a time to a noisier one, got s=.*: swap them"):
        process.travel(x, t, t.flip(0), x)
    assert process.travel(x, t, t * (1 - 1e-7), x).isfinite().all()


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_networks_see_a_number_of_order_one(process):
    seen = process.network_time(inside(process))
    assert seen.isfinite().all() and seen.abs().max() < 2 and (seen.diff() > 0).all()


def test_expand():
    like = torch.zeros(3, 2, 5)
    assert expand(torch.zeros(3), like).shape == (3, 1, 1) and expand(torch.tensor(1.0), like).shape == ()


PUBLISHED = {  # tables of eta, from noise to data
    (15, 0.04): [0.9801, 0.8256, 0.6888, 0.5685, 0.4633, 0.3720, 0.2934, 0.2264, 0.1700, 0.1232, 0.0850, 0.0546, 0.0311]
    + [0.0137, 0.0004],
    (4, 0.2): [0.9801, 0.5797, 0.2705, 0.0100],
}


@pytest.mark.parametrize("steps, min_noise", PUBLISHED)
def test_the_grid_is_resshifts_table(steps, min_noise):
    eta = ResShift(min_noise=min_noise).grid(steps) ** 2
    torch.testing.assert_close(eta, f64(*PUBLISHED[steps, min_noise]), rtol=0, atol=6e-5)


def test_resshift_is_the_shift_to_the_observation():
    """`x_t = x_0 + eta (y - x_0) + kappa sqrt(eta) eps` is the process on `x_0 - y`, beside y."""
    process = ResShift(kappa=1.5)
    x_0, y, eps = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eta = process.grid(8) ** 2
    published = x_0 + eta * (y - x_0) + 1.5 * eta.sqrt() * eps
    torch.testing.assert_close(y + process.add_noise(x_0 - y, eps, process.grid(8)), published, rtol=0, atol=1e-15)


def test_a_part_of_resshifts_grid_keeps_its_ends():
    grid = ResShift().grid(5, 0.5, 0.1)
    assert grid[[0, -1]].tolist() == pytest.approx([0.5, 0.1]) and (grid.diff() < 0).all()


def test_equality_is_that_of_the_settings():
    assert VarianceExploding() == VarianceExploding() != VarianceExploding(sigma_max=70.0)
    assert VariancePreserving() != VarianceExploding()
    assert DiscreteVariancePreserving() == DiscreteVariancePreserving() != DiscreteVariancePreserving(schedule="cosine")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: VarianceExploding(1.0, 0.5), "sigma_min must lie between 0 and sigma_max, got 1.0 and 0.5"),
        (lambda: VariancePreserving(t_min=0.0), "t_min must be positive, got 0.0"),
        (lambda: RectifiedFlow(t_max=1.5), "0 < t_min < t_max <= 1"),
        (lambda: TrigFlow(t_max=2.0), "pi/2"),
        (lambda: ResShift(t_max=1.0), "t_max must"),
        (lambda: ResShift(min_noise=2.0), "starts above t_max=0.99: lower it"),
        (lambda: DiscreteVariancePreserving(schedule="sigmoid"), "linear, scaled_linear or cosine, got 'sigmoid'"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
