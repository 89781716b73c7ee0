"""The base of every method: turns, gradients, averages, randomness, checkpoints; pretraining."""

import copy
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from helpers import BATCH, CLASSES, Pairs, at, fit, neural, same, trainer, wake
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from distillkit.diffusion.process import VarianceExploding
from distillkit.errors import Failure
from distillkit.methods.base import Adam, Distiller
from distillkit.methods.dmd import DMD
from distillkit.methods.pretrain import Pretrain
from distillkit.methods.sid import SiD
from distillkit.networks.mlp import MLP
from distillkit.report.logger import MetricsLogger
from distillkit.students.makers import Fresh


class Plain(Distiller):
    """Two roles that each follow the data; `broken` steps have no finite gradient."""

    def __init__(self, student=None, shadow=None, broken=(), **kwargs):
        super().__init__(**kwargs)
        self.broken = broken
        torch.manual_seed(0)
        self.add_role("shadow", shadow or Adam(lr=0.01), shadow=nn.Linear(2, 2))
        self.add_role("student", student or Adam(lr=0.01), student=nn.Linear(2, 2))
        self.keep_ema()

    def _loss(self, module, batch):
        loss = (module(batch["data"]) - 3).square().mean()
        return loss * math.nan if self.global_step in self.broken else loss

    def student_loss(self, batch):
        return self._loss(self.student, batch)

    def shadow_loss(self, batch):
        return self._loss(self.shadow, batch)

    export = sample = condition = None


# Turns


def test_turns():
    model = Plain(shadow=Adam(updates=5), student=Adam(updates=1))
    assert [model.turn(step) for step in range(7)] == ["shadow"] * 5 + ["student", "shadow"]
    model = Plain()
    assert [model.turn(step) for step in range(4)] == ["shadow", "student"] * 2


@pytest.mark.parametrize("updates", [(5, 1), (1, 1), (2, 3)])
def test_updates_before_counts_turns(updates):
    model = Plain(shadow=Adam(updates=updates[0]), student=Adam(updates=updates[1]))
    for step in range(20):
        made = Counter(model.turn(before) for before in range(step))
        assert {role: model.updates_before(role, step) for role in model.roles} == {r: made[r] for r in model.roles}


def test_idle_roles_stay_bit_identical():
    """Weights and both moments, against weight decay and momentum of their own group."""
    adam = Adam(lr=0.1, weight_decay=0.5, updates=2)
    states, _, record = fit(Plain(student=adam, shadow=adam), 8)
    for step, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        own, idle = ("shadow", "student") if step % 4 < 2 else ("student", "shadow")
        assert same(before.weights[idle], after.weights[idle]) and same(before.moments[idle], after.moments[idle])
        assert not same(before.weights[own], after.weights[own])
        assert all(g is None for g in record.grads[step][idle]) and all(g is not None for g in record.grads[step][own])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_max_steps_counts_optimiser_steps_and_a_role_keeps_its_window(accumulate):
    model, roles = Plain(), []
    step = model.training_step
    model.training_step = lambda batch, batch_idx: roles.append(model.turn(model.global_step)) or step(batch, batch_idx)
    _, run, _ = fit(model, 4, accumulate_grad_batches=accumulate)
    assert run.global_step == 4 and roles == [role for role in ("shadow", "student") * 2 for _ in range(accumulate)]


def test_each_role_is_clipped_by_its_own_norm():
    _, _, record = fit(Plain(student=Adam(clip=0.01), shadow=Adam(clip=None)), 2)
    norms = [
        torch.cat([g.flatten() for g in record.grads[i][role]]).norm() for i, role in enumerate(("shadow", "student"))
    ]
    # on_before_optimizer_step sees the gradients that clipping then scales in place
    assert norms[0] > 0.1 and norms[1].item() == pytest.approx(0.01, rel=1e-3)


# Steps without a finite gradient


def test_a_bad_step_changes_nothing_and_is_counted_for_its_role():
    states, run, _ = fit(Plain(student=Adam(lr=0.1, weight_decay=0.1), broken=(3, 5, 6)), 8)
    for step, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        unchanged = same(before.weights, after.weights) and same(before.moments, after.moments)
        assert unchanged == (step in (3, 5, 6))
        assert same(before.ema, after.ema) == (step % 2 == 0 or step in (3, 5))
    shadow, student = zip(*(state.bad for state in states[1:]), strict=True)  # consecutive and total of each
    assert list(shadow) == [[0, 0]] * 6 + [[1, 1]] * 2
    assert list(student) == [[0, 0]] * 3 + [[1, 1]] * 2 + [[2, 2]] * 2 + [[0, 2]]
    assert run.model.skipped() == {"shadow": {"skipped": 1, "steps": 4}, "student": {"skipped": 2, "steps": 4}}


def test_clipping_does_not_hide_a_bad_step():
    states, _, _ = fit(Plain(student=Adam(clip=1.0), shadow=Adam(clip=1.0), broken=(2,)), 4)
    assert same(states[2].weights, states[3].weights) and all(w.isfinite().all() for w in states[-1].weights["shadow"])


class Explode(torch.autograd.Function):
    """A harmless number whose gradient is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


@pytest.mark.parametrize(
    "odd, skipped", [(lambda loss: loss + math.inf, 0), (lambda loss: loss - math.inf, 0), (Explode.apply, 1)]
)
def test_gradients_decide_and_not_the_number_that_is_shown(odd, skipped):
    """An infinite loss with a finite gradient trains; a NaN gradient skips the step."""

    class Odd(Plain):
        def student_loss(self, batch):
            loss = super().student_loss(batch)
            return odd(loss) if self.global_step == 1 else loss

    states, run, _ = fit(Odd(), 4)
    assert run.model.skipped()["student"] == {"skipped": skipped, "steps": 2}
    assert same(states[1].weights["student"], states[2].weights["student"]) == bool(skipped)


@pytest.mark.parametrize("role, broken", [("student", range(3, 99, 2)), ("shadow", range(2, 99, 2))])
def test_too_many_bad_steps_of_one_role_stop_the_run(role, broken):
    """The other role's good steps in between do not count, whoever's turn a log step is."""
    rates = " or ".join(dict.fromkeys([f"model.{role}.lr", "model.student.lr"]))  # it learns from the student's samples
    said = f"the last 3 of 4 steps of {role} had NaN or infinite gradients.*lower {rates}, or look at the data"
    with pytest.raises(Failure, match=said):
        fit(Plain(broken=broken, max_bad_steps=3), 20, log_every_n_steps=4)


@pytest.mark.parametrize(
    "broken, said",
    [
        (range(1, 10, 2), "the last 5 of 5 steps of student"),  # not one was good
        (range(4, 10, 2), "the last 3 of 5 steps of shadow"),
        ((9,), None),  # a last step alone is bad luck
        ((1, 3, 5), None),
    ],
)
def test_a_run_too_short_for_the_limit_is_judged_at_its_end(broken, said):
    if said:
        with pytest.raises(Failure, match=said):
            fit(Plain(broken=broken), 10)
    else:
        fit(Plain(broken=broken), 10)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_bad_micro_batch_costs_its_step_once(accumulate):
    class Once(Plain):
        def _loss(self, module, batch):
            loss = (module(batch["data"]) - 3).square().mean()
            return loss * math.nan if self.global_step == 1 and self._micro == accumulate - 1 else loss

    _, run, _ = fit(Once(), 4, accumulate_grad_batches=accumulate)
    assert run.model.skipped() == {"shadow": {"skipped": 0, "steps": 2}, "student": {"skipped": 1, "steps": 2}}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_skipped_steps_are_a_metric_and_nobody_waits_for_the_device(monkeypatch, accumulate):
    """In between two log steps nothing reads a number back, whatever micro-batches there are."""
    from distillkit.methods import base

    looks = []
    check = base.Distiller.check_steps
    monkeypatch.setattr(
        base.Distiller, "check_steps", lambda self, **how: looks.append(self.global_step) or check(self, **how)
    )
    _, run, _ = fit(Plain(broken=(1, 3)), 10, log_every_n_steps=4, accumulate_grad_batches=accumulate)
    assert looks == [4, 8, 10]
    assert run.callback_metrics["student/skipped"] == 2 and run.callback_metrics["shadow/skipped"] == 0


# What the loggers get


class Rows(MetricsLogger):
    """The rows of metrics.csv, without the file."""

    def _write(self):
        pass

    def rows(self):
        return {row["step"] + 1: {k: float(v) for k, v in row.items() if "/" in k} for row in self._rows}


def logged(folder, callbacks=(), max_steps=14, **settings):
    """`(loss of each step, rows by step, calls of log)`; an epoch has six steps."""
    model, losses, calls, rows = Plain(), [], [], Rows(folder)
    step, log = model.training_step, model.log
    model.training_step = lambda *a: losses.append(step(*a)) or losses[-1]
    model.log = lambda *a, **k: calls.append(a[0]) or log(*a, **k)
    trainer(max_steps, logger=rows, callbacks=[*callbacks], **settings).fit(model, Pairs(batch_size=8))
    return [loss.item() for loss in losses], rows.rows(), calls


def test_a_row_holds_the_last_numbers_of_each_role_in_this_epoch_and_no_other_step_logs(tmp_path):
    losses, rows, calls = logged(tmp_path, log_every_n_steps=7)
    assert list(rows) == [7, 14]
    assert rows[7].keys() == {
        "shadow/loss",
        "shadow/grad_norm",
        "shadow/skipped",
    }  # the student's are of the last epoch
    assert rows[14].keys() == {
        f"{role}/{what}" for role in ("shadow", "student") for what in ("loss", "grad_norm", "skipped")
    }
    assert rows[7]["shadow/loss"] == losses[6] and len(calls) == 3 + 6 + 3 * 6
    assert (rows[14]["shadow/loss"], rows[14]["student/loss"]) == (losses[12], losses[13])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_after_which_a_callback_stops_the_run_has_a_row_of_its_own(accumulate, tmp_path):

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 3

    losses, rows, _ = logged(tmp_path, [Stop()], log_every_n_steps=50, accumulate_grad_batches=accumulate)
    assert list(rows) == [3] and rows[3]["shadow/loss"] == losses[3 * accumulate - 1]
    assert rows[3]["student/loss"] == losses[2 * accumulate - 1]


def test_a_callback_may_monitor_a_loss_in_epochs_that_are_too_short_for_a_row(tmp_path):
    seen = []

    class Watch(EarlyStopping):
        def _evaluate_stopping_criteria(self, current):
            seen.append(current.item())
            return super()._evaluate_stopping_criteria(current)

    stop = Watch("student/loss", patience=9, check_on_train_epoch_end=True)
    losses, rows, _ = logged(tmp_path, [stop], max_steps=12, log_every_n_steps=50)
    assert seen == [losses[5], losses[11]] and not rows


def test_the_parameters_of_the_roles_are_listed_once():
    model, listed = Plain(), []
    parameters = model.role_parameters
    model.role_parameters = lambda role: listed.append(model.global_step) or parameters(role)
    trainer(6).fit(model, Pairs(batch_size=8))
    assert set(listed) == {0} and not model._listed


def test_a_step_that_overflows_float16_is_skipped_and_leaves_the_average_alone():
    class Large(Plain):
        def _loss(self, module, batch):
            loss = super()._loss(module, batch)
            return loss * 1e6 if self.global_step == 3 else loss

    states, run, _ = fit(Large(), 6, precision="16-true")
    assert (
        run.model.skipped()["student"] == {"skipped": 1, "steps": 3} and run.model.skipped()["shadow"]["skipped"] == 0
    )
    assert same(states[3].ema, states[4].ema) and all(p.isfinite().all() for p in states[-1].ema)


def test_a_float16_gradient_is_measured_beyond_float16():
    """Many finite numbers can have a norm above 65504."""
    model = Plain()
    model.half()
    model._trainer = SimpleNamespace(global_step=0, log_every_n_steps=9)
    model.log = lambda *_: None
    optimizer = torch.optim.AdamW([{"params": list(model.shadow.parameters())}, {"params": []}])
    for parameter in model.shadow.parameters():
        parameter.grad = torch.full_like(parameter, 40_000)
    model.configure_gradient_clipping(optimizer)
    assert not optimizer.found_inf and model.bad_steps.sum() == 0


# The average


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ema_is_edms_rule(accumulate):
    """beta = 0.5^(B / min(halflife, rampup * seen)), over student steps alone.

    B counts the samples of all rounds of a step. The ramp reaches the half-life in the fifth step,
    or the third.
    """
    settings = {"ema_halflife": 20.0, "ema_rampup": 0.5}
    model = Plain(student=Adam(lr=0.3), shadow=Adam(updates=2), **settings)
    states, _, _ = fit(model, 30, accumulate_grad_batches=accumulate)
    expected = [p.clone() for p in states[0].weights["student"]]
    seen, batch = 0, 8 * accumulate
    for step, after in enumerate(states[accumulate::accumulate]):
        if step % 3 == 2:
            seen += batch
            beta = 0.5 ** (batch / min(20.0, 0.5 * seen))
            expected = [beta * e + (1 - beta) * p for e, p in zip(expected, after.weights["student"], strict=True)]
        for found, want in zip(after.ema, expected, strict=True):
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
    assert seen > 20 / 0.5 and not torch.allclose(states[-1].ema[0], states[-1].weights["student"][0], atol=1e-3)


class Normed(Plain):
    """A student that counts what it sees."""

    def __init__(self):
        Distiller.__init__(self)
        self.broken = ()
        torch.manual_seed(0)
        self.add_role("shadow", Adam(lr=0.01), shadow=nn.Linear(2, 2))
        self.add_role("student", Adam(lr=0.01), student=nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)))
        self.keep_ema()


def test_the_average_has_the_students_buffers():
    """Buffers are not averaged: the export normalises by the student's newest ones."""
    model = Normed()
    start = {name: buffer.clone() for name, buffer in model.ema.named_buffers()}
    fit(model, 6)
    own, found = dict(model.student.named_buffers()), dict(model.ema.named_buffers())
    assert same(own, found) and found["0.num_batches_tracked"] == 3
    assert all(not torch.equal(found[name], before) for name, before in start.items())


def test_samples_of_skipped_steps_do_not_age_the_average():
    """After three bad steps the average follows as after none; counted, they would slow it down."""
    settings = {"ema_halflife": 1e6, "ema_rampup": 0.5}
    states, _, _ = fit(Plain(student=Adam(lr=0.3), broken=(1, 3, 5), **settings), 8)
    share = 1 - 0.5 ** (8 / (0.5 * 8))
    for start, own, found in zip(states[0].ema, states[-1].weights["student"], states[-1].ema, strict=True):
        torch.testing.assert_close(found, start + share * (own - start))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_averages_and_times_keep_their_precision(precision):
    """In bfloat16 an average with beta near one would never move, and 9.72 would become 9.75."""
    model = SiD(neural(), num_steps=3)
    times = model.step_times.tolist()
    fit(model, 4, precision=precision)
    assert all(p.dtype == torch.float32 for p in model.ema.parameters())
    assert model.product().times == times


def test_ema_can_be_off():
    model = Plain(ema_halflife=0)
    fit(model, 2)
    assert model.ema is None and model.best_student is model.student


def test_the_average_is_float32_and_never_trained():
    model = Plain()
    assert model.best_student is model.ema and not any(p.requires_grad for p in model.ema.parameters())
    model.focus(None)
    assert not any(p.requires_grad for p in model.ema.parameters())


# Frozen parts of a role


class Half(Plain):
    """A student whose first layer the maker froze."""

    def __init__(self, **kwargs):
        Distiller.__init__(self, **kwargs)
        self.broken = ()
        torch.manual_seed(0)
        student = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
        self.add_role("shadow", Adam(lr=0.1, weight_decay=0.5), shadow=nn.Linear(2, 2))
        self.add_role("student", Adam(lr=0.1, weight_decay=0.5), student=student)
        self.keep_ema()


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_what_a_maker_froze_is_trained_by_nobody(precision):
    model = Half()
    frozen, trained = model.student
    start = copy.deepcopy(model.student)
    _, run, _ = fit(model, 6, precision=precision)
    assert same(model.role_parameters("student"), list(trained.parameters()))
    groups = run.optimizers[0].param_groups
    assert [len(group["params"]) for group in groups] == [2, 2] and groups[1]["params"][0] is trained.weight
    for role in ("shadow", "student", None):
        model.focus(role)
        assert not any(p.requires_grad for p in frozen.parameters())
        assert all(p.requires_grad == (role != "shadow") for p in trained.parameters())
    assert same(frozen.state_dict(), start[0].to(frozen.weight.dtype).state_dict())
    assert not torch.equal(trained.weight, start[1].weight.to(trained.weight.dtype))
    assert same([p.float() for p in frozen.parameters()], list(model.ema[0].parameters()))  # its average is itself
    assert not torch.equal(model.ema[1].weight, start[1].weight)


# The target: a second average, of the loss


class Targeted(Plain):
    """The target of its student, or of its shadow, is kept beside the average that is exported."""

    def __init__(self, decay=0.9, of="student", **kwargs):
        super().__init__(**kwargs)
        self.keep_target(decay, of)


@pytest.mark.parametrize("of, first", [("student", 1), ("shadow", 0)])
def test_a_target_follows_every_step_of_its_role_and_no_other(of, first):
    """`decay^n w_0 + (1 - decay) sum_k decay^(n - k) w_k` after n steps; w_k after the k-th."""
    model, decay, seen = Targeted(of=of, student=Adam(lr=0.3), shadow=Adam(lr=0.3)), 0.9, []
    update = model.optimizer_step
    model.optimizer_step = lambda *a, **k: (
        update(*a, **k) or seen.append([p.clone() for p in model.target.parameters()])
    )
    states, _, _ = fit(model, 8)
    weights = [states[0].weights[of], *(states[step + 1].weights[of] for step in range(first, 8, 2))]
    for number, after in enumerate(seen):
        n = (number + 2 - first) // 2
        for i, found in enumerate(after):
            terms = [(1 - decay) * decay ** (n - k) * weights[k][i] for k in range(1, n + 1)]
            torch.testing.assert_close(found, decay**n * weights[0][i] + sum(terms), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(seen[-1][0], weights[-1][0], atol=1e-3)


def test_a_skipped_step_leaves_the_target_alone():
    model, seen = Targeted(broken=(3, 5)), []
    update = model.optimizer_step
    model.optimizer_step = lambda *a, **k: update(*a, **k) or seen.append(copy.deepcopy(model.target.state_dict()))
    fit(model, 8)
    moved = [not same(before, after) for before, after in zip(seen, seen[1:], strict=False)]
    assert moved == [step in (1, 7) for step in range(1, 8)]


def test_a_target_without_decay_is_the_module_itself():
    model = Targeted(decay=0.0)
    fit(model, 4)
    assert same(model.target.state_dict(), model.student.state_dict())
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1.0"):
        Targeted(decay=1.0)


@pytest.mark.parametrize("cut", [1, 2])
def test_a_target_is_in_the_checkpoint_and_nowhere_else(cut, tmp_path):
    torch.manual_seed(0)  # of all three runs
    again, short = Targeted(schedule="constant"), Targeted(schedule="constant")
    _, run, _ = fit(short, cut)
    run.save_checkpoint(tmp_path / "cut.ckpt")
    straight = Targeted(schedule="constant")
    fit(straight, 5)
    trainer(5).fit(again, Pairs(batch_size=8), ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert same(dict(straight.state_dict()), dict(again.state_dict()))
    assert {key for key in again.state_dict() if key.startswith("target.")} == {"target.weight", "target.bias"}
    assert again.best_student is again.ema and again.ema is not again.target
    assert not any(p.requires_grad for p in again.target.parameters())


def test_a_target_stays_in_float32():
    model = Targeted(decay=0.999)
    fit(model, 4, precision="bf16-true")
    assert model.student.weight.dtype == torch.bfloat16 and model.target.weight.dtype == torch.float32
    assert not torch.equal(model.target.weight, model.target.weight.bfloat16().float())


@pytest.mark.parametrize(
    "schedule, warmup, expected",
    [
        ("constant", 0, [1, 1, 1]),
        ("linear", 0, [1, 0.5, 0]),
        ("cosine", 0, [1, 0.5, 0]),
        ("constant", 50, [0.02, 1, 1]),
        ("cosine", 100, [0.01, 0.51 * 0.5, 0]),
    ],
)
def test_learning_rate_schedules(schedule, warmup, expected):
    model = Plain(schedule=schedule, warmup=warmup)
    model._trainer = SimpleNamespace(estimated_stepping_batches=100)
    assert [model._lr_factor(step) for step in (0, 50, 100)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "arguments, message", [({"lr": 0.0}, "lr must be positive, got 0"), ({"updates": 0}, "would never train the role")]
)
def test_impossible_optimisers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Adam(**arguments)


# Randomness


def test_every_draw_has_its_own_noise():
    """Distinct for purpose, step, rank and accumulation round; the same when asked again."""
    model = Plain()
    places = [
        {"step": s, "rank": r, "world": 2, "accumulate": 2, "micro": m}
        for s in range(3)
        for r in range(2)
        for m in range(2)
    ]
    draws = {
        (str(place), purpose): at(model, **place).randn((3,), purpose)
        for place in places
        for purpose in ("t", "eps", "z")
    }
    values = {tuple(draw.tolist()) for draw in draws.values()}
    assert len(values) == len(draws) == 36
    assert torch.equal(at(model, **places[5]).randn((3,), "eps"), draws[str(places[5]), "eps"])
    model.seed += 1
    assert tuple(at(model, **places[5]).randn((3,), "eps").tolist()) not in values


def test_two_processes_draw_what_one_draws_in_two_rounds():
    """And what four micro-batches draw is the same however they are shared out."""
    model = Plain()
    one = [at(model, step=3, accumulate=4, micro=m).rand(5, "t") for m in range(4)]
    two = [at(model, step=3, world=2, rank=r, accumulate=2, micro=m).rand(5, "t") for m in range(2) for r in range(2)]
    four = [at(model, step=3, world=4, rank=r).rand(5, "t") for r in range(4)]
    assert same(one, two) and same(one, four)


def test_shared_draws_are_equal_on_ranks_and_rounds():
    model = Plain()
    places = [{"rank": r, "world": 2, "accumulate": 2, "micro": m} for r in range(2) for m in range(2)]
    found = [torch.rand(3, generator=at(model, step=4, **p).generator("k", shared=True)) for p in places]
    assert all(torch.equal(found[0], other) for other in found)
    integers = [[at(model, step=s, **p).randint(4, "stop") for s in range(400)] for p in places]
    assert all(integers[0] == other for other in integers)
    # 400 draws of four values: five standard errors of a share of 1/4
    assert all(abs(count / 400 - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 400) for count in Counter(integers[0]).values())
    assert set(integers[0]) == {0, 1, 2, 3} and model.randint(1, "stop") == 0


def test_draws_are_what_their_names_say():
    model = Plain()
    assert model.randn((20_000,), "a").mean().abs() < 0.04 and model.randn(
        (20_000,), "a"
    ).std().item() == pytest.approx(1, abs=0.03)
    uniform = model.rand(20_000, "b")
    assert uniform.min() >= 0 and uniform.max() < 1 and uniform.mean().item() == pytest.approx(0.5, abs=0.02)


# Pretraining


def test_pretraining_is_weighted_denoising_of_the_data():
    network = wake(MLP([2], width=8, depth=1, classes=CLASSES))
    model = Pretrain(network, VarianceExploding(), [2], CLASSES, sigma_data=0.9, drop=0.5)
    t = model.times(model.rand(8, "t"), model.student.process)
    cond = {"label": torch.where(model.rand(8, "drop") < 0.5, 2, BATCH["label"])}
    assert 0 < (cond["label"] == 2).sum() < 8
    x_t = BATCH["data"] + t[:, None] * model.randn((8, 2), "eps")
    error = model.student(x_t, t, cond) - BATCH["data"]
    expected = ((t**-2 + 0.9**-2)[:, None] * error**2).mean()
    torch.testing.assert_close(model.student_loss(BATCH), expected)


def test_sampling_while_pretraining_leaves_the_network_trainable():
    model = Pretrain(MLP([2], width=8, depth=1, classes=CLASSES), VarianceExploding(), [2], CLASSES, ema_halflife=0)
    states, _, _ = fit(model, 1)
    model.sample({"label": torch.zeros(3, dtype=torch.long)}, 3, 0)
    model.focus("student")
    assert all(p.requires_grad for p in model.student.parameters()) and model.student.training
    model.student_loss(BATCH).backward()


def test_the_teacher_says_where_it_is_at_its_best():
    def made(**settings):
        return Pretrain(MLP([2], width=8, depth=1, classes=CLASSES), VarianceExploding(), [2], CLASSES, **settings)

    assert made(steps=7).product().best == {"solver": "heun", "steps": 7}
    assert made(solver="ancestral", steps=50).product().best == {"solver": "ancestral", "steps": 50}
    with pytest.raises(ValueError, match="there is no solver 'magic'"):
        made(solver="magic")
    model = made(context=["first"])
    with pytest.raises(ValueError, match="vars.context says first, which these data do not have"):
        model.check(Pairs())


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = SiD(neural())
    _, run, _ = fit(model, 3)
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    run.save_checkpoint(path)
    return path


def test_checkpoints_hold_no_teacher_but_its_name(checkpoint):
    content = torch.load(checkpoint, weights_only=False)
    keys = content["state_dict"]
    assert not any(key.startswith("teacher.") for key in keys)
    for part in ("student.", "fake_score.", "ema."):
        assert any(key.startswith(part) for key in keys)
    assert content["distillkit"]["teacher"] == neural().fingerprint() and content["distillkit"]["method"] == "SiD"


def test_checkpoints_return_everything(checkpoint):
    content, model = torch.load(checkpoint, weights_only=False), SiD(neural())
    model.seed = -1
    wake(model.student, 5)
    run = trainer(3)
    run.fit(model, Pairs(batch_size=8), ckpt_path=checkpoint, weights_only=False)
    assert run.global_step == 3 and model.seed == content["distillkit"]["seed"]
    assert same(dict(model.state_dict()), dict(content["state_dict"]))


class Rates(Callback):
    """The learning rates at each step, one for each role; the run ends after step `stop`."""

    def __init__(self, stop=None):
        self.seen, self.stop = [], stop

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append([group["lr"] for group in optimizer.param_groups])
        trainer.should_stop = trainer.global_step + 1 == self.stop


@pytest.mark.parametrize("settings", [Adam(lr=0.5), Adam(lr=0.125, betas=(0.5, 0.75), weight_decay=0.25)])
def test_a_resumed_run_takes_the_options_it_is_given(settings, tmp_path):
    """Its config.yaml says these, and the schedule goes on where it was."""
    shadow, cut = Adam(lr=0.25), tmp_path / "cut.ckpt"
    run = trainer(8, callbacks=[Rates(stop=4)])
    run.fit(Plain(student=Adam(lr=0.5), shadow=shadow, schedule="linear"), Pairs(batch_size=8))
    run.save_checkpoint(cut)
    again, rates = trainer(8), Rates()
    again.callbacks.append(rates)
    again.fit(Plain(settings, shadow, schedule="linear"), Pairs(batch_size=8), ckpt_path=cut, weights_only=True)
    assert rates.seen == [[shadow.lr * left / 8, settings.lr * left / 8] for left in (4, 3, 2, 1)]
    group = again.optimizers[0].param_groups[1]
    assert (tuple(group["betas"]), group["weight_decay"]) == (settings.betas, settings.weight_decay)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content["optimizer_states"][0]["param_groups"].pop(),
        lambda content: content["optimizer_states"][0]["param_groups"][0].pop("initial_lr"),
        lambda content: content["optimizer_states"][0]["param_groups"][0].update(initial_lr=0.0),
        lambda content: content["optimizer_states"][0].update(param_groups=None),
        lambda content: content.update(lr_schedulers=[]),
    ],
)
def test_a_damaged_optimiser_is_refused_in_a_sentence(damage, tmp_path):
    run, file = trainer(1), tmp_path / "cut.ckpt"
    run.fit(Plain(), Pairs(batch_size=8))
    run.save_checkpoint(file)
    content = torch.load(file, weights_only=True)
    damage(content)
    torch.save(content, file)
    with pytest.raises(ValueError, match="optimiser is damaged or not that of this method: give another checkpoint"):
        trainer(2).fit(Plain(), Pairs(batch_size=8), ckpt_path=file, weights_only=True)


def test_a_run_in_half_precision_resumes_and_names_the_teacher_as_it_came(tmp_path):
    """Training rounds the teacher; its hash is the one that whoever loads it finds."""
    model, run = SiD(neural()), trainer(2, precision="bf16-true")
    run.fit(model, Pairs(batch_size=8))
    run.save_checkpoint(tmp_path / "half.ckpt")
    assert model.facts()["teacher"]["hash"] == neural().fingerprint() != model.teacher.fingerprint()
    again = trainer(3, precision="bf16-true")
    again.fit(SiD(neural()), Pairs(batch_size=8), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert again.global_step == 3


def test_checkpoints_keep_what_each_role_skipped_and_older_ones_start_anew():
    broken = Plain(broken=(1, 2))
    _, run, _ = fit(broken, 4)
    state = broken.state_dict()
    assert state["bad_steps"].tolist() == [[1, 1], [0, 1]]
    model = Plain()
    model.load_state_dict(state)
    assert same(dict(model.state_dict()), dict(state))
    model.load_state_dict({**state, "bad_steps": torch.tensor([1, 7])})
    assert model.bad_steps.tolist() == [[0, 0], [0, 0]]


def other_teacher():
    teacher = neural()
    wake(teacher, 9)
    return teacher


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SiD(other_teacher()), "made with another teacher"),
        (lambda: DMD(neural()), "belongs to method SiD, this run is DMD"),
    ],
)
def test_checkpoints_of_others_are_refused(make, message, checkpoint):
    with pytest.raises(ValueError, match=message):
        trainer(5).fit(make(), Pairs(batch_size=8), ckpt_path=checkpoint, weights_only=False)


def test_checkpoints_that_do_not_fit_are_refused(checkpoint):
    content = torch.load(checkpoint, weights_only=False)
    with pytest.raises(ValueError, match="not written by distillkit"):
        SiD(neural()).on_load_checkpoint({"state_dict": {}})
    with pytest.raises(ValueError, match="does not fit this method and network: missing .*'ema"):
        SiD(neural(), ema_halflife=500).load_state_dict(
            {k: v for k, v in content["state_dict"].items() if not k.startswith("ema.")}
        )
    with pytest.raises(ValueError, match="does not fit"):
        SiD(neural(), student_maker=Fresh(MLP([2], width=4, depth=1, classes=CLASSES))).load_state_dict(
            content["state_dict"]
        )


# Data that do not belong to the teacher


def test_data_of_another_shape_or_with_other_classes_are_refused():
    model = SiD(neural())
    model.check(SimpleNamespace(event_shape=(2,), classes={"label": 2}, context=()))
    with pytest.raises(ValueError, match=r"the data have shape \(3,\), the teacher makes \(2,\)"):
        model.check(SimpleNamespace(event_shape=(3,), classes={"label": 2}))
    for classes in ({}, {"label": 3}):
        with pytest.raises(ValueError, match="the teacher knows 2 classes of 'label'"):
            model.check_classes(SimpleNamespace(event_shape=(2,), classes=classes))
