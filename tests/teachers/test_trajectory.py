"""The states of a sampler and the straightness of its trajectories against closed forms."""

import math

import pytest
import torch
from helpers import PROCESSES, f64, gaussian, neural

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, TrigFlow, VarianceExploding, expand
from distillkit.diffusion.sampling import SOLVERS, Recording
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactTeacher, Mixture
from distillkit.teachers.trajectory import straightness, visited

PLUS_MINUS = f64(1.0, -1.0)[:, None]  # has the first two moments of unit noise


# States


@pytest.mark.parametrize(
    "solver, calls", [("euler", 17), ("heun", 33), ("dpm_solver", 17), ("ddim", 17), ("unipc", 17)]
)
def test_every_call_is_a_state_and_the_last_gives_the_sample(solver, calls):
    teacher = neural()
    noise, cond = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), {"label": torch.arange(4) % 2}
    states = visited(teacher, noise, cond, teacher.grid(17), solver, kappa=3.0)
    assert len(states) == calls
    assert torch.equal(states[-1][2], teacher.sample(noise, cond, 17, solver, 3.0))
    denoise = teacher.stepper(cond, 3.0)
    assert all(torch.equal(denoise(x_t, t), x_0) for x_t, t, x_0 in states)
    assert torch.equal(states[0][0], teacher.start(teacher.process, noise, teacher.grid(17)[0], cond))
    times = teacher.grid(17)
    expected = times if calls == 17 else torch.stack([times[:-1], times[1:]], 1).flatten().tolist() + [times[-1]]
    assert [float(t) for _, t, _ in states] == [float(t) for t in expected]


def test_eulers_states_lie_on_its_path():
    """On a rectified flow one step is `x + (s - t)(x - x_0) / t`."""
    teacher = gaussian(1.0, 0.5, RectifiedFlow())
    states = visited(teacher, PLUS_MINUS, {}, teacher.grid(6), "euler")
    for (x, t, x_0), (x_next, s, _) in zip(states, states[1:], strict=False):
        torch.testing.assert_close(x_next, x + (s - t) * (x - x_0) / t)


def test_the_teachers_best_is_what_is_recorded_if_nothing_is_said_and_a_new_run_begins_anew():
    teacher = gaussian(1.0, 0.5)
    assert len(visited(teacher, PLUS_MINUS, {})) == 2 * 40 - 1
    recording = Recording(SOLVERS["ddim"])
    for steps in (5, 3):
        assert torch.equal(
            teacher.sample(PLUS_MINUS, {}, steps, recording), teacher.sample(PLUS_MINUS, {}, steps, "ddim")
        )
        assert len(recording.states) == steps


def test_guided_states_have_the_mean_of_the_guided_law():
    """With equal widths S the guided law is N(m_0 + kappa (m_c - m_0), S^2), with mean 3.4."""
    mixture = Mixture([[1.0], [0.2]], [[[0.25]], [[0.25]]], labels=[0, 1])  # class 1 stands for none
    teacher = ExactTeacher(mixture, RectifiedFlow(), classes={"label": 1})
    times = torch.linspace(1, 0.3, 201, dtype=torch.float64)
    states = visited(teacher, PLUS_MINUS, {"label": torch.zeros(2).long()}, times, "heun", kappa=4.0)
    x, t, _ = states[-1]
    assert float(t) == pytest.approx(0.3)
    assert float(x.mean()) == pytest.approx(2.38, abs=2e-4)
    assert float(x.std(correction=0)) == pytest.approx(math.hypot(0.7 * 0.5, 0.3), abs=2e-4)  # 0.461, the marginal's


# Straightness


@pytest.mark.parametrize("std", [0.5, 2.0])
@pytest.mark.parametrize("process", [RectifiedFlow(), TrigFlow(), TrigFlow(sigma_data=1.0)], ids=repr)
def test_a_gaussians_trajectories_bend_by_two_minus_half_pi_times_its_std(process, std):
    """x = (1 - tau) m + s z, s^2 = (1 - tau)^2 S^2 + tau^2: the bend is int s'^2 - (1 - S)^2."""
    found, exact = extrapolated(gaussian(0.7, std, process)), (2 - math.pi / 2) * std
    assert found == pytest.approx(exact, rel=1e-3)


def extrapolated(teacher):
    """The straightness without its error of first order in the step."""
    coarse, fine = (float(straightness(teacher, PLUS_MINUS, {}, steps)) for steps in (100, 200))
    return 2 * fine - coarse


def test_that_integral_is_the_one_of_the_trajectories():
    """The closed form against a fine grid of the exact flow."""
    std, tau = 0.5, torch.linspace(0, 1, 200_001, dtype=torch.float64)
    scale = ((1 - tau) ** 2 * std**2 + tau**2).sqrt()
    speed = scale.diff() / tau.diff()
    assert float((speed - (1 - std)).square().mean()) == pytest.approx((2 - math.pi / 2) * std, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in PROCESSES if name != "local"])  # half of whose signal is left
def test_all_processes_share_the_flow(name):
    """Where sampling starts with some signal left, tau and the paths start a little below one."""
    assert extrapolated(gaussian(0.7, 0.5, PROCESSES[name])) == pytest.approx((2 - math.pi / 2) * 0.5, rel=0.05)


def test_elements_are_added_and_what_the_mask_leaves_out_is_not():
    process = RectifiedFlow()
    teacher = ExactTeacher(Mixture([[0.0, 1.0]], [[[0.25, 0.0], [0.0, 4.0]]]), process)
    noise = f64(1, 1, -1, -1).reshape(2, 2)
    assert float(straightness(teacher, noise, {}, 200)) == pytest.approx((2 - math.pi / 2) * 2.5, rel=0.02)
    masked = {"mask": torch.tensor([[True, False]]).expand(2, 2)}
    assert float(straightness(teacher, noise, masked, 200)) == pytest.approx((2 - math.pi / 2) * 0.5, rel=0.02)


class Reflowed(Denoiser):
    """The flow after one reflow of N(0, S^2): velocity `(1 - S) z` at `((1 - tau) S + tau) z`."""

    def forward(self, x_t, t, cond=None):
        alpha, sigma = (expand(each, x_t) for each in (self.process.alpha(t), self.process.sigma(t)))
        return x_t * 0.5 / (0.5 * alpha + sigma)


@pytest.mark.parametrize("process", [RectifiedFlow(), VarianceExploding()])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_straight_flow_has_none(process, steps):
    teacher = Teacher(Reflowed(torch.nn.Identity(), process, "x0", 1.0), (1,))
    assert float(straightness(teacher, PLUS_MINUS, {}, steps)) < 1e-10


def test_guidance_is_the_samplers_own():
    mixture = Mixture([[1.0], [0.2]], [[[0.25]], [[1.0]]], labels=[0, 1])
    teacher = ExactTeacher(mixture, RectifiedFlow(), classes={"label": 1})
    cond = {"label": torch.zeros(2).long()}
    plain, guided = (float(straightness(teacher, PLUS_MINUS, cond, 200, kappa)) for kappa in (1.0, 3.0))
    assert plain == pytest.approx((2 - math.pi / 2) * 0.5, rel=0.02) and guided != pytest.approx(plain, rel=0.1)
