"""TwinFlow: its rows, its two sides, who is moved by which term, without data, refusals."""

from types import SimpleNamespace

import pytest
import torch
from helpers import BATCH, PROCESSES, f64, fit, gaussian, neural, sigma_points
from losses.test_flow_map import average, spread
from methods.test_flow_map import M, Map, S
from torch import nn

from distillkit import load_student
from distillkit.diffusion.flow import noised
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding, expand
from distillkit.diffusion.times import Annealed, Times, Uniform
from distillkit.losses.flow_map import adaptive_weight
from distillkit.methods.twinflow import SHORT, TwinFlow, on_side
from distillkit.networks.mlp import MLP
from distillkit.students.few_step import END, SIDE
from distillkit.students.makers import Fresh

PLAIN = {"power": 0.0, "clamp": None, "rectify_clamp": 100.0, "rectify_power": 0.0, "weigh_span": False}
QUARTERS = slice(0, 6), slice(6, 8)  # the rows of the map and the own ones, of eight


class Level(Times):
    """One flow time, always."""

    def __init__(self, tau):
        self.tau = tau

    def times(self, u, process):
        return process.from_ratio(f64(self.tau / (1 - self.tau))).expand(len(u))


class Sides(Map):
    """The exact map of N(mu, s^2) on the side of data, and of another mean on its own."""

    def __init__(self, line, process, other):
        super().__init__(line, process)
        self.other = other

    def forward(self, x_t, t, cond):
        shift = expand(cond[SIDE].to(x_t), x_t) * (self.other - self.line.mu.detach())
        alpha = expand(self.process.alpha(torch.as_tensor(t)), x_t)
        return super().forward(x_t - alpha * shift, t, cond) + shift


def awake(**kwargs):
    """A student whose network heeds what it is told."""
    torch.manual_seed(0)
    model = TwinFlow(neural(), **kwargs)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.student.network.embed.told.parameters():
        with torch.no_grad():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    model.focus("student")
    return model


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.student.parameters()])])


def seen_by(model, loss):
    """What the student was told in each call, with whether it had a gradient."""
    seen = []
    hook = model.student.register_forward_pre_hook(lambda m, args: seen.append((args[2], torch.is_grad_enabled())))
    loss(), hook.remove()
    return seen


# The rows


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_rows_of_the_map(process):
    """A third any, a third short, a third whole, of the rows that are not own ones."""
    model = TwinFlow(neural(process))
    tau, r, instant = model.spans(6000)
    assert instant == 0
    for part, (low, high) in (
        (slice(0, 2000), (0, 1)),
        (slice(2000, 4000), (0, SHORT)),
        (slice(4000, None), (model.last, model.last)),
    ):
        span = (tau - r)[part]
        assert (span >= low - 1e-6).all() and (span <= high + 1e-6).all() and (r[part] >= 0).all()
    share = (r / tau)[:2000]
    assert share.mean().item() == pytest.approx(0.5, abs=0.02) and share.std().item() == pytest.approx(0.289, abs=0.01)
    assert r[4000:].eq(0).all() and tau[:2000].min() < model.low + 0.01 and tau[:2000].max() > model.last - 0.01


def test_what_each_row_is_told():
    """The map: side 0, its end; own samples: side 1, their level; the judges: both sides."""
    model = awake()
    _, r, _ = model.spans(6)
    seen = seen_by(model, lambda: model.student_loss(BATCH))
    sides = [(told[SIDE].unique().tolist(), len(told[END]), graded) for told, graded in seen]
    assert sides == [
        ([0], 6, True),  # the map
        ([0], 6, False),  # two jumps behind the hop
        ([0], 6, False),
        ([0], 2, True),  # own samples
        ([1], 2, True),  # which the other side follows
        ([1], 2, False),  # the judges
        ([0], 2, False),
    ]
    ends = [told[END] for told, _ in seen]
    assert torch.equal(ends[0], r) and torch.equal(ends[2], r) and ends[3].eq(0).all()
    assert torch.equal(ends[4], model.levels(2, "own tau"))
    assert torch.equal(ends[5], model.levels(2, "judge tau")) and torch.equal(ends[6], ends[5])


def test_the_rows_keep_their_conditions():
    model, labels = awake(), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    seen = seen_by(model, lambda: model.student_loss({**BATCH, "label": labels}))
    assert torch.equal(seen[0][0]["label"], labels[:6]) and torch.equal(seen[3][0]["label"], labels[6:])


def test_the_product_is_told_no_side(tmp_path):
    """The sampler tells the side of data by itself; the file keeps both conditions."""
    model = awake(gamma=0.5, num_steps=2)
    model.product().save(tmp_path)
    student, cond = load_student(tmp_path), {"label": torch.zeros(4, dtype=torch.int64)}
    assert student.denoiser.told == {END: {"range": [0.0, 1.0]}, SIDE: {"categories": 2}}
    torch.testing.assert_close(student.sample(4, cond), model.product().sample(4, cond))


# Its parts


def test_the_own_side_is_fitted_to_the_mean():
    """The gradient of the plain square to `eps - x_g`, told side 1; x_g is a constant."""
    model = awake()
    x_g = model.randn((8, 2), "x_g").requires_grad_()
    cond, tau, eps = model.condition(BATCH), model.levels(8, "own tau"), model.randn((8, 2), "own eps")
    found = model.own_side(x_g.detach(), cond)
    u = model.average_velocity(on_side(1, cond, tau), tau)(noised(x_g.detach(), tau, eps), tau)
    expected = (u - (eps - x_g.detach())).square().mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found, model), gradient(expected, model))
    real = model.average_velocity(on_side(0, cond, tau), tau)(noised(x_g.detach(), tau, eps), tau)
    assert (u - real).abs().max() > 1e-3


@pytest.mark.parametrize("judge", ["own", "teacher"])
@pytest.mark.parametrize("process", [VarianceExploding(), RectifiedFlow()], ids=["ve", "flow"])
def test_the_rectification_in_closed_form(process, judge):
    """Side 1 exact for N(m, S^2), side 0 or teacher for N(M, S^2): `d/dm = 2 (m - M) t / b^2`."""
    t, m = 0.6, M + 0.4
    model = TwinFlow(
        gaussian(M, S, process),
        student_maker=Fresh(MLP([1], width=8, depth=1)),
        judge=judge,
        judge_times=Level(t),
        **PLAIN,
    )
    model.mapped = lambda t: t / (1 + t) if process.t_max > 1 else t  # levels as they are
    line = SimpleNamespace(mu=f64(M)[0], s=f64(S)[0])
    model.student = (
        Sides(line, process, m) if judge == "own" else Sides(SimpleNamespace(mu=f64(9)[0], s=f64(S)[0]), process, m)
    )
    z, eps = sigma_points()
    model.randn = lambda shape, purpose: eps
    mean = f64(m)[0].requires_grad_()
    loss = model.rectification(mean + S * z, {})
    found = torch.autograd.grad(loss, mean)[0].item()
    assert found == pytest.approx(2 * (m - M) * t / spread(f64(t), S).item() ** 2, rel=1e-5) and found > 0
    model.student.other = M
    if judge == "own":
        assert torch.autograd.grad(model.rectification(mean + S * z, {}), mean)[0].abs() < 1e-9


@pytest.mark.parametrize("whose", ["student_times", "judge_times"])
def test_levels_may_change_in_the_course_of_a_run_whose_end_is_known(whose):
    levels = Annealed(Uniform(0.9, 1.0), Uniform(0.0, 0.1), begin=0.5, end=0.5)
    model, seen = TwinFlow(neural(), **{whose: levels}), []
    with pytest.raises(ValueError, match="whose end is not known"):
        model.on_fit_start()
    drawn = model.levels
    model.levels = lambda num, *args: seen.append((args, drawn(num, *args))) or seen[-1][1]
    fit(model, 2)
    own = [found for args, found in seen if ("judge tau" if whose == "judge_times" else "own tau") in args]
    assert len(own) == 2 and own[0].min() > own[1].max()


def test_the_rectification_moves_the_sample_alone():
    """The judges are constants: the gradient is that of `2 w <push, x_g> / N`."""
    model = awake(fake=1.0, short=0.0, whole=0.0)
    cond = model.condition(BATCH)
    x_g = model.own_samples(8, cond, "own")
    found = gradient(model.rectification(x_g, cond), model)
    x_g = model.own_samples(8, cond, "own")
    tau = model.levels(8, "judge tau")
    x = noised(x_g.detach(), tau, model.randn((8, 2), "judge eps"))
    own, real = (model.average_velocity(on_side(side, cond, tau), tau)(x, tau) for side in (1, 0))
    push = -(own - real).detach().clamp(-1, 1)
    weight = adaptive_weight(push, 0.5, 1e-6)
    torch.testing.assert_close(found, gradient((2 * weight * push * x_g).sum() / 16, model), rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_sum_of_its_parts():
    """Rows count alike; the rectification has its weight."""
    whole = awake().student_loss(BATCH)
    without = awake(rectify=0.0)
    model = awake()
    cond = model.condition(BATCH)
    real, own = ({name: value[part] for name, value in cond.items()} for part in QUARTERS)
    matched = model.matching(BATCH["data"][:6], *model.spans(6), real)
    x_g = model.own_samples(2, own, "own")
    sides = 0.75 * matched + 0.25 * model.own_side(x_g.detach(), own)
    torch.testing.assert_close(without.student_loss(BATCH), sides)
    torch.testing.assert_close(whole, sides + 0.5 * model.rectification(x_g, own))


@pytest.mark.parametrize("step", [0, 2, 3])
def test_the_rectification_counts_from_its_start_on(step):
    """Before that step the loss is that of the other rows, to the bit."""
    start, losses = 3, []
    for settings in ({"rectify_start": start}, {"rectify": 0.0}, {}):
        model = awake(**settings)
        model._trainer = SimpleNamespace(global_step=step, global_rank=0, world_size=1, accumulate_grad_batches=1)
        model.log = lambda *args: None
        losses.append(model.student_loss(BATCH))
    late, without, both = losses
    assert without != both and torch.equal(late, both if step >= start else without)


def test_only_the_student_gets_gradient():
    model = awake(target_decay=0.9)
    model.student_loss(BATCH).backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert got == {name for name, _ in model.named_parameters() if name.startswith("student.")}
    assert set(model.roles) == {"student"}


def test_the_jumps_behind_a_hop_may_be_those_of_an_average():
    model = awake(target_decay=0.9)
    same = model.student_loss(BATCH)
    with torch.no_grad():
        next(model.target.parameters()).add_(0.5)
    calls = []
    model.target.register_forward_pre_hook(lambda *args: calls.append(1))
    assert model.student_loss(BATCH) != same and len(calls) == 2
    assert len(seen_by(model, lambda: model.student_loss(BATCH))) == 5
    assert awake().target is None


# Without data, and without a teacher


def test_with_own_states_no_data_are_read():
    model = awake(states="own")
    assert model.requires == {"denoiser"} and TwinFlow(neural()).requires == {"denoiser", "data"}
    loss = model.student_loss({"label": BATCH["label"]})
    x_0 = model.own_samples(6, {"label": BATCH["label"][:6]}, "states").detach()
    told = {"label": BATCH["label"][:6]}
    x_g = model.own_samples(2, {"label": BATCH["label"][6:]}, "own")
    own = {"label": BATCH["label"][6:]}
    expected = 0.75 * model.matching(x_0, *model.spans(6), told) + 0.25 * model.own_side(x_g.detach(), own)
    torch.testing.assert_close(loss, expected + 0.5 * model.rectification(x_g, own))


def test_with_the_velocity_of_data_the_teacher_is_not_called():
    model = awake(velocity="data")
    model.teacher.denoiser.register_forward_pre_hook(lambda *args: pytest.fail("the teacher was called"))
    assert torch.isfinite(model.student_loss(BATCH))


def test_a_batch_of_one_trains_a_row_of_either_kind():
    model, kinds = awake(), set()
    one = {name: value[:1] for name, value in BATCH.items()}
    for step in range(12):
        model._trainer = SimpleNamespace(global_step=step, global_rank=0, world_size=1, accumulate_grad_batches=1)
        model.log = lambda *args: None
        kinds.add(seen_by(model, lambda: model.student_loss(one))[-1][0][SIDE].item())
        assert torch.isfinite(model.student_loss(one))
    assert kinds == {0}  # the last call is always on the side of data: a jump or a judge


def test_nothing_pulls_at_the_exact_student():
    """Both sides exact for the teacher's Gaussian: no residual, no rectification."""
    process = RectifiedFlow()
    model = TwinFlow(gaussian(M, S, process), student_maker=Fresh(MLP([1], width=8, depth=1)), tangent="jvp", **PLAIN)
    line = nn.Module()
    line.mu, line.s = (nn.Parameter(f64(value)[0]) for value in (M, S))
    model.student = Sides(line, process, M)
    randn, rand = model.randn, model.rand
    model.randn = lambda shape, purpose: randn(shape, purpose).double()
    model.rand = lambda num, purpose: rand(num, purpose).double()
    x_0 = M + S * torch.randn(64, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert model.matching(x_0, *model.spans(64), {}).item() < 1e-16
    assert model.rectification(x_0.requires_grad_(), {}).item() < 1e-16
    tau = f64(0.5).expand(64)
    torch.testing.assert_close(model.average_velocity({}, tau)(x_0, tau), average(M, S)(x_0, tau, tau))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"whole": 0.6, "short": 0.3, "fake": 0.2}, "together at most 1"),
        ({"fake": 0.0}, "rectify=0.5 needs the side of own samples"),
        ({"judge": "fake"}, "judge must be own or teacher, got fake"),
        ({"states": "fake"}, "states must be data or own, got fake"),
        ({"states": "own", "velocity": "data"}, "velocity=data needs the data that states=own does without"),
        ({"judge": "teacher", "velocity": "data"}, "velocity=data asks no teacher, judge=teacher does"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TwinFlow(neural(), **settings)
