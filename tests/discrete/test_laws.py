"""Exact laws of every sampler against published numbers, enumerated in float64.

The numbers are TV and KL(p_0 || q). There is one call at each of the uniform times 1 - k / K; the
last call denoises.
"""

import pytest
import torch
from helpers import f64

from distillkit.discrete.denoiser import Reading
from distillkit.discrete.exact import Table, mini_countdown, potts
from distillkit.discrete.laws import kl, law, total_variation
from distillkit.discrete.process import Absorbing, Uniform
from distillkit.discrete.sampling import SAMPLERS, Independent, leap, stay_or
from distillkit.discrete.schedule import MDLMCosine
from distillkit.discrete.worlds import sequences

TABLES = {"countdown45": mini_countdown(4, 5), "countdown44": mini_countdown(4, 4), "potts": potts(3, 5, 1.5)}
slow = pytest.mark.slow


def model(name, process=Absorbing, schedule=None):
    return Table(TABLES[name], process(TABLES[name].shape[0], schedule))


def distances(teacher, times, step):
    """`(TV, KL)` of the sampler from the data."""
    found = law(teacher, teacher.length, times, SAMPLERS[step] if isinstance(step, str) else step)
    assert found.sum().item() == pytest.approx(1, abs=1e-12)
    return total_variation(teacher.probabilities, found).item(), kl(teacher.probabilities, found).item()


def rows(text):
    """Rows `K, TV, KL`; those of more than 8 calls on the larger world are slow tests."""
    parsed = [tuple(float(v) for v in line.split()) for line in text.strip().splitlines()]
    return [pytest.param(int(k), *rest, marks=slow if k > 8 else ()) for k, *rest in parsed]


@pytest.mark.parametrize(
    "num, exact_tv, exact_kl, leap_tv, leap_kl",
    rows("""
        1 0.875566 3.017765 0.875566 3.017765
        2 0.555612 0.919255 0.536774 0.851757
        4 0.310072 0.388482 0.300578 0.372035
        8 0.163446 0.180182 0.160250 0.176189
        16 0.083833 0.086899 0.082922 0.085926
        32 0.042452 0.042685 0.042211 0.042446
        64 0.021361 0.021155 0.021299 0.021096
    """),
)
def test_absorbing_countdown(num, exact_tv, exact_kl, leap_tv, leap_kl):
    teacher, times = model("countdown45"), Absorbing(4).grid(num)
    assert distances(teacher, times, "euler") == pytest.approx((exact_tv, exact_kl), abs=1e-6)
    assert distances(teacher, times, "tau_leap") == pytest.approx((leap_tv, leap_kl), abs=1e-6)


@pytest.mark.parametrize(
    "num, exact_tv, exact_kl, leap_tv, leap_kl",
    rows("""
        1 0.525458 1.067155 0.525458 1.067155
        2 0.298567 0.252497 0.293472 0.245773
        4 0.154319 0.066826 0.152773 0.066736
        8 0.077932 0.017810 0.077539 0.017941
        16 0.039098 0.004666 0.039002 0.004699
        32 0.019575 0.001200 0.019551 0.001206
        64 0.009793 0.000305 0.009787 0.000306
    """),
)
def test_absorbing_potts(num, exact_tv, exact_kl, leap_tv, leap_kl):
    teacher, times = model("potts"), Absorbing(3).grid(num)
    assert distances(teacher, times, "euler") == pytest.approx((exact_tv, exact_kl), abs=1e-6)
    assert distances(teacher, times, "tau_leap") == pytest.approx((leap_tv, leap_kl), abs=1e-6)


class Reject(Independent):
    """A tau-leap that moves only if exactly one event falls into the step, as one kernel."""

    def law(self, reading, s):
        moves = (reading.t - s) * reading.rates()
        return stay_or(moves * (-moves.sum(-1, keepdim=True)).exp(), reading.x)


def test_a_new_sampler_is_one_kernel():
    assert distances(model("potts"), Absorbing(3).grid(8), Reject())[0] == pytest.approx(0.080657, abs=1e-6)


@pytest.mark.parametrize("name, expected", [("countdown45", 0.175468), ("potts", 0.088848)])
def test_a_cosine_grid_is_slightly_worse(name, expected):
    times = (torch.pi * torch.arange(8, dtype=torch.float64) / 16).cos()
    assert distances(model(name), times, "tweedie")[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["countdown44", "potts"])
def test_log_linear_absorbing_makes_euler_tweedie_and_ancestral_one(name):
    teacher = model(name)
    laws = [
        law(teacher, teacher.length, teacher.process.grid(5), SAMPLERS[s]) for s in ("euler", "tweedie", "ancestral")
    ]
    assert (laws[0] - laws[1]).abs().max() < 1e-12 and (laws[0] - laws[2]).abs().max() < 1e-12


def test_another_schedule_parts_euler_from_tweedie():
    teacher = model("potts", schedule=MDLMCosine())
    found = {s: law(teacher, 5, teacher.process.grid(8), SAMPLERS[s]) for s in ("euler", "tweedie", "ancestral")}
    assert (found["euler"] - found["tweedie"]).abs().max() > 1e-4
    assert (found["ancestral"] - found["tweedie"]).abs().max() < 1e-12


UNIFORM = {  # num: (Euler, tau-leap, Tweedie), TV
    "potts": {
        4: (0.216635, 0.226242, 0.191153),
        8: (0.096642, 0.121790, 0.091004),
        16: (0.044369, 0.064052, 0.043064),
        32: (0.021087, 0.033326, 0.020770),
        128: (0.005056, 0.008696, 0.005037),
    },
    "countdown44": {
        4: (0.303006, 0.318171, 0.266723),
        8: (0.117758, 0.137074, 0.110420),
        16: (0.050104, 0.058390, 0.048531),
        32: (0.023173, 0.026685, 0.022788),
        128: (0.005604, 0.006419, 0.005579),
    },
}


@pytest.mark.parametrize(
    "name, num",
    [pytest.param(name, num, marks=slow if num > 32 else ()) for name, row in UNIFORM.items() for num in row],
)
def test_uniform(name, num):
    teacher, times = model(name, Uniform), Uniform(3).grid(num)
    found = [distances(teacher, times, step)[0] for step in ("euler", "tau_leap", "tweedie", "ancestral")]
    assert found[:3] == pytest.approx(UNIFORM[name][num], abs=1e-6) and found[3] == pytest.approx(found[2], abs=1e-12)


@pytest.mark.parametrize(
    "name, num, tv, divergence",
    [("potts", 8, 0.0772, 0.0174), ("countdown44", 8, 0.0614, 0.0272), ("countdown44", 16, 0.0277, 0.0064)],
)
def test_a_squared_grid_helps_uniform_noise_for_free(name, num, tv, divergence):
    found = distances(model(name, Uniform), Uniform(3).grid(num) ** 2, "tweedie")
    assert found == pytest.approx((tv, divergence), abs=6e-5)


@pytest.mark.parametrize(
    "name, calls, expected",
    [
        ("potts", 5, 0.195259),
        ("potts", 9, 0.089867),
        pytest.param("potts", 17, 0.036922, marks=slow),
        pytest.param("potts", 33, 0.013677, marks=slow),
        pytest.param("countdown44", 17, 0.060331, marks=slow),
    ],
)
def test_theta_trapezoidal(name, calls, expected):
    """Two calls a step and one to denoise; it pays from 17 calls on the smooth chain only."""
    times = Uniform(3).grid((calls + 1) // 2)
    assert distances(model(name, Uniform), times, "theta_trapezoidal")[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "name, calls, expected",
    [
        ("potts", 5, 0.166999),
        ("potts", 9, 0.084440),
        ("potts", 17, 0.041523),
        pytest.param("potts", 33, 0.020415, marks=slow),
        ("countdown44", 17, 0.046703),
    ],
)
def test_euler_with_as_many_calls(name, calls, expected):
    assert distances(model(name, Uniform), Uniform(3).grid(calls), "euler")[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["countdown45", "potts"])
def test_first_hitting_is_exact(name):
    assert distances(model(name), Absorbing(3).grid(5), "first_hitting")[0] < 1e-14


def test_gillespie_with_fewer_calls_is_not():
    """Two calls: three of five tokens at random at once, then two."""
    exact, merged = (distances(model("potts"), Absorbing(3).grid(num), "first_hitting")[0] for num in (5, 2))
    assert merged > 0.1 > exact


@pytest.mark.parametrize(
    "name, expected",
    [
        ("countdown45", (0.486258, 0.404877, 0.414857)),
        ("potts", (0.451409, 0.419438, 0.423543)),  # ties as in rational arithmetic, checked there
    ],
)
def test_confidence_never_samples_the_model(name, expected):
    """K = 2, 4, 5; even one token per call does not help."""
    found = [distances(model(name), Absorbing(3).grid(num), "confidence")[0] for num in (2, 4, 5)]
    assert found == pytest.approx(expected, abs=1e-6)


# A student is a list of steps and their times.


class Scaled(Reading):
    """A reading with rates multiplied, and its law (absorbing) or score (uniform) to a power."""

    def __init__(self, reading, scale, power):
        super().__init__(reading.process, reading.x, reading.t, reading)
        self.scale, self.power = scale, power

    def log_mean(self):
        return (self.power * self.output.log_mean()).log_softmax(-1)

    def log_score(self):
        if isinstance(self.process, Uniform):
            return self.power * self.output.log_score()
        return super().log_score()

    def rates(self):
        return self.scale * super().rates()


class Learned(Independent):
    def __init__(self, step, scale=1.0, power=1.0):
        self.step, self.scale, self.power = step, scale, power

    def law(self, reading, s):
        return self.step.law(Scaled(reading, self.scale, self.power), s)


@pytest.mark.parametrize(
    "name, process, step, kind, numbers, expected",
    [
        (
            "countdown45",
            Absorbing,
            "euler",
            "scale",
            (0.723, 0.742, 0.765, 0.793, 0.828, 0.871, 0.927),
            (0.1559, 0.1708),
        ),
        ("potts", Uniform, "tau_leap", "scale", (1, 0.553, 1.04, 1.47, 1.84, 2.10, 2.15), (0.0826, 0.0230)),
        ("potts", Uniform, "tau_leap", "power", (1, 3, 2.304, 1.568, 1.378, 1.287, 1.246), (0.0440, 0.0090)),
    ],
)
def test_a_few_numbers_per_step_make_a_student(name, process, step, kind, numbers, expected):
    """Published coefficients (three digits) give published laws; plain 0.1634, 0.1218, 0.1218."""
    steps = [Learned(SAMPLERS[step], **{kind: value}) for value in numbers]
    assert distances(model(name, process), Absorbing(3).grid(8), steps) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("process", [Absorbing, Uniform])
def test_all_ones_are_the_plain_sampler(process):
    teacher = Table(potts(3, 3, 1.5), process(3))
    plain = law(teacher, 3, teacher.process.grid(4), SAMPLERS["tau_leap"])
    learned = law(teacher, 3, teacher.process.grid(4), [Learned(SAMPLERS["tau_leap"])] * 3)
    assert (learned - plain).abs().max() < 1e-15


@pytest.mark.parametrize("process, step", [(Absorbing, "euler"), (Uniform, "tau_leap"), (Uniform, "tweedie")])
def test_laws_have_gradients_in_times_and_coefficients(process, step):
    teacher = Table(potts(3, 3, 1.5), process(3))

    def divergence(middle, scale):
        times = torch.cat([f64(0.9), middle, f64(0.2)])
        steps = [Learned(SAMPLERS[step], scale=scale[k]) for k in range(3)]
        return kl(teacher.probabilities, law(teacher, 3, times, steps))

    point = f64(0.7, 0.45).requires_grad_(), f64(1.0, 0.8, 1.2).requires_grad_()
    assert torch.autograd.gradcheck(divergence, point, rtol=1e-5)


@pytest.mark.parametrize("process", [Absorbing, Uniform])
def test_orders_on_a_smooth_stretch(process):
    """Half the step halves Euler's error from the exact law at 0.6 to 0.3; others are ranked."""
    teacher = Table(potts(3, 3, 1.5), process(3))
    x = sequences(teacher.process.num_states, 3)

    def error(name, num):
        reached, times = teacher.marginal(0.6).flatten(), torch.linspace(0.6, 0.3, num + 1, dtype=torch.float64)
        for t, s in zip(times[:-1], times[1:], strict=True):
            reached = SAMPLERS[name].push(teacher, x, reached, t, s)
        return total_variation(reached, teacher.marginal(0.3).flatten()).item()

    assert error("euler", 8) / error("euler", 16) == pytest.approx(2, rel=0.1)
    assert error("theta_rk2", 8) / error("theta_rk2", 16) == pytest.approx(2, rel=0.1)
    # with as many calls of the network, two per step
    assert error("theta_trapezoidal", 4) < error("euler", 8) / 2 and error("theta_rk2", 4) > error("euler", 8)


def test_a_leap_without_rates_stays():
    x = torch.tensor([[1]])
    assert torch.equal(leap(torch.zeros(1, 1, 3).double(), x, f64(1)), f64(0, 1, 0)[None, None])
    at_large = leap(torch.full((1, 1, 3), 1e9).double(), x, f64(1))
    assert torch.equal(at_large, f64(0.5, 0, 0.5)[None, None])
