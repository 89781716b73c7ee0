"""rCM: sCM's loss and DMD's in one step, and the random backward simulation between them."""

import pytest
import torch
from helpers import BATCH, Line, at, f64, fit, gaussian, neural, sigma_points
from methods.test_scm import PLAIN, Jump, M, S, data

from distillkit.diffusion.process import RectifiedFlow, VarianceExploding
from distillkit.diffusion.times import Annealed, Times, Uniform
from distillkit.methods.base import Adam
from distillkit.methods.rcm import RCM
from distillkit.networks.mlp import MLP
from distillkit.students.makers import Fresh

NOW = Adam(updates=4, start=0)


class Level(Times):
    """One time, always."""

    def __init__(self, t):
        self.t = t

    def times(self, u, process):
        return torch.full_like(u, self.t)


def on_a_line(mu, s, process, **kwargs):
    """Teacher N(M, S^2); a student, exact for N(mu, s^2), and the best fake score for it."""
    settings = PLAIN | {"fake_score": NOW, "normalise": None, "max_steps": 1} | kwargs
    model = RCM(gaussian(M, S, process), student_maker=Fresh(MLP([1], width=8, depth=1)), **settings)
    line = Line(mu, s)
    model.student, model.fake_score = Jump(line, process), line.best_response(process)
    randn, rand = model.randn, model.rand
    model.randn = lambda shape, purpose: randn(shape, purpose).double()
    model.rand = lambda num, purpose: rand(num, purpose).double()
    return model, line


@pytest.mark.parametrize("max_steps", [1, 4])
@pytest.mark.parametrize("process", [VarianceExploding(), RectifiedFlow()], ids=["ve", "flow"])
def test_both_terms_rest_at_the_exact_student(process, max_steps):
    for weights in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        model, line = on_a_line(
            M, S, process, max_steps=max_steps, consistency_weight=weights[0], dmd_weight=weights[1]
        )
        at(model, step=19)  # the student's fourth
        loss = model.student_loss(data())
        assert loss.item() < 1e-16 and max(map(abs, line.gradient(loss))) < 1e-8


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("process", [VarianceExploding(), RectifiedFlow()], ids=["ve", "flow"])
def test_dmds_gradient_on_the_mean_is_the_closed_one(process, weight):
    """`(mu - M) sigma^2 / b^2` for one width, times what the jump from noise moves with mu."""
    t, mu = process.from_ratio(f64(0.8))[0], M + 0.2
    model, line = on_a_line(mu, S, process, consistency_weight=0.0, dmd_weight=weight, student_times=Level(float(t)))
    z, eps = sigma_points()
    model.randn = lambda shape, purpose: z if "noise" in purpose else eps
    alpha, sigma = process.alpha(t), process.sigma(t)
    first = model.step_times[0]
    moved = 1 - S * process.alpha(first) / (process.alpha(first) ** 2 * S**2 + process.sigma(first) ** 2).sqrt()
    expected = weight * (mu - M) * sigma**2 / (alpha**2 * S**2 + sigma**2) * moved
    found = line.gradient(model.student_loss({"data": torch.zeros(4, 1, dtype=torch.float64)}))[0]
    assert found == pytest.approx(expected.item(), rel=1e-6) and found > 0


def test_consistency_alone_until_the_fake_score_joins():
    start, losses = 5, {}
    for settings in ({}, {"dmd_weight": 0.0}):
        torch.manual_seed(0)
        model = RCM(neural(), fake_score=Adam(updates=4, start=start), **settings)
        with torch.no_grad():
            model.fake_score.network.out.weight.add_(0.5)  # where it is the teacher nothing pulls
        model.seed = 0
        losses[len(settings)] = [at(model, step).student_loss(BATCH).item() for step in (4, 5, 9)]
        assert [model.turn(step) for step in range(11)] == ["student"] * 5 + ["fake_score"] * 4 + [
            "student",
            "fake_score",
        ]
    assert losses[0][0] == losses[1][0] and losses[0][2] > losses[1][2]


def test_the_simulation_goes_round_and_falls():
    model = RCM(neural(), fake_score=NOW)
    steps = [len(at(model, step).simulated_times(8, "x")) for step in range(10)]
    assert steps == [1, 2, 3, 4, 1, 1, 2, 3, 4, 2]  # four of the fake score, one of the student, twice
    times = torch.stack(at(model, step=3).simulated_times(500, "x"))
    assert (times[0] == float(model.step_times[0])).all() and (times.diff(dim=0) <= 0).all()
    assert (times[1:].std(1) > 0.1).all() and times.min() >= model.teacher.process.t_min
    drawn = model.student_times(model.rand(500, "x t 2"), model.teacher.process)
    assert (
        torch.equal(times[2], torch.minimum(drawn, times[1])) and (drawn > times[1]).any() and (drawn < times[1]).any()
    )


def test_the_levels_of_the_simulation_may_change_in_the_course_of_the_run():
    levels = Annealed(Uniform(0.9, 1.0), Uniform(0.0, 0.1), begin=0.5, end=0.5)
    model = RCM(neural(), student_times=levels, fake_score=NOW)
    fit(model, 10)
    seen = {}
    for step in (1, 6):  # of the fake score, by the second step of a simulation
        at(model, step)._trainer.estimated_stepping_batches = 10
        seen[step] = model.simulated_times(100, "x")[1]
    process = model.teacher.process
    assert seen[1].min() >= levels.first(torch.zeros(1), process) > levels.last(torch.ones(1), process) >= seen[6].max()


def test_the_gradient_is_in_the_last_step_alone():
    model, seen = at(RCM(neural(), fake_score=NOW), step=3), []
    model.focus("student")
    model.student.register_forward_pre_hook(
        lambda m, args: seen.append((torch.is_grad_enabled(), args[0].requires_grad))
    )
    x_g, _ = model.rollout(BATCH, "student")
    assert seen == [(False, False)] * 3 + [(True, False)] and x_g.requires_grad
    inputs = []
    model.student.register_forward_pre_hook(lambda m, args: inputs.append(args[:2]))
    again, _ = model.rollout(BATCH, "student")
    assert torch.equal(x_g, again)
    for (x_t, t), i in zip(inputs[1:], (1, 2, 3), strict=True):  # fresh noise at every level
        eps = model.randn((8, 2), f"student noise {i}")
        x_0 = model.student(*inputs[i - 1], model.condition(BATCH))
        torch.testing.assert_close(x_t, model.teacher.process.add_noise(x_0, eps, t))


def test_every_role_trains_its_own():
    model = at(RCM(neural(), fake_score=NOW), step=9)
    assert model.roles == {"fake_score": ("fake_score",), "student": ("student", "log_variance")}
    for role, prefixes in (("student", ("student.", "log_variance.")), ("fake_score", ("fake_score.",))):
        model.zero_grad(set_to_none=True)
        model.focus(role)
        getattr(model, f"{role}_loss")(BATCH).backward()
        got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert got and all(name.startswith(prefixes) for name in got)
        assert role != "student" or "log_variance.out.weight" in got


def test_needs():
    for arguments, needed in (({}, {"denoiser", "data"}), ({"states": "trajectory"}, {"denoiser"})):
        assert RCM.needs(arguments) == needed == RCM(neural(), **arguments).requires
    model = RCM(neural(), states="trajectory", fake_score=NOW)
    model.student_loss({"label": BATCH["label"]})


def test_the_fake_score_is_not_told_a_step():
    """It follows all lengths of the simulation at once, whatever the student's own steps are."""
    model = at(RCM(neural(), fake_score=NOW, num_steps=4), step=2)
    model.fake_score_loss(BATCH)
    assert not model.fake_score.told and len(model.step_times) == 4
