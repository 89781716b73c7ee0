"""The machinery under every method: turns, gradients, averages, randomness, checkpoints. Then the claims of each method."""

import copy
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from helpers import Line, f64, gaussian, sigma_points, trainer
from lightning.pytorch import Callback
from torch import nn

import distillkit.methods.dmd as dmd_module
import distillkit.methods.sid as sid_module
from distillkit.data import DistillData, TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding, VariancePreserving
from distillkit.diffusion.times import Times
from distillkit.methods.base import Adam, Distiller
from distillkit.methods.dmd import DMD
from distillkit.methods.pretrain import Pretrain
from distillkit.methods.sid import SiD
from distillkit.networks.mlp import MLP
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactTeacher, Mixture

CLASSES = {"label": 2}


class Pairs(DistillData):
    """A few points in the plane with labels."""

    event_shape, classes = (2,), CLASSES

    def load(self):
        generator = torch.Generator().manual_seed(0)
        data = torch.randn(48, 2, generator=generator)
        made = TensorData({"data": data, "label": torch.arange(48) % 2})
        return made, made, made

    build_evaluator = media = None


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


class Record(Callback):
    """Everything that can change, before the first step and after each."""

    def on_train_start(self, trainer, model):
        self.states, self.grads = [self.look(trainer, model)], []

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.states.append(self.look(trainer, model))

    def on_before_optimizer_step(self, trainer, model, optimizer):
        self.grads.append({role: [p.grad for p in model.role_parameters(role)] for role in model.roles})

    def look(self, trainer, model):
        state = trainer.optimizers[0].state
        return SimpleNamespace(
            weights={role: [p.detach().clone() for p in model.role_parameters(role)] for role in model.roles},
            moments={
                role: [copy.deepcopy(dict(state[p])) for p in model.role_parameters(role) if p in state]
                for role in model.roles
            },
            ema=[p.detach().clone() for p in model.ema.parameters()] if model.ema is not None else [],
            bad=model.bad_steps.tolist(),
        )


def fit(model, max_steps, **settings):
    record = Record()
    run = trainer(max_steps, callbacks=[record], **settings)
    run.fit(model, Pairs(batch_size=8))
    return record.states, run, record


def same(one, two):
    """Bit for bit, at every depth."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


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


def test_a_bad_step_changes_nothing_and_is_counted():
    states, run, _ = fit(Plain(student=Adam(lr=0.1, weight_decay=0.1), broken=(3, 6)), 8)
    for step, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        unchanged = same(before.weights, after.weights) and same(before.moments, after.moments)
        assert unchanged == (step in (3, 6))
    assert [state.bad for state in states[1:]] == [[0, 0]] * 3 + [[1, 1], [0, 1], [0, 1], [1, 2], [0, 2]]


def test_clipping_does_not_hide_a_bad_step():
    states, _, _ = fit(Plain(student=Adam(clip=1.0), shadow=Adam(clip=1.0), broken=(2,)), 4)
    assert same(states[2].weights, states[3].weights) and all(w.isfinite().all() for w in states[-1].weights["shadow"])


def test_too_many_bad_steps_stop_the_run():
    with pytest.raises(RuntimeError, match="the last 3 steps had NaN or infinite gradients.*lower the learning rates"):
        fit(Plain(broken=range(2, 99), max_bad_steps=3), 20, log_every_n_steps=1)


# The average


def test_ema_is_edms_rule():
    """beta = 0.5^(B / min(halflife, rampup * seen)), over student steps alone; the first steps follow, later ones average."""
    settings = {"ema_halflife": 60.0, "ema_rampup": 0.5}
    states, _, _ = fit(Plain(student=Adam(lr=0.3), shadow=Adam(updates=2), **settings), 30)
    expected = [p.clone() for p in states[0].weights["student"]]
    seen = 0
    for step, after in enumerate(states[1:]):
        if step % 3 == 2:
            seen += 8
            beta = 0.5 ** (8 / min(60.0, 0.5 * seen))
            expected = [beta * e + (1 - beta) * p for e, p in zip(expected, after.weights["student"], strict=True)]
        for found, want in zip(after.ema, expected, strict=True):
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(states[-1].ema[0], states[-1].weights["student"][0], atol=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_averages_and_times_keep_their_precision(precision):
    """In bfloat16 an average with beta near one would never move, and a step at 9.72 would be one at 9.75."""
    model = SiD(neural(), num_steps=3)
    times = model.step_times.tolist()
    fit(model, 4, precision=precision)
    assert all(p.dtype == torch.float32 for p in model.ema.parameters())
    assert model.as_student().times == times


def test_ema_can_be_off():
    model = Plain(ema_halflife=0)
    fit(model, 2)
    assert model.ema is None and model.best_student is model.student


def test_the_average_is_float32_and_never_trained():
    model = Plain()
    assert model.best_student is model.ema and not any(p.requires_grad for p in model.ema.parameters())
    model.focus(None)
    assert not any(p.requires_grad for p in model.ema.parameters())


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
    model._trainer = SimpleNamespace(max_steps=100)
    assert [model._lr_factor(step) for step in (0, 50, 100)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "arguments, message", [({"lr": 0.0}, "lr must be positive, got 0"), ({"updates": 0}, "would never train the role")]
)
def test_impossible_optimisers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Adam(**arguments)


# Randomness


def at(model, step=0, rank=0, world=1, accumulate=1, micro=0):
    """The model as it is at this place of a run."""
    model._trainer = SimpleNamespace(
        global_step=step, global_rank=rank, world_size=world, accumulate_grad_batches=accumulate
    )
    model._micro = micro
    return model


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


# Score distillation: who is called, who learns


def wake(module, seed=0):
    """Random weights everywhere, also in layers that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module


def neural(process=None):
    """A small neural teacher with two classes in the plane."""
    network = wake(MLP([2], width=8, depth=1, classes=CLASSES))
    return Teacher(Denoiser(network, process or VarianceExploding(), "edm", 1.0), (2,), CLASSES)


BATCH = {"data": torch.randn(8, 2, generator=torch.Generator().manual_seed(5)), "label": torch.arange(8) % 2}
METHODS = {
    "dmd": lambda **k: DMD(neural(), **k),
    "dmd guided": lambda **k: DMD(neural(), kappa=2.0, **k),
    "dmd gan": lambda **k: DMD(neural(), gan=0.1, **k),
    "sid": lambda **k: SiD(neural(), **k),
    "sid guided": lambda **k: SiD(neural(), kappa=2.0, **k),
    "sida": lambda **k: SiD(neural(), adversarial=0.5, **k),
}


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_only_the_role_in_turn_gets_gradient(name, num_steps):
    model = METHODS[name](num_steps=num_steps)
    for step, module in enumerate((model.student, model.fake_score)):
        wake(module, seed=step + 1)
    everyone = dict(model.named_parameters())
    for role in model.roles:
        model.zero_grad(set_to_none=True)
        model.focus(role)
        getattr(model, f"{role}_loss")(BATCH).backward()
        own = {id(p) for p in model.role_parameters(role)}
        for key, parameter in everyone.items():
            assert (parameter.grad is not None) == (id(parameter) in own), f"{key} in the turn of {role}"
        assert sum(p.grad.abs().sum() for p in model.role_parameters(role)) > 1e-6
    assert not any(p.requires_grad for p in model.teacher.parameters())


def spy_on_inputs(monkeypatch, denoiser):
    """The noised samples a denoiser is asked about."""
    asked, forward = [], type(denoiser).forward

    def watched(self, x_t, t, cond=None):
        if self is denoiser:
            asked.append(x_t)
            if x_t.requires_grad:
                x_t.retain_grad()
        return forward(self, x_t, t, cond)

    monkeypatch.setattr(type(denoiser), "forward", watched)
    return asked


@pytest.mark.parametrize("who", ["teacher", "fake_score"])
def test_sid_differentiates_through_both_scores_and_dmd_through_none(who, monkeypatch):
    for make, through in ((METHODS["sid"], True), (METHODS["dmd"], False)):
        model = make()
        wake(model.student, 1)
        model.focus("student")
        denoiser = model.teacher.denoiser if who == "teacher" else model.fake_score
        with monkeypatch.context() as patch:
            asked = spy_on_inputs(patch, denoiser)
            model.student_loss(BATCH).backward()
        (x_t,) = asked
        assert x_t.requires_grad == through
        assert not through or x_t.grad.abs().max() > 0


class Level(Times):
    """One ratio, always."""

    def __init__(self, ratio):
        self.value = ratio

    def times(self, u, process):
        return process.from_ratio(f64(self.value)).expand(len(u))


class Affine(nn.Module):
    """A student `mu + s z` that is asked about sigma(t) z."""

    def __init__(self, line, sigma):
        super().__init__()
        self.line, self.sigma = line, sigma

    def forward(self, x, t, cond):
        return self.line(x / self.sigma)


def on_a_line(kind, mu, s, process=None, m=0.4, S=0.8, ratio=0.9, teacher=None, **kwargs):
    """A method whose parts are those of the closed forms: exact teacher, affine student, best response, four points."""
    process = process or VarianceExploding()
    model = kind(
        teacher or gaussian(m, S, process), network=MLP([1], width=8, depth=1), student_times=Level(ratio), **kwargs
    )
    model.normalise = None
    line = Line(mu, s)
    model.student = Affine(line, process.sigma(model.step_times[0]))
    model.fake_score = line.best_response(process)
    z, eps = sigma_points()
    model.randn = lambda shape, purpose: {"student noise 0": z, "student eps": eps}[purpose]
    return model, line


@pytest.mark.parametrize(
    "process", [VarianceExploding(), VariancePreserving(), RectifiedFlow()], ids=["ve", "vp", "flow"]
)
def test_sid_step_has_the_closed_gradient(process):
    """The whole student step, not the loss alone: with detached scores the mean's gradient would be twice as large."""
    m, S, r = 0.4, 0.8, 0.9
    for alpha in (0.5, 1.2):
        model, line = on_a_line(SiD, 1.1, S, process, alpha=alpha)
        expected = (1.1 - m) * r**4 / (S**2 + r**2) ** 2
        assert line.gradient(model.student_loss({"data": torch.zeros(4, 1)}))[0] == pytest.approx(expected, rel=1e-6)
        model, line = on_a_line(SiD, m, 1.3, process, alpha=alpha)
        phi, psi = S**2 / (S**2 + r**2), 1.3**2 / (1.3**2 + r**2)
        expected = 2 * 1.3 * (phi - psi) * ((1 - alpha) * (phi - psi) - (1 - psi))
        assert line.gradient(model.student_loss({"data": torch.zeros(4, 1)}))[1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "process", [VarianceExploding(), VariancePreserving(), RectifiedFlow()], ids=["ve", "vp", "flow"]
)
def test_dmd_step_has_the_closed_gradient(process):
    m, S, r = 0.4, 0.8, 0.9
    model, line = on_a_line(DMD, 1.1, S, process)
    found = line.gradient(model.student_loss({"data": torch.zeros(4, 1)}))
    assert found == pytest.approx([(1.1 - m) * r**2 / (S**2 + r**2), 0], rel=1e-6, abs=1e-9)
    model, line = on_a_line(DMD, m, 1.3, process)
    expected = 1.3 * r**2 * (1.3**2 - S**2) / ((S**2 + r**2) * (1.3**2 + r**2))
    assert line.gradient(model.student_loss({"data": torch.zeros(4, 1)})) == pytest.approx(
        [0, expected], rel=1e-6, abs=1e-9
    )


@pytest.mark.parametrize("kappa", [1.0, 3.0])
def test_guided_dmd_rests_at_the_guided_mean(kappa):
    """Teacher guided, fake score not: the fixed point is m_0 + kappa (m_c - m_0), and only there."""
    m_c, m_0, S = 1.0, -0.2, 0.5
    law = Mixture([[0.5], [m_c], [m_0]], [[[S**2]]] * 3, labels=[0, 1, 2])
    teacher = ExactTeacher(law, VarianceExploding(), classes=CLASSES)
    batch = {"data": torch.zeros(4, 1), "label": torch.ones(4, dtype=torch.long)}
    for shift, sign in ((0.0, 0), (0.3, 1), (-0.3, -1)):
        model, line = on_a_line(DMD, m_0 + kappa * (m_c - m_0) + shift, S, teacher=teacher, kappa=kappa)
        found = line.gradient(model.student_loss(batch))[0]
        assert (0 if abs(found) < 1e-6 else math.copysign(1, found)) == sign


@pytest.mark.parametrize("kind", [SiD, DMD])
@pytest.mark.parametrize("over", ["sample", "batch"])
def test_the_loss_is_divided_by_the_distance_to_the_teacher(kind, over):
    """The choice reaches the loss: what it changes is the loss without it over n of each sample, or over their mean."""
    model, line = on_a_line(kind, 1.1, 0.8)
    z, eps = sigma_points()
    x_g = line(z)
    n = (x_g - model.teacher.denoiser(x_g + 0.9 * eps, torch.tensor(0.9))).abs().detach()
    plain = model.student_loss({"data": torch.zeros(4, 1)})
    model.normalise = over
    found = model.student_loss({"data": torch.zeros(4, 1)})
    parts = []
    for i in range(4):  # each point alone, without n
        model.normalise = None
        model.randn = lambda shape, purpose, i=i: {"student noise 0": z, "student eps": eps}[purpose][i : i + 1]
        parts.append(model.student_loss({"data": torch.zeros(1, 1)}))
    scale = n.squeeze(1) if over == "sample" else n.mean()
    scale = scale**2 if kind is DMD else scale  # DMD's value is quadratic in its gradient
    torch.testing.assert_close(found, (torch.stack(parts) / scale).mean(), rtol=1e-6, atol=1e-9)
    assert (found / plain - 1).abs() > 0.01


@pytest.mark.parametrize(
    "process", [VarianceExploding(), VariancePreserving(), RectifiedFlow()], ids=["ve", "vp", "flow"]
)
def test_the_student_starts_from_noise_of_its_first_level(process):
    """Zero signal and std sigma(t_init), not one: SiD's 2.5 on EDM, sigma_625 on Stable Diffusion."""
    t_init = {"VarianceExploding": 2.5, "VariancePreserving": 0.6, "RectifiedFlow": 0.7}[type(process).__name__]
    model = SiD(neural(process), t_init=t_init)
    seen = []
    model.student.register_forward_pre_hook(lambda module, args: seen.append(args))
    model.rollout(BATCH, "student")
    assert torch.equal(seen[0][0], process.sigma(f64(t_init)).float() * model.randn((8, 2), "student noise 0"))
    assert seen[0][1].item() == pytest.approx(t_init) and torch.equal(seen[0][2]["label"], BATCH["label"])


def test_a_few_step_student_stops_where_all_ranks_stop():
    model, found = SiD(neural(), num_steps=3), {}
    calls = []
    model.student.register_forward_pre_hook(lambda module, args: calls.append(args[1].item()))
    for step in range(24):
        counts = []
        for rank in range(2):
            calls.clear()
            at(model, step=step, rank=rank, world=2).rollout(BATCH, model.turn(step))
            counts.append(len(calls))
        assert counts[0] == counts[1] and calls == model.step_times[: counts[0]].tolist()
        found[step] = counts[0]
    assert set(found.values()) == {1, 2, 3}
    # the student is judged by a fake score that has just seen the same step
    assert all(found[step] == found[step + 1] for step in range(0, 24, 2)) and model.turn(0) == "fake_score"


@pytest.mark.parametrize("role", ["student", "fake_score"])
def test_only_the_last_step_is_matched_if_one_says_so(role):
    model, calls = SiD(neural(), num_steps=3, matched="last"), []
    model.student.register_forward_pre_hook(
        lambda module, args: calls.append((args[1].item(), torch.is_grad_enabled()))
    )
    for step in range(6):
        calls.clear()
        at(model, step=step).rollout(BATCH, role)
        assert calls == [(t, t == model.step_times[-1]) for t in model.step_times.tolist()]


def test_the_first_of_several_steps_is_the_one_step_student():
    one, several = SiD(neural()), SiD(neural(), times=[80.0, 5.0, 0.5])
    several.randint = lambda high, purpose: 0
    several.seed = one.seed
    one.student, several.student = (wake(m.student, 3) for m in (one, several))
    assert torch.equal(one.rollout(BATCH, "student")[0], several.rollout(BATCH, "student")[0])


def test_samples_and_noise_are_fresh_for_either_turn():
    model, drawn = DMD(neural(), gan=0.1), []
    randn, rand = model.randn, model.rand
    model.randn = lambda shape, purpose: drawn.append(purpose) or randn(shape, purpose)
    model.rand = lambda num, purpose: drawn.append(purpose) or rand(num, purpose)
    with torch.no_grad():
        model.student_loss(BATCH), model.fake_score_loss(BATCH)
    assert len(drawn) == len(set(drawn)) == 12  # student and fake: z, t, eps each; three GAN branches: t, eps each


@pytest.mark.parametrize(
    "guidance, kappas", [("lsg", (2.5, 2.5, 2.5)), ("zero", (2.5, 0.0, 0.0)), ("anti", (2.5, -1.0, 1.0))]
)
def test_guidance_reaches_the_right_calls(guidance, kappas, monkeypatch):
    """Teacher, fake score as judge, fake score in training."""
    model, calls = SiD(neural(), kappa=2.5, guidance=guidance), []
    original = sid_module.guided

    def spy(denoiser, x_t, t, cond, null, kappa):
        calls.append((denoiser, kappa, null["label"].tolist()))
        return original(denoiser, x_t, t, cond, null, kappa)

    monkeypatch.setattr(sid_module, "guided", spy)
    with torch.no_grad():
        model.student_loss(BATCH), model.fake_score_loss(BATCH)
    assert [kappa for _, kappa, _ in calls] == list(kappas)
    assert [denoiser for denoiser, _, _ in calls] == [model.teacher.denoiser, model.fake_score, model.fake_score]
    assert all(null == [2] * 8 for _, _, null in calls)


def test_dmd_guides_the_teacher_alone(monkeypatch):
    model, calls = DMD(neural(), kappa=2.5), []
    original = dmd_module.guided
    monkeypatch.setattr(dmd_module, "guided", lambda *a: calls.append(a) or original(*a))
    with torch.no_grad():
        model.student_loss(BATCH), model.fake_score_loss(BATCH)
    assert [(call[0], call[5]) for call in calls] == [(model.teacher.denoiser, 2.5)]


@pytest.mark.parametrize("settings, expected", [({}, 0), ({"kappa": 2.0}, 0.1), ({"guidance": "anti"}, 0.1)])
def test_the_fake_score_learns_without_condition_only_where_it_needs_to(settings, expected, monkeypatch):
    model, kept = SiD(neural(), **settings), []
    original = sid_module.denoising_loss
    monkeypatch.setattr(
        sid_module,
        "denoising_loss",
        lambda d, x, t, e, cond, f: kept.append(cond["label"]) or original(d, x, t, e, cond, f),
    )
    batch = {"data": torch.zeros(4000, 2), "label": torch.ones(4000, dtype=torch.long)}
    with torch.no_grad():
        model.fake_score_loss(batch)
    share = (kept[0] == 2).double().mean().item()
    assert share == pytest.approx(expected, abs=5 * math.sqrt(0.09 / 4000) if expected else 0)


def test_zero_guidance_trains_an_unconditional_fake_score():
    model = SiD(neural(), guidance="zero")
    wake(model.fake_score, 3)
    losses = [model.fake_score_loss(BATCH | {"label": label}).item() for label in (BATCH["label"], BATCH["label"])]
    model.student.requires_grad_(False)
    x_g, _ = model.rollout(BATCH, "fake")
    t = model.fake_times(model.rand(8, "fake t"), model.teacher.process)
    x_t = model.teacher.process.add_noise(x_g, model.randn((8, 2), "fake eps"), t)
    error = model.fake_score(x_t, t, {"label": torch.full((8,), 2)}) - x_g
    expected = (model.fake_score.loss_weight(t)[:, None] * error**2).mean()
    assert losses[0] == pytest.approx(expected.item(), rel=1e-5)


# SiDA and DMD2: the adversarial parts


def test_sida_mixes_and_without_weight_is_sid():
    torch.manual_seed(0)
    plain, none, mixed = (SiD(neural(), adversarial=a) if a is not None else SiD(neural()) for a in (None, 0.0, 0.3))
    for model in (plain, none, mixed):
        wake(model.student, 1), wake(model.fake_score, 2)
        model.seed = 7
    alone, zero, both = (m.student_loss(BATCH) for m in (plain, none, mixed))
    assert torch.equal(alone, zero) and torch.equal(plain.fake_score_loss(BATCH), none.fake_score_loss(BATCH))
    x_g, cond = mixed.rollout(BATCH, "student")
    x_t, t = mixed.diffuse(x_g, mixed.student_times, "student")
    adversarial = nn.functional.softplus(-mixed.fake_score.features(x_t, t, cond).mean(1)).mean()
    torch.testing.assert_close(both, 0.7 * alone + 0.3 * adversarial)


def test_sidas_discriminator_sees_fake_and_real_at_the_same_level_and_noise():
    model, seen = SiD(neural(), adversarial=0.5), []
    logits = model.logits
    model.logits = lambda x_t, t, cond: seen.append((x_t, t, cond)) or logits(x_t, t, cond)
    model.fake_score_loss(BATCH)
    (fake, t_fake, _), (real, t_real, cond) = seen
    assert torch.equal(t_fake, t_real) and torch.equal(cond["label"], BATCH["label"])
    noise = t_fake[:, None] * model.randn((8, 2), "fake eps")
    torch.testing.assert_close(real, BATCH["data"] + noise)
    torch.testing.assert_close(fake, model.rollout(BATCH, "fake")[0].detach() + noise)
    assert not fake.requires_grad


def test_dmd2s_discriminator_has_levels_and_noise_of_its_own():
    model, seen = DMD(neural(), gan=0.1), []
    features = model.fake_score.features
    model.fake_score.features = lambda x_t, t, cond: seen.append((x_t, t)) or features(x_t, t, cond)
    model.fake_score_loss(BATCH), model.student_loss(BATCH)
    levels = [tuple(t.tolist()) for _, t in seen]
    assert len(levels) == len(set(levels)) == 3
    assert not seen[0][0].requires_grad and seen[2][0].requires_grad


def test_dmd2s_losses_add_up():
    """Head logits: positive is real for the discriminator, and the student wants it."""
    settings = {"gan": 0.5, "gan_discriminator": 0.25}
    plain, gan = DMD(neural()), DMD(neural(), **settings)
    for model in (plain, gan):
        wake(model.student, 1), wake(model.fake_score, 2)
        model.seed = 7
    value = iter((1.0, -2.0, 0.5))
    gan.logits = lambda x, cond, purpose: torch.full((8,), next(value))
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    expected = plain.fake_score_loss(BATCH) + 0.25 * (softplus(1.0) + softplus(2.0))
    torch.testing.assert_close(gan.fake_score_loss(BATCH), expected)
    torch.testing.assert_close(gan.student_loss(BATCH), plain.student_loss(BATCH) + 0.5 * softplus(-0.5))


def test_real_data_and_features_are_required_only_by_adversarial_forms():
    assert DMD(neural()).requires == SiD(neural()).requires == {"denoiser"}
    assert (
        DMD(neural(), gan=0.1).requires == SiD(neural(), adversarial=0.5).requires == {"denoiser", "data", "features"}
    )
    with pytest.raises(ValueError, match="DMD needs data.*provide only"):
        DMD(neural(), gan=0.1).require(SimpleNamespace(provides=frozenset()))
    DMD(neural()).require(SimpleNamespace(provides=frozenset()))


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_sidas_weight_is_a_share(value):
    with pytest.raises(ValueError, match=f"adversarial is a share and must lie in .0, 1., got {value}"):
        SiD(neural(), adversarial=value)


# DMD: schedule and regression


def test_dmd_makes_twenty_and_four_steps_of_twenty_four():
    model = DMD(neural())
    states, _, _ = fit(model, 24)
    made = {role: {int(moment["step"]) for moment in states[-1].moments[role]} for role in model.roles}
    assert made == {"fake_score": {20}, "student": {4}}


def test_sid_alternates_and_the_fake_score_is_first():
    model = SiD(neural())
    assert [model.turn(step) for step in range(4)] == ["fake_score", "student"] * 2
    assert [DMD(neural()).turn(step) for step in range(6)] == ["fake_score"] * 5 + ["student"]


def test_regression_needs_one_step():
    with pytest.raises(ValueError, match="needs num_steps=1, got 4"):
        DMD(neural(), regression=0.25, num_steps=4)


def paired(seed, **settings):
    model = DMD(neural(), regression=0.25, num_pairs=50, **settings)
    model.seed = seed
    model.on_fit_start()
    return model


def test_pairs_are_a_function_of_the_seed():
    one, again, other = (paired(seed)._pairs for seed in (3, 3, 4))
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1]) and same(one[2], again[2])
    assert not torch.equal(one[0], other[0]) and set(one[2]["label"].tolist()) == {0, 1}


def test_pairs_are_teacher_samples_from_the_same_noise():
    """The exact flow of a Gaussian: x_0 = m + S / sqrt(S^2 + 80^2) (80 z - m); rows of noise, sample and class stay together."""
    model = DMD(gaussian(0.4, 0.9), network=MLP([1], width=8, depth=1), regression=0.25, num_pairs=50)
    model.on_fit_start()
    noise, y, _ = model.pairs(20)
    torch.testing.assert_close(y, 0.4 + 0.9 / math.hypot(0.9, 80) * (80 * noise - 0.4), rtol=0.02, atol=0.02)
    assert len(set(noise.flatten().tolist())) > 10


def test_regression_is_added_with_its_weight():
    plain, model = DMD(neural()), paired(7)
    for each in (plain, model):
        wake(each.student, 1), wake(each.fake_score, 2)
        each.seed = 7
    noise, y, cond = model.pairs(8)
    x = model.student(80 * noise, torch.tensor(80.0), cond)
    huber = (((x - y).square().mean(1) + 0.03**2).sqrt() - 0.03).mean()
    torch.testing.assert_close(model.student_loss(BATCH), plain.student_loss(BATCH) + 0.25 * huber)


# Times of the student


@pytest.mark.parametrize("times", [[5.0, 80.0], [80.0, 80.0], [90.0, 1.0], [80.0, 0.0], [-1.0], []])
def test_impossible_times_are_refused(times):
    with pytest.raises(ValueError, match="times must fall and lie in"):
        SiD(neural(), times=times)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        SiD(neural(), num_steps=0)


def test_guidance_without_an_unconditional_branch_is_refused():
    with pytest.raises(ValueError, match="kappa=2.0 has nothing to guide"):
        SiD(ExactTeacher(Mixture([[0.0]], [[[1.0]]]), VarianceExploding()), kappa=2.0)


@pytest.mark.parametrize("t_init", [90.0, 0.0, -1.0])
def test_an_impossible_first_time_is_refused(t_init):
    with pytest.raises(ValueError, match="t_init"):
        SiD(neural(), t_init=t_init, num_steps=2)


def test_steps_are_spread_over_the_processes_grid():
    model = DMD(neural(RectifiedFlow(t_min=0.2)), num_steps=4)
    assert model.step_times.tolist() == pytest.approx([1.0, 0.8, 0.6, 0.4]) and model.num_steps == 4
    model = DMD(neural(), times=[80.0, 2.0])
    assert model.num_steps == 2 and model.as_student().times == [80.0, 2.0]


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
        SiD(neural(), network=MLP([2], width=4, depth=1, classes=CLASSES)).load_state_dict(content["state_dict"])


# Data that do not belong to the teacher


def test_data_of_another_shape_or_with_other_classes_are_refused():
    model = SiD(neural())
    model.check(SimpleNamespace(event_shape=(2,), classes={"label": 2}, context=()))
    with pytest.raises(ValueError, match=r"the data have shape \(3,\), the teacher makes \(2,\)"):
        model.check(SimpleNamespace(event_shape=(3,), classes={"label": 2}))
    for classes in ({}, {"label": 3}):
        with pytest.raises(ValueError, match="the teacher knows 2 classes of 'label'"):
            model.check(SimpleNamespace(event_shape=(2,), classes=classes))
