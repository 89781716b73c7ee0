"""Jump Your Steps: the gain of a split in closed form, and where it puts the times."""

import math

import pytest
import torch

from distillkit.discrete.exact import Table
from distillkit.discrete.jump import jump_your_steps, split_gain
from distillkit.discrete.noise import fresh
from distillkit.discrete.process import Absorbing


@pytest.mark.parametrize("t, middle, s", [(1.0, 0.5, 0.0), (1.0, 0.5, 0.3), (0.8, 0.3, 0.1)])
def test_the_gain_of_a_split_in_closed_form(t, middle, s):
    """One absorbing token: masked in the middle implies masked before, under shared noise.

    With r(u) = sigma'(u) alpha(u) / (1 - alpha(u)) the sum over tokens of `R_m (log R_m - log R_t)`
    is `r(m) log (r(m) / r(t))`.
    """
    table = Table([0.25, 0.75], Absorbing(2))
    process, num = table.process, 4000
    x_0 = table.draw(num, torch.Generator().manual_seed(0))
    noise = fresh(0, num, 1)(0)

    def rate(u):
        u = torch.tensor(u, dtype=torch.float64)
        return float(process.rate(u) * process.alpha(u) / (1 - process.alpha(u)))

    x_m = process.add_noise(x_0, torch.tensor(middle, dtype=torch.float64), noise)
    share = float((x_m == process.mask).double().mean())
    expected = (middle - s) * share * rate(middle) * math.log(rate(middle) / rate(t))
    assert split_gain(table, x_0, t, middle, s, noise) == pytest.approx(expected, rel=1e-5)


def test_times_start_at_the_first_and_fall():
    table = Table([0.25, 0.75], Absorbing(2))
    x_0 = table.draw(64, torch.Generator().manual_seed(0))
    for num in (1, 3, 4):
        times = jump_your_steps(table, x_0, num, fresh(0, 64, 1)(0))
        assert len(times) == num and times[0] == 1 and (times.diff() < 0).all() and times[-1] > 0
