"""Feedback in closed form: where a reward and a hold let a student rest, and what stays."""

# ruff: noqa: E501 (a fault is a row of a table)

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import BATCH, UNMEASURED, Affine, Line, at, distil, f64, gaussian, neural, trainer
from methods.test_sets import test_sets_padded_further_have_the_same_loss as padded_further
from mutations import Mutation, prove
from torch import Tensor, nn

from distillkit import load_student
from distillkit.codec import Codec
from distillkit.methods.feedback import Feedback
from distillkit.methods.few_step import FewStepDistiller
from distillkit.networks.mlp import MLP
from distillkit.students.makers import Fresh
from tests.battery.conftest import tiny

MU, S, HOLD, SLOPE, BEST = 0.4, 0.8, 5.0, 3.0, 2.0  # the start N(MU, S^2), and what is asked of it
LINEAR, NEAR = (lambda x, batch: SLOPE * x[:, 0]), (lambda x, batch: -(x[:, 0] - BEST).square())


def rewarded(model, reward, step=0):
    """The model at this step of a run on data with this reward."""
    at(model, step)._trainer.datamodule = SimpleNamespace(reward=reward)
    return model


class OnALine(nn.Module):
    """The student `mu + s z` for unit noise z; it notes where it computes a gradient."""

    def __init__(self, mu: float, s: float, level: float):
        super().__init__()
        self.line, self.level, self.graded = Line(mu, s), level, []

    def forward(self, x, t, cond):
        self.graded.append(torch.is_grad_enabled())
        return self.line(x / self.level)


def on_a_line(mu, s, reward, **settings):
    """The method where everything is exact: student N(mu, s^2) that began as N(MU, S^2)."""
    model = Feedback(gaussian(0, 1), Fresh(MLP([1], width=8, depth=1)), **{"hold": HOLD} | settings)
    level = float(model.step_times[0])
    model.student, model.target = OnALine(mu, s, level), OnALine(MU, S, level)
    model.target.line.requires_grad_(True)  # so that a gradient through it would show
    z = f64(1.5, -1.5, 0.5, -0.5)[:, None] / 1.25**0.5
    model.randn = lambda shape, purpose: z if purpose == "student noise 0" else -z
    return rewarded(model, reward), model.student.line, {"data": torch.zeros(4, 1)}


@pytest.mark.parametrize("mu, s", [(MU, S), (1.0, 0.5)])
def test_a_linear_reward_has_the_closed_gradient(mu, s):
    """`2 hold (mu - mu_b) - slope` in the mean and `2 hold (s - s_b)` in the width."""
    model, line, batch = on_a_line(mu, s, LINEAR)
    expected = [2 * HOLD * (mu - MU) - SLOPE, 2 * HOLD * (s - S)]
    assert line.gradient(model.student_loss(batch)) == pytest.approx(expected, abs=1e-9)


def test_a_linear_reward_moves_the_mean_and_keeps_the_width():
    """The student rests `slope / (2 hold)` from where it began."""
    model, line, batch = on_a_line(MU + SLOPE / (2 * HOLD), S, LINEAR)
    assert line.gradient(model.student_loss(batch)) == pytest.approx([0, 0], abs=1e-9)


def test_a_quadratic_reward_moves_the_mean_and_narrows():
    """Each sample rests at `(hold x_b + best) / (hold + 1)` for the reward `-(x - best)^2`."""
    model, line, batch = on_a_line((HOLD * MU + BEST) / (HOLD + 1), S * HOLD / (HOLD + 1), NEAR)
    assert line.gradient(model.student_loss(batch)) == pytest.approx([0, 0], abs=1e-9)


def test_without_a_hold_nothing_stops_the_student():
    for mu in (MU, 100.0):
        model, line, batch = on_a_line(mu, S, LINEAR, hold=0.0)
        assert line.gradient(model.student_loss(batch)) == pytest.approx([-SLOPE, 0], abs=1e-9)


def test_the_held_samples_are_constants():
    model, _, batch = on_a_line(MU, S, LINEAR)
    model.student_loss(batch).backward()
    assert model.student.graded == [True] and model.target.graded == [False]
    assert all(p.grad is None for p in model.target.parameters())


class Constant(nn.Module):
    """A student whose samples are the time of its step, moved."""

    def __init__(self, by: Tensor):
        super().__init__()
        self.by = nn.Parameter(by)

    def forward(self, x, t, cond):
        return 0 * x + t + self.by


@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_sample_of_several_numbers_moves_by_as_many_times_its_slope(num_steps):
    """By `N / (2 hold) grad r`, for the hold is a mean over N numbers; the last step's samples."""
    slope = torch.tensor([1.0, -2.0])
    model = rewarded(Feedback(neural(), hold=HOLD, num_steps=num_steps), lambda x, batch: x @ slope)
    model.student, model.target = Constant(2 / (2 * HOLD) * slope), Constant(torch.zeros(2))
    model.student_loss(BATCH).backward()
    assert model.student.by.grad.abs().max() < 1e-4


@pytest.mark.parametrize("codec", [Codec(), Affine()], ids=["plain", "decoded"])
def test_the_reward_sees_decoded_samples_and_their_batch_with_gradient(codec):
    seen = []

    def reward(samples, batch):
        assert samples.requires_grad and batch is BATCH
        seen.append(samples)
        return samples.flatten(1).sum(1)

    model = rewarded(Feedback(neural(codec=codec)), reward)
    loss = model.student_loss(BATCH)
    cond = model.condition(BATCH)
    x_g = model.generate((8, 2), cond, "student", 0)
    torch.testing.assert_close(seen, [codec.decode(x_g, cond)])
    torch.testing.assert_close(loss, -seen[0].flatten(1).sum(1).mean())  # nothing holds where it began


def test_the_run_holds_the_student_at_its_start_however_far_it_goes():
    made = tiny("feedback")
    model, run = made.model, trainer(max_steps=3)
    before = {name: value.clone() for name, value in model.target.state_dict().items()}
    assert all(torch.equal(value, model.student.state_dict()[name]) for name, value in before.items())
    run.fit(model, made.data)
    assert all(torch.equal(value, before[name]) for name, value in model.target.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in model.student.state_dict().items())


@pytest.mark.parametrize(
    "reward, said",
    [
        (lambda x, batch: x, r"SimpleNamespace.reward must give one number for each of 8 samples, got \[8, 2\]"),
        (lambda x, batch: x.detach()[:, 0], "the reward has no gradient in the samples, .*: SimpleNamespace.reward and Codec.decode must be differentiable"),
    ],
)  # fmt: skip
def test_a_reward_that_cannot_be_followed_is_refused(reward, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        rewarded(Feedback(neural()), reward).student_loss(BATCH)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"hold": -1.0}, r"hold must lie in \[0, 1000\], got -1.0"),
        ({"kappa": 2.0}, "no teacher is called that kappa=2.0 could guide: leave model.kappa at 1"),
        ({"kappa": [1.0, 2.0]}, "kappa of Feedback is one number"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Feedback(neural(), **settings)


def test_data_whose_reward_only_ranks_are_refused():
    data = SimpleNamespace(provides=frozenset({"data", "numbers", "reward"}), easier=())
    with pytest.raises(
        ValueError, match="^Feedback needs reward_gradient, which Teacher and SimpleNamespace do not give;"
    ):
        Feedback(neural()).require(data)


@pytest.mark.slow
def test_a_chain_moves_every_sample_by_what_the_hold_allows(tmp_path):
    """On the plane, from the command line: by 1 / hold along the first number, of which r is."""
    words = ["domain=toy", "method=pairs,feedback", "seed_everything=1", "trainer.max_steps=1000"]
    distil("fit", *words, *UNMEASURED, "-m", "--chain", "--out", tmp_path, timeout=900)
    before, after = (load_student(tmp_path / run).sample(10_000, {}, seed=1) for run in ("0", "1"))
    moved = after - before
    assert moved.mean(0).tolist() == pytest.approx([0.1, 0.0], abs=0.01)
    assert moved.std(0).max() < 0.02


sample = partial(test_the_reward_sees_decoded_samples_and_their_batch_with_gradient, Affine())
closed = partial(test_a_linear_reward_has_the_closed_gradient, 1.0, 0.5)
several = partial(test_a_sample_of_several_numbers_moves_by_as_many_times_its_slope, 3)
LOSS = [
    ("away from the reward", "- reward.mean()", "+ reward.mean()", closed),
    ("the hold's weight left out", "self.hold * ", "", closed),
    ("held at nothing", "(x_g - x_b)", "x_g", closed),
    ("held by other noise", '"student", last, denoiser=self.target', '"held", last, denoiser=self.target', closed),
    ("held at itself", "denoiser=self.target", "denoiser=self.student", closed),
    ("the held samples not stopped", "torch.no_grad()", "torch.enable_grad()", test_the_held_samples_are_constants),
    ("the sum of the rewards", "- reward.mean()", "- reward.sum()", closed),
    ("the sum over the numbers", "mean((x_g - x_b).square(), ", "2 * mean((x_g - x_b).square(), ", several),
    ("the first step", 'x_g = self.generate(shape, cond, "student", last)', 'x_g = self.generate(shape, cond, "student", 0)', several),
    ("the mask not handed on", 'cond.get("mask")', "None", partial(padded_further, "feedback's hold")),
]  # fmt: skip
MUTATIONS = [
    *(Mutation(says, Feedback.student_loss, *rest) for says, *rest in LOSS),
    Mutation("not decoded", FewStepDistiller.reward, "self.teacher.codec.decode(x_g, cond)", "x_g[..., None]", sample),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)
