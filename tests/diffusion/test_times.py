"""Noise-level samplers: the quantiles that the literature's settings have."""

import math

import pytest
import torch
from helpers import PROCESSES, f64
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.diffusion.process import (
    DiscreteVariancePreserving,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
)
from distillkit.diffusion.times import (
    Annealed,
    KarrasUniform,
    LogitNormal,
    LogNormal,
    LogUniform,
    ShiftedUniform,
    TableUniform,
    Uniform,
)

VE, FLOW = VarianceExploding(), RectifiedFlow()
NAMED = {
    "lognormal": LogNormal(),
    "karras": KarrasUniform(),
    "uniform": Uniform(),
    "logit_normal": LogitNormal(math.log(2), 1.6),
    "shifted": ShiftedUniform(),
    "log_uniform": LogUniform(),
    "table": TableUniform(),
}


def quantiles(times, process, *shares):
    return times(f64(*shares), process).tolist()


def evenly(num=100_000):
    """Midpoints of equal parts of (0, 1): averages over them are expectations."""
    return (torch.arange(num, dtype=torch.float64) + 0.5) / num


def test_sids_student_side():
    """Range [0.002, 24.41], median 0.965."""
    found = quantiles(KarrasUniform(0.0, 0.8), VE, 0, 0.5, 1)
    assert found == pytest.approx([0.002, 0.9651, 24.41], rel=1e-3)


def test_dmds_student_side():
    """DMD2's integers 20 .. 980 of 1000 are levels 0.00323 .. 72.05 with 999 intervals."""
    found = quantiles(KarrasUniform(20 / 999, 980 / 999), VE, 0, 1)
    assert found == pytest.approx([0.00323, 72.05], rel=2e-3)


def test_lognormal_moments():
    log = LogNormal(-1.2, 1.2).times(evenly(), VE).log()
    assert log.mean().item() == pytest.approx(-1.2, abs=1e-6) and log.std().item() == pytest.approx(1.2, rel=1e-3)
    found = quantiles(LogNormal(-0.4, 1.0), VE, 0.158655, 0.5, 0.841345)
    assert found == pytest.approx([math.exp(-1.4), math.exp(-0.4), math.exp(0.6)], rel=1e-4)


def test_logit_normal_of_sid_on_flows():
    found = quantiles(LogitNormal(math.log(2), 1.6), FLOW, 0.05, 0.25, 0.5, 0.75, 0.95)
    assert found == pytest.approx([0.126, 0.405, 2 / 3, 0.855, 0.965], abs=1e-3)


def test_shifted_uniform_of_large_flows():
    found = quantiles(ShiftedUniform(5.0), FLOW, 0, 0.5, 1)
    assert found == pytest.approx([0.02, 5 * 0.5 / 3, 0.98]) and found[1] == pytest.approx(0.833, abs=2e-3)
    assert quantiles(ShiftedUniform(1.0), FLOW, 0.3) == pytest.approx([0.3])


def test_uniform_covers_the_processes_own_range():
    assert quantiles(Uniform(0.02, 0.98), FLOW, 0, 1) == pytest.approx([0.001 + 0.02 * 0.999, 0.001 + 0.98 * 0.999])
    assert quantiles(Uniform(0.0, 1.0), DiscreteVariancePreserving(), 0, 0.5, 1) == pytest.approx([0, 499.5, 999])


WIDE = ("ve", "flow", "trig")  # they know every level of EDM, 0.002 .. 80


def test_steps_of_stable_diffusion_are_steps_of_its_own_process():
    own = PROCESSES["latent"]
    found = quantiles(TableUniform(0.02, 0.98), own, 0, 0.5, 1)
    assert found == pytest.approx([0.02 * 999, 499.5, 0.98 * 999], rel=1e-6)
    ratios = quantiles(TableUniform(0.02, 0.98), VE, 0, 1)
    assert ratios == pytest.approx(own.ratio(f64(0.02 * 999, 0.98 * 999)).tolist())
    assert ratios == pytest.approx([0.138, 13.0], rel=5e-3)


@pytest.mark.parametrize("name, times", [(n, LogNormal()) for n in PROCESSES] + [(n, KarrasUniform()) for n in WIDE])
def test_levels_are_the_same_on_every_process(name, times):
    """A sampler stated in the ratio gives every process the ratios it gives EDM."""
    u = torch.linspace(0.3, 0.8, 9, dtype=torch.float64)  # ratios 0.05 .. 10, which all processes know
    torch.testing.assert_close(PROCESSES[name].ratio(times(u, PROCESSES[name])), times(u, VE), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", NAMED)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_more_is_later(name, low, high):
    low, high = sorted((low, high))
    early, late = quantiles(NAMED[name], FLOW, low, high)
    assert 0 < early <= late <= 1 and math.isfinite(late)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_precision_are_those_of_the_uniforms(name, dtype):
    u = torch.tensor([0.0, 0.1, 0.999999], dtype=dtype)
    for process in (VE, FLOW, VariancePreserving(), DiscreteVariancePreserving()):
        t = NAMED[name](u, process)
        assert t.shape == (3,) and t.dtype == dtype and t.isfinite().all()


@pytest.mark.parametrize("name", ["lognormal", "karras"])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_times_stay_in_the_range_of_the_process(name, process):
    """A teacher trained on integers 0 .. 999 knows no time below 0, wherever EDM's levels lie."""
    t = NAMED[name](torch.linspace(0, 1, 101, dtype=torch.float64), process)
    assert t.min() >= process.t_min - 1e-9 and t.max() <= process.t_max + 1e-9


@pytest.mark.parametrize("part", [(0.0, 0.8), (0.02, 0.98)])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_levels_do_not_pile_up_at_the_ends(process, part):
    """EDM's range is wider than a table's: the part beyond must not land on the end levels."""
    t = KarrasUniform(*part)(evenly(1000), process)
    for end in (process.t_min, process.t_max):
        assert (t - end).abs().lt(1e-9).double().mean() < 0.02


@pytest.mark.parametrize("kind", [KarrasUniform, Uniform])
@pytest.mark.parametrize("low, high", [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.2, 1.1)])
def test_an_empty_part_is_refused(kind, low, high):
    with pytest.raises(ValueError, match=r"must lie (below high|in \[0, 1\]), got"):
        kind(low, high)


def test_even_in_log_t():
    """The range is 0.02 to 0.98; over 0.01 to 1, in arXiv 2510.03095, the median is 0.1."""
    assert quantiles(LogUniform(), FLOW, 0, 0.5, 1) == pytest.approx([0.02, 0.14, 0.98])
    assert quantiles(LogUniform(0.01, 1.0), FLOW, 0.5) == pytest.approx([0.1])
    u = f64(0.1, 0.4, 0.7)
    steps = LogUniform()(u, FLOW).log().diff()
    assert steps[0].item() == pytest.approx(steps[1].item())
    with pytest.raises(ValueError, match="low must be positive, got 0.0"):
        LogUniform(0.0)


# Levels that change in the course of a run


def annealed(**settings):
    return Annealed(Uniform(0.5, 0.98), Uniform(0.02, 0.5), **settings)


@pytest.mark.parametrize(
    ("done", "low", "high"), [(0, 0.5, 0.98), (0.25, 0.38, 0.86), (0.5, 0.26, 0.74), (1, 0.02, 0.5)]
)
def test_both_ends_of_uniform_levels_move_linearly(done, low, high):
    assert annealed()(f64(0, 0.5, 1), FLOW, done).tolist() == pytest.approx([low, (low + high) / 2, high], abs=1e-3)


@pytest.mark.parametrize(("done", "low"), [(0.1, 0.5), (0.2, 0.5), (0.3, 0.26), (0.4, 0.02), (0.9, 0.02)])
def test_levels_change_between_two_shares_of_the_run(done, low):
    assert annealed(begin=0.2, end=0.4)(f64(0), FLOW, done).item() == pytest.approx(low, abs=1e-3)


@pytest.mark.parametrize(("done", "low"), [(0.199, 0.5), (0.2, 0.02)])
def test_levels_change_at_once(done, low):
    assert annealed(begin=0.2, end=0.2)(f64(0), FLOW, done).item() == pytest.approx(low, abs=1e-3)


def test_a_method_that_does_not_say_where_its_run_is_cannot_let_levels_change():
    with pytest.raises(ValueError, match="does not let its noise levels change"):
        annealed()(f64(0.5), FLOW)


@pytest.mark.parametrize("settings", [{"begin": 0.5, "end": 0.4}, {"begin": -0.1}, {"end": 1.1}])
def test_shares_of_the_run_that_cannot_be(settings):
    with pytest.raises(ValueError):
        annealed(**settings)
