"""MeanFlow: levels and ends, what is told, its gradient, its two velocities, refusals."""

import math
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers import BATCH, CLASSES, PROCESSES, Line, f64, gaussian, neural
from losses.test_flow_map import told
from torch import nn

import distillkit.methods.flow_map as module
from distillkit import load_student
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.flow import flow_time, flow_velocity, noised
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding
from distillkit.methods.flow_map import FlowMap
from distillkit.methods.mdt_dist import MDTDist
from distillkit.networks.dit import DiT
from distillkit.networks.mlp import MLP
from distillkit.students.few_step import END
from distillkit.students.makers import Fresh
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactTeacher, Mixture

M, S = 0.3, 0.5
PLAIN = {"power": 0.0}  # the plain square


class Map(nn.Module):
    """The exact map of N(mu, s^2) as a denoiser that is told the end of its jump.

    With a `slope` the mean is `mu + slope kappa` of the kappa that it is told.
    """

    def __init__(self, line: Line, process, slope: float | None = None):
        super().__init__()
        self.line, self.process = line, process
        self.slope = None if slope is None else nn.Parameter(f64(slope)[0])

    def forward(self, x_t, t, cond):
        mu = self.line.mu if self.slope is None else self.line.mu + self.slope * cond["kappa"][:, None]
        return told(mu, self.line.s, self.process)(x_t, torch.as_tensor(t), cond[END])


def on_a_line(mu, s, process=None, teacher=None, slope=None, **kwargs):
    """Teacher N(M, S^2), student exact for N(mu, s^2), two weights."""
    process = process or VarianceExploding()
    model = FlowMap(teacher or gaussian(M, S, process), student_maker=Fresh(MLP([1], width=8, depth=1)), **kwargs)
    line = Line(mu, s)
    model.student = Map(line, process, slope)
    randn, rand = model.randn, model.rand
    model.randn = lambda shape, purpose: randn(shape, purpose).double()
    model.rand = lambda num, purpose: rand(num, purpose).double()
    return model, line


def data(num=512):
    return {"data": M + S * torch.randn(num, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}


def gradient(loss, model):
    parameters = [p for p in model.student.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def awake(**kwargs):
    """A student whose network heeds what it is told."""
    model = FlowMap(neural(), **kwargs)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.student.network.embed.told.parameters():
        with torch.no_grad():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    model.focus("student")
    return model


# The whole step


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.75, 0.0), (0.25, 0.5)], ids=str)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_nothing_pulls_at_the_exact_map(process, shares):
    model, line = on_a_line(M, S, process, instant=shares[0], whole=shares[1], **PLAIN)
    loss = model.student_loss(data())
    assert loss.item() < 1e-16 and max(map(abs, line.gradient(loss))) < 1e-8


@pytest.mark.parametrize("tangent", ["jvp", "quotient"])
def test_it_is_pulled_back_from_either_side(tangent):
    for sign in (1.0, -1.0):
        model, line = on_a_line(M + 0.3 * sign, S, tangent=tangent)
        assert sign * line.gradient(model.student_loss(data(4096)))[0] > 0
        model, line = on_a_line(M, S * 1.3**sign, tangent=tangent)
        assert sign * line.gradient(model.student_loss(data(4096)))[1] > 0


@pytest.mark.parametrize("tangent, order", [("jvp", 1), ("quotient", 1), ("quotient", 3)])
def test_the_bare_velocity_alone_is_differentiated(tangent, order):
    """The gradient is `2 w R du/dtheta` over the elements; R and w are constants."""
    model = awake(tangent=tangent, order=order, instant=0.25, whole=0.25, fastest=None)
    found = gradient(model.student_loss(BATCH), model)
    cond, (tau, r, instant) = model.condition(BATCH), model.spans(8)
    x = noised(BATCH["data"], tau, model.randn((8, 2), "eps"))
    u = model.average_velocity(cond, r)(x, tau)
    v = flow_velocity(lambda x_t, t: model.teacher.denoiser(x_t, t, cond), model.teacher.process)(x, tau)
    R = model.residual(cond, x, tau, r, u, v)
    R = torch.where((torch.arange(8) < instant)[:, None], u - v, R).detach()
    weight = 1 / (R.square().mean(1, keepdim=True) + 1e-3)
    torch.testing.assert_close(found, gradient((2 * weight * R * u).sum() / R.numel(), model), rtol=1e-4, atol=1e-6)


def test_at_the_level_itself_it_is_regression_on_the_teacher(monkeypatch):
    """r = tau: the plain regression on v, told tau; no derivative is taken."""
    monkeypatch.setattr(module, "forward_derivative", None)
    model = awake(instant=1.0, **PLAIN)
    cond, (tau, r, instant) = model.condition(BATCH), model.spans(8)
    assert torch.equal(tau, r) and instant == 8
    x = noised(BATCH["data"], tau, model.randn((8, 2), "eps"))
    flow = lambda denoiser, cond: flow_velocity(lambda x_t, t: denoiser(x_t, t, cond), model.teacher.process)(x, tau)  # noqa: E731
    v, u = flow(model.teacher.denoiser, cond), flow(model.student, {**cond, END: tau})
    torch.testing.assert_close(model.student_loss(BATCH), (u - v.detach()).square().mean())
    expected = gradient((u - v.detach()).square().mean(), model)
    torch.testing.assert_close(gradient(model.student_loss(BATCH), model), expected)


def test_to_the_datum_it_is_velocity_matching():
    """r = 0: the gradient of MDT-dist's velocity matching, on the same levels and noise."""
    model = FlowMap(neural(), instant=0.0, whole=1.0, fastest=None, **PLAIN)
    other = MDTDist(neural(), tangent="jvp")
    tau, r, instant = model.spans(8)
    assert r.eq(0).all() and instant == 0
    cond = model.condition(BATCH)
    found = model.matching(BATCH["data"], tau, r, instant, cond)
    expected = other.velocity_matching(BATCH["data"], tau, model.randn((8, 2), "eps"), cond)
    torch.testing.assert_close(found, expected)
    names = [name for name, _ in other.student.named_parameters()]
    mine = dict(model.student.named_parameters())
    one = torch.autograd.grad(found, [mine[name] for name in names])
    two = torch.autograd.grad(expected, [*other.student.parameters()])
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_only_the_student_gets_gradient():
    model = awake()
    model.student_loss(BATCH).backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert got == {name for name, _ in model.named_parameters() if name.startswith("student.")}


def test_both_tangents_agree_on_attention():
    """Forward mode, without a rule for fused attention, must run and agree with a short hop."""
    network = DiT([2, 4, 4], width=16, depth=1, heads=2).double()
    teacher = Teacher(Denoiser(network, RectifiedFlow(), "edm", 1.0), (2, 4, 4))
    found = []
    for settings in ({"tangent": "jvp"}, {"tangent": "quotient", "delta": 1e-6}):
        model = FlowMap(teacher, **settings)
        model.student.double()
        torch.manual_seed(0)
        for parameter in model.student.parameters():
            nn.init.normal_(parameter, std=0.1)
        x, v = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
        tau, r = f64(0.3, 0.5, 0.8), f64(0.1, 0.0, 0.6)
        with torch.no_grad():
            found.append(model.residual({}, x, tau, r, model.average_velocity({}, r)(x, tau), v))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_nothing_is_differenced_under_autocast():
    losses = []
    for enabled in (False, True):
        model = awake(tangent="quotient", velocity="data")
        model.seed = 3
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(model.student_loss(BATCH))
    assert torch.equal(*losses) and losses[0].dtype == torch.float32


@pytest.mark.parametrize("step, share", [(0, 0.0), (2, 0.5), (4, 1.0), (9, 1.0)])
def test_the_derivatives_part_rises(step, share):
    model = awake(tangent_warmup=4)
    full = awake()
    model._trainer = SimpleNamespace(global_step=step, global_rank=0, world_size=1, accumulate_grad_batches=1)
    model.log = lambda *args: None
    x, v, tau, r = model.randn((8, 2), "x"), model.randn((8, 2), "v"), torch.full((8,), 0.6), torch.full((8,), 0.2)
    cond = model.condition(BATCH)
    u = full.average_velocity(cond, r)(x, tau)
    rising, whole = model.residual(cond, x, tau, r, u, v), full.residual(cond, x, tau, r, u, v)
    torch.testing.assert_close(rising, u - v + share * (whole - (u - v)))


def test_clamp_and_span_weight_reach_the_loss():
    losses = []
    for settings in ({}, {"clamp": 1e-3}, {"weigh_span": True}):
        model = awake(**PLAIN, **settings)
        model.seed = 3
        losses.append(model.student_loss(BATCH).item())
    assert losses[1] <= 1e-6 * 1.001 and losses[2] > losses[0] * 1.01


# Levels


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_levels_and_ends(process):
    """`low <= r <= tau <= last`: first come r = tau, last r = 0, between them two draws."""
    model = FlowMap(neural(process), instant=0.25, whole=0.125)
    ends = torch.tensor([process.t_min, float(model.step_times[0])], dtype=torch.float64)
    low, last = flow_time(process, ends).tolist()
    tau, r, instant = model.spans(8000)
    assert instant == 2000 and torch.equal(tau[:2000], r[:2000]) and r[-1000:].eq(0).all()
    between = slice(2000, 7000)
    assert (r[between] > 0).all() and (r[between] <= tau[between]).all()
    assert (r[between] < tau[between]).double().mean() > 0.8  # where a law is cut off both draws may be its end
    assert low - 1e-6 <= r[between].min() and tau.max() <= last + 1e-6
    one, other = model.levels(8000, "tau"), model.levels(8000, "r")
    assert torch.equal(tau, torch.maximum(one, other))
    assert torch.equal(r[between], torch.minimum(one, other)[between])


@pytest.mark.parametrize("t_init", [None, 2.0])
def test_levels_are_the_papers_logit_normal_mapped_onto_the_students_range(t_init):
    """In tau: the median is as far along this range as sigmoid(-0.4) along the process's."""
    model = FlowMap(neural(), t_init=t_init)
    levels = model.levels(20_000, "tau")
    share = (torch.sigmoid(f64(-0.4)).item() - model.low) / (model.high - model.low)
    last = 2 / 3 if t_init else 80 / 81
    assert levels.median().item() == pytest.approx(model.low + (last - model.low) * share, abs=0.005)
    assert levels.max() <= last
    if t_init is None:
        assert torch.special.logit(levels).std().item() == pytest.approx(1.0, abs=0.03)


def test_shares_of_small_batches_are_right_on_average():
    model, found = FlowMap(neural()), []
    for step in range(400):
        model._trainer = SimpleNamespace(global_step=step, global_rank=0, world_size=1, accumulate_grad_batches=1)
        found.append(model.part(2, 0.3, "instant"))
    assert set(found) <= {0, 1} and sum(found) / 800 == pytest.approx(0.3, abs=0.05)


# What is told


def test_the_end_is_told_as_its_flow_time(tmp_path):
    """In the loss and in the product, whose file keeps gamma; a copy of a student keeps the end."""
    model, seen = awake(gamma=0.3, num_steps=2), []
    model.student.register_forward_pre_hook(lambda m, args: seen.append(args[2][END]))
    model.student_loss(BATCH)
    tau, r, instant = model.spans(8)
    assert torch.equal(seen[0], r) and torch.equal(seen[1], r[instant:])
    model.product().save(tmp_path)
    facts = yaml.safe_load((tmp_path / "student.yaml").read_text())
    assert facts["gamma"] == 0.3 and facts["denoiser"]["init_args"]["told"] == {END: {"range": [0.0, 1.0]}}
    student = load_student(tmp_path)
    cond = {"label": torch.zeros(4, dtype=torch.int64)}
    torch.testing.assert_close(student.sample(4, cond), model.product().sample(4, cond))


def test_several_steps_of_the_exact_map_keep_the_law():
    """Jumps alone, and with new noise between: the std stays that of the data."""
    noise = torch.special.ndtri((torch.arange(4001, dtype=torch.float64) + 0.5) / 4001)[:, None]
    for gamma in (0.0, 0.5):
        model, _ = on_a_line(M, S, RectifiedFlow(), num_steps=3, gamma=gamma)
        model.student.told, model.student.process = {END: {"range": [0.0, 1.0]}}, model.teacher.process
        model.ema = None
        student = model.product()
        made = student(noise, {}, lambda i: noise[torch.randperm(4001, generator=torch.Generator().manual_seed(i))])
        assert made.mean().item() == pytest.approx(M, abs=0.02) and made.std().item() == pytest.approx(S, rel=0.03)


def test_guidance_reaches_the_teacher(monkeypatch):
    calls, original = [], module.guided
    monkeypatch.setattr(module, "guided", lambda *a: calls.append((a[0], a[5])) or original(*a))
    model = FlowMap(neural(), kappa=3.0)
    model.student_loss(BATCH)
    assert calls == [(model.teacher.denoiser, 3.0)]
    calls.clear()
    model, seen = FlowMap(neural(), kappa=[1.0, 4.0]), []
    model.student.register_forward_pre_hook(lambda m, args: seen.append(args[2]["kappa"]))
    model.student_loss(BATCH)
    ((_, kappa),) = calls
    assert torch.equal(kappa, seen[0]) and 1 <= kappa.min() < kappa.max() <= 4


def test_one_student_answers_every_kappa():
    """Equal widths: told kappa, it rests at `m_0 + kappa (m_c - m_0)`, beside it is a pull."""
    m_c, m_0 = 0.4, 0.3
    law = Mixture([[0.5], [m_c], [m_0]], [[[S**2]]] * 3, labels=[0, 1, 2])
    teacher = ExactTeacher(law, VarianceExploding(), classes=CLASSES)
    batch = data(256) | {"label": torch.ones(256, dtype=torch.long)}
    for slope, sign in ((m_c - m_0, 0), (m_c - m_0 + 0.05, 1), (m_c - m_0 - 0.05, -1)):
        model, _ = on_a_line(m_0, S, teacher=teacher, slope=slope, kappa=[1.0, 4.0], **PLAIN)
        found = torch.autograd.grad(model.student_loss(batch), model.student.slope)[0].item()
        assert (0 if abs(found) < 1e-7 else math.copysign(1, found)) == sign


# The velocity of the data


def test_the_velocity_of_the_data_asks_no_teacher():
    """v is `eps - x_0` itself, and the teacher's denoiser is not called."""
    model = awake(velocity="data", instant=1.0, **PLAIN)
    model.teacher.denoiser.register_forward_pre_hook(lambda *args: pytest.fail("the teacher was called"))
    cond, (tau, r, _), eps = model.condition(BATCH), model.spans(8), model.randn((8, 2), "eps")
    u = model.average_velocity(cond, r)(noised(BATCH["data"], tau, eps), tau)
    torch.testing.assert_close(model.student_loss(BATCH), (u - (eps - BATCH["data"])).square().mean())


def test_the_exact_map_rests_with_the_velocity_of_the_data_too():
    """On average over data and noise: the gradient vanishes, beside it is a pull (paired draws)."""
    found = []
    for shift in (0.0, 0.3):
        model, line = on_a_line(M + shift, S, RectifiedFlow(), velocity="data", **PLAIN)
        found.append(line.gradient(model.student_loss(data(100_000)))[0])
    assert abs(found[0]) < 0.1 * found[1]


# Refusals


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"instant": 0.8, "whole": 0.3}, "together at most 1"),
        ({"delta": 1.0}, "delta must lie between 0 and"),
        ({"tangent": "fd"}, "tangent must be jvp or quotient, got fd"),
        ({"velocity": "own"}, "velocity must be teacher or data, got own"),
        ({"velocity": "data", "kappa": 2.0}, "leave model.kappa at 1"),
        ({"gamma": 1.5}, "gamma"),
        ({"clamp": 0.0}, "clamp"),
        ({"order": 0}, "order"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FlowMap(neural(), **settings)


def test_real_data_are_required():
    with pytest.raises(ValueError, match="FlowMap needs data, which Teacher and SimpleNamespace do not give"):
        FlowMap(neural()).require(SimpleNamespace(provides=frozenset()))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_weights_are_refused(precision):
    model = FlowMap(neural())
    model._trainer = SimpleNamespace(precision=precision)
    with pytest.raises(ValueError, match=f"for which {precision} is too coarse: use 32-true or bf16-mixed"):
        model.setup("fit")


class Backward(torch.autograd.Function):
    """An identity with a derivative in reverse mode alone."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Stubborn(MLP):
    def forward(self, x, time, cond):
        return Backward.apply(super().forward(x, time, cond))


def test_a_network_without_forward_mode_is_refused_before_work_starts():
    some = SimpleNamespace(val={"data": BATCH["data"], "label": BATCH["label"]})
    some.val = type("Rows", (dict,), {"__getitem__": lambda self, i: {k: v[i] for k, v in self.items()}})(some.val)
    network = Stubborn([2], width=8, depth=1, classes=CLASSES)
    for kind, tangent, refused in ((network, "jvp", True), (network, "quotient", False), (None, "jvp", False)):
        model = FlowMap(neural(), student_maker=Fresh(kind) if kind else None, tangent=tangent, kappa=[1.0, 2.0])
        if refused:
            with pytest.raises(
                ValueError, match="Stubborn has an operator without a derivative in forward mode .*tangent=quotient"
            ):
                model.check_forward_mode(some)
        elif tangent == "jvp":
            model.check_forward_mode(some)
