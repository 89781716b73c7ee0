"""The four schedules: published values, slopes, the way back, folders."""

import pytest
import torch
from helpers import f64

from distillkit.discrete.schedule import DuoCosine, Geometric, LogLinear, MDLMCosine
from distillkit.spec import from_spec, to_spec

SCHEDULES = {"log_linear": LogLinear(), "geometric": Geometric(), "mdlm": MDLMCosine(), "duo": DuoCosine()}
QUARTERS = f64(0.25, 0.5, 0.75, 1)


@pytest.mark.parametrize(
    "name, quantity, expected",
    [
        ("log_linear", "alpha", (0.750250, 0.500500, 0.250750, 0.001)),
        ("log_linear", "rate", (1.331556, 1.996004, 3.984048, 999.0)),
        ("geometric", "sigma", (2.114743e-3, 4.472136e-2, 0.9457416, 20)),
        ("mdlm", "alpha", (0.923956, 0.707400, 0.383301, 0.001)),
        ("duo", "alpha", (0.617679, 0.293449, 0.076572, 1.2337e-6)),
    ],
)
def test_known_values_at_the_quarters(name, quantity, expected):
    assert getattr(SCHEDULES[name], quantity)(QUARTERS).tolist() == pytest.approx(expected, rel=1e-4, abs=5e-7)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_rate_is_the_slope_of_sigma(schedule):
    t = torch.linspace(0.01, 0.99, 40, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(schedule.sigma(t).sum(), t)
    torch.testing.assert_close(schedule.rate(t), slope, rtol=1e-10, atol=0)
    torch.testing.assert_close(schedule.alpha(t), (-schedule.sigma(t)).exp())


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_alpha_leads_back_to_the_time(schedule):
    t = torch.linspace(0.05, 0.95, 40, dtype=torch.float64)
    assert (schedule.from_alpha(schedule.alpha(t)) - t).abs().max() < 1e-11


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_folder_brings_it_back(schedule):
    assert from_spec(to_spec(schedule)) == schedule
    assert from_spec(to_spec(LogLinear(0.01))) == LogLinear(0.01) != LogLinear()


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"eps must lie in \(0, 1\), got 0"):
        LogLinear(0)
    with pytest.raises(ValueError, match="between 0 and sigma_max, got 2.0 and 1.0"):
        Geometric(2.0, 1.0)
