"""Hops: their levels and segments, their laws of draws, and the steps between them."""

import math

import pytest
import torch
from helpers import PROCESSES, f64, gaussian

from distillkit.diffusion.hops import Grid, Shrinking, edge_below, hop
from distillkit.diffusion.process import CLEAN, RectifiedFlow, VarianceExploding
from distillkit.diffusion.sampling import SOLVERS, few_step, jump_steps
from distillkit.diffusion.times import LogNormal

FLOW = RectifiedFlow(t_min=1e-9)
U = (torch.arange(1000).double() + 0.5) / 1000
M, S = 0.4, 0.7


def test_levels_are_a_sampler_s_times_and_the_datum():
    for process in PROCESSES.values():
        levels = Grid(5).levels(process, process.t_max)
        torch.testing.assert_close(levels[:-1].double(), process.grid(6)[:-1], rtol=1e-6, atol=1e-6)
        assert levels[-1] == CLEAN and len(levels) == 6


def test_every_hop_of_a_grid_is_as_likely():
    t, s = Grid(4)(U, FLOW, 1.0, 0.0)
    assert t.unique().tolist() == [0.25, 0.5, 0.75, 1.0] and s.unique().tolist() == [CLEAN, 0.25, 0.5, 0.75]
    assert all((t == level).sum() == 250 for level in t.unique())
    assert torch.equal(torch.where(s < 0, 0, s), t - 0.25)


def test_hops_may_pass_levels_of_a_law():
    """As often as the law has levels between the ends of the hop."""
    process, law = VarianceExploding(), LogNormal(-1.1, 2.0)
    grid = Grid(10, times=law)
    t, s = grid(U, process, 80.0, 0.0)
    drawn = law(U, process)
    assert bool(((drawn <= t * (1 + 1e-6)) & (drawn > s)).all())
    normal = torch.distributions.Normal(-1.1, 2.0)
    for far, near in zip(
        grid.levels(process, 80.0)[1:-2].double(), grid.levels(process, 80.0)[2:-1].double(), strict=True
    ):
        share = (normal.cdf(far.log()) - normal.cdf(near.log())).item()
        assert ((t - far).abs() < 1e-4 * far).double().mean().item() == pytest.approx(share, abs=2e-3)


@pytest.mark.parametrize(
    "settings, counts",
    [
        ((4, 32, True), [4, 4, 8, 8, 16, 16, 32, 32]),
        ((2, 5, True), [2, 2, 2, 4, 4, 4, 5, 5]),
        ((4, 3), [4, 4, 4, 4, 3, 3, 3, 3]),
        ((1, 4), [1, 1, 2, 2, 3, 3, 4, 4]),
        ((6,), [6] * 8),
    ],
)
def test_the_number_of_hops_moves_in_equal_parts_of_the_run(settings, counts):
    num, last, doubling = (*settings, None, False)[:3] if len(settings) < 3 else settings
    grid = Grid(num, last, doubling)
    assert [grid.now(step / 8) for step in range(8)] == counts and grid.changes == (len(set(counts)) > 1)


def test_a_segment_ends_at_the_largest_edge_below():
    """A level on an edge begins the segment below it: it is that segment's start."""
    edges = Grid(8).edges(FLOW, 1.0, 4)
    assert edges.tolist() == [0.75, 0.5, 0.25, CLEAN]
    t = torch.tensor([1.0, 0.875, 0.75, 0.625, 0.5, 0.25, 0.125])
    assert edge_below(t, edges).tolist() == [0.75, 0.75, 0.5, 0.5, 0.25, CLEAN, CLEAN]
    assert Grid(8).edges(FLOW, 1.0, 1).tolist() == [CLEAN]


def test_hops_shrink_from_the_datum():
    """ECT's formula with k = 8, b = 1, q = 2: `r = t - t n(t) / q^(stage + 1)`."""
    process = VarianceExploding()
    law = Shrinking(stages=4)
    for stage in range(4):
        t, s = law(U, process, 80.0, stage / 4)
        expected = t - t * (1 + 8 * torch.sigmoid(-t)) / 2 ** (stage + 1)
        kept = expected > process.t_min
        torch.testing.assert_close(s[kept], expected[kept], rtol=1e-6, atol=1e-9)
        assert bool((s[~kept] == CLEAN).all()) and (stage > 2 or bool((~kept).any()))
        assert bool((s < t).all())


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("kind", ["ddim", "heun"])
def test_a_chain_of_hops_is_the_sampler(name, kind):
    process = PROCESSES[name]
    teacher = gaussian(M, S, process)
    levels = Grid(6).levels(process, process.t_max).double()
    x = z = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    x = process.sigma(levels[0]) * z
    expected = SOLVERS[kind](lambda x, t: teacher.denoiser(x, t, {}), process, x, levels[:-1])
    for t, s in zip(levels, levels[1:], strict=False):
        x = hop(kind, lambda x, t: teacher.denoiser(x, t, {}), process, x, t.expand(5), s.expand(5))
    torch.testing.assert_close(x, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["ve", "vp", "flow", "trig"])
def test_a_chain_multiplies_the_std_by_the_cosines(name):
    process = PROCESSES[name]
    levels = Grid(6).levels(process, process.t_max).double()
    alpha, sigma = process.scales(levels)
    theta = torch.atan2(sigma, alpha * S)
    start = f64(-1.0, 1.0)[:, None] * (alpha[0] ** 2 * S**2 + sigma[0] ** 2).sqrt() + alpha[0] * M
    x, teacher = start, gaussian(M, S, process)
    for t, s in zip(levels, levels[1:], strict=False):
        x = hop("ddim", lambda x, t: teacher.denoiser(x, t, {}), process, x, t.expand(2), s.expand(2))
    assert x.mean().item() == pytest.approx(M, abs=1e-9)
    assert (x[1] - x[0]).item() / 2 / S == pytest.approx((theta[:-1] - theta[1:]).cos().prod().item(), abs=1e-9)


# Jumps and travels to and from the datum


@pytest.mark.parametrize("name", PROCESSES)
def test_the_datum_is_a_level(name):
    process = PROCESSES[name]
    x_0, eps = (torch.randn(4, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1))
    t = torch.full((4,), process.t_max * 0.6, dtype=torch.float64)
    clean = torch.full((4,), CLEAN, dtype=torch.float64)
    x_t = process.add_noise(x_0, eps, t)
    torch.testing.assert_close(process.travel(x_0, clean, t, eps), x_t)
    torch.testing.assert_close(process.jump(x_t, x_0, t, clean), x_0)
    torch.testing.assert_close(process.jump(x_t, x_0, t, t / 2), process.add_noise(x_0, eps, t / 2))
    with pytest.raises(ValueError, match="travel goes from a time to a noisier one"):
        process.travel(x_t, t, clean, eps)


# The gamma-sampler


def jumping(process):
    """The exact student of jumps of N(M, S^2), `x_r = alpha_r M + (b_r / b_t)(x - alpha_t M)`."""

    def denoise(x, t, end):
        (alpha_t, sigma_t), (alpha_r, sigma_r) = process.scales(t), process.scales(end)
        b_t, b_r = ((a**2 * S**2 + s**2).sqrt() for a, s in ((alpha_t, sigma_t), (alpha_r, sigma_r)))
        to = alpha_r * M + b_r / b_t * (x - alpha_t * M)
        keep = sigma_r / sigma_t
        return (to - keep * x) / (alpha_r - keep * alpha_t)

    return denoise


@pytest.mark.parametrize("name", ["ve", "vp", "flow", "trig"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9, 1.0])
def test_jumps_of_an_exact_student_keep_the_law(name, gamma):
    """Whatever the share of new noise: with the noise's quadrature points the variance is exact."""
    process = PROCESSES[name]
    times = process.grid(4)[:-1]
    alpha, sigma = process.alpha(times[0]), process.sigma(times[0])
    # two points of each draw: every combination of three draws
    draws = torch.cartesian_prod(*[f64(-1.0, 1.0)] * 3)
    first = draws[:, :1] * (alpha**2 * S**2 + sigma**2).sqrt() + alpha * M
    x = jump_steps(jumping(process), process, times, lambda i: draws[:, i : i + 1], gamma, start=lambda eps, t: first)
    assert x.mean().item() == pytest.approx(M, abs=1e-6) and x.std(correction=0).item() == pytest.approx(S, rel=1e-5)


def test_all_new_noise_is_few_step_and_none_is_one_draw():
    asked = []
    process, times = FLOW, f64(1.0, 0.6, 0.3)
    draws = torch.randn(3, 5, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoise = jumping(process)
    full = jump_steps(denoise, process, times, lambda i: draws[i], 1.0)
    clean = f64(CLEAN)[0]
    expected, _ = few_step(lambda x, t: denoise(x, t, clean), process, times, lambda i: draws[i])
    torch.testing.assert_close(full, expected)
    jump_steps(denoise, process, times, lambda i: asked.append(i) or draws[i], 0.0)
    assert asked == [0]


def test_a_gamma_jumps_below_the_next_level():
    """To the ratio sqrt(1 - gamma^2) times its own (CTM), so the new noise is gamma of it."""
    seen = []
    process, times = VarianceExploding(), f64(8.0, 2.0)

    def denoise(x, t, end):
        seen.append((t.item(), end.item()))
        return 0 * x

    jump_steps(denoise, process, times, lambda i: f64(1.0)[:, None], 0.6)
    assert seen == [(8.0, pytest.approx(2.0 * math.sqrt(1 - 0.36))), (2.0, CLEAN)]
