"""MDT-dist's own parts: its calls and their guidance, the effect of each switch, refusals."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import PROCESSES, Line, f64, gaussian, sigma_points
from torch import nn

import distillkit.methods.mdt_dist as module
from distillkit.cli import config
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.flow import flow_time, flow_velocity, noised
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding, VariancePreserving, expand
from distillkit.diffusion.times import LogNormal, Times
from distillkit.methods.mdt_dist import MDTDist
from distillkit.networks.dit import DiT
from distillkit.networks.mlp import MLP
from distillkit.students.makers import Fresh
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactTeacher, Mixture

M, S = 0.3, 0.5
CLASSES = {"label": 2}
BATCH = {"data": torch.randn(8, 2, generator=torch.Generator().manual_seed(5)), "label": torch.arange(8) % 2}


class Jump(nn.Module):
    """The exact student of N(mu, s^2) as a denoiser: `f = mu + (s / b) (x_t - alpha mu)`."""

    def __init__(self, line: Line, process):
        super().__init__()
        self.line, self.process = line, process

    def forward(self, x_t, t, cond):
        alpha, sigma = (expand(scale(torch.as_tensor(t)), x_t) for scale in (self.process.alpha, self.process.sigma))
        mu, s = self.line.mu, self.line.s
        return mu + s * (alpha**2 * s**2 + sigma**2).rsqrt() * (x_t - alpha * mu)


class Level(Times):
    """One flow time, always."""

    def __init__(self, tau):
        self.tau = tau

    def times(self, u, process):
        return process.from_ratio(f64(self.tau / (1 - self.tau))).expand(len(u))


def on_a_line(mu, s, process=None, teacher=None, **kwargs):
    """Teacher N(M, S^2), student exact for N(mu, s^2), two weights."""
    process = process or VarianceExploding()
    model = MDTDist(teacher or gaussian(M, S, process), student_maker=Fresh(MLP([1], width=8, depth=1)), **kwargs)
    line = Line(mu, s)
    model.student = Jump(line, process)
    randn, rand = model.randn, model.rand
    model.randn = lambda shape, purpose: randn(shape, purpose).double()
    model.rand = lambda num, purpose: rand(num, purpose).double()
    return model, line


def data(num=512):
    return {"data": M + S * torch.randn(num, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}


def neural(process=None, network=None):
    """A small neural teacher with two classes in the plane."""
    generator = torch.Generator().manual_seed(0)
    network = network or MLP([2], width=8, depth=1, classes=CLASSES)
    for parameter in network.parameters():
        with torch.no_grad():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return Teacher(Denoiser(network, process or VarianceExploding(), "edm", 1.0), (2,), CLASSES)


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.student.parameters()))])


# The whole step


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_nothing_pulls_at_the_exact_student(process):
    model, line = on_a_line(M, S, process, tangent="jvp")
    loss = model.student_loss(data())
    assert loss.item() < 1e-16 and max(map(abs, line.gradient(loss))) < 1e-10


@pytest.mark.parametrize("vm, vd", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("process", [VarianceExploding(), VariancePreserving(), RectifiedFlow()])
def test_either_loss_pulls_back_from_either_side(process, vm, vd):
    for sign in (1.0, -1.0):
        model, line = on_a_line(M + 0.3 * sign, S, process, tangent="jvp", lambda_vm=vm, lambda_vd=vd)
        assert sign * line.gradient(model.student_loss(data(4096)))[0] > 0
        model, line = on_a_line(M, S * 1.3**sign, process, tangent="jvp", lambda_vm=vm, lambda_vd=vd)
        assert sign * line.gradient(model.student_loss(data(4096)))[1] > 0


@pytest.mark.parametrize("process", [VarianceExploding(), VariancePreserving(), RectifiedFlow()])
@pytest.mark.parametrize("unweighted", [False, True])
def test_velocity_distillation_in_closed_form(process, unweighted):
    """One level, one wrong mean: `dL/dmu = -2 w E R`, w = 1 - tau or one.

    R is `(df/dx)(u - v)` there, of a student and a teacher of one width: their velocities differ by
    `-(mu - M) tau / b^2`, the slope is s / b.
    """
    tau, mu = 0.6, M + 0.2
    model, line = on_a_line(
        mu, S, process, tangent="jvp", lambda_vm=0.0, unweighted_vd=unweighted, student_times=Level(tau)
    )
    model.first, model.last, model.low, model.high = 0.0, 1.0, 0.0, 1.0  # levels as they are
    z, eps = sigma_points()
    model.randn = lambda shape, purpose: {"vd start": z, "vd eps": eps, "eps": eps}[purpose]
    b = math.sqrt((1 - tau) ** 2 * S**2 + tau**2)
    R = S / b * -(mu - M) * tau / b**2
    expected = -2 * (1 if unweighted else 1 - tau) * R
    # pure noise of a finite first time leaves the jump a little short of slope one in mu
    first = model.step_times[0]
    alpha, sigma = process.alpha(first), process.sigma(first)
    slope = 1 - S * alpha / (alpha**2 * S**2 + sigma**2).sqrt()
    found = line.gradient(model.student_loss({"data": torch.zeros(4, 1, dtype=torch.float64)}))[0]
    assert found == pytest.approx(expected * slope.item(), rel=1e-5)
    assert found > 0


def test_matching_differentiates_the_bare_velocity_alone():
    """The gradient is 2 R dphi/dtheta over the elements; R is constant, also through the hop."""
    model = MDTDist(neural(), lambda_vd=0.0)
    model.focus("student")
    cond = model.condition(BATCH)
    tau, eps = model.levels(8), model.randn((8, 2), "eps")
    found = gradient(model.student_loss(BATCH), model)
    x, student = noised(BATCH["data"], tau, eps), model.average_velocity(cond)
    phi = student(x, tau)
    R = model.residual(student, x, tau, phi, cond, 1.0).detach()
    torch.testing.assert_close(found, gradient((2 * R * phi).sum() / R.numel(), model))


def test_distillation_differentiates_the_sample_alone():
    """The network as stand-in for the score of its samples is no subject of the loss."""
    model = MDTDist(neural(), lambda_vm=0.0)
    model.focus("student")
    cond, tau = model.condition(BATCH), model.levels(8)
    found = gradient(model.student_loss(BATCH), model)
    x_1 = model.student(model.step_times[0].float() * model.randn((8, 2), "vd start"), model.step_times[0], cond)
    x, student = noised(x_1.detach(), tau, model.randn((8, 2), "vd eps")), model.average_velocity(cond)
    R = model.residual(student, x, tau, student(x, tau), cond, 1.0).detach()
    expected = gradient((-2 * (1 - tau)[:, None] * R * x_1).sum() / R.numel(), model)
    torch.testing.assert_close(found, expected)


def test_only_the_student_gets_gradient():
    model = MDTDist(neural())
    model.focus("student")
    model.student_loss(BATCH).backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert got == {name for name, _ in model.named_parameters() if name.startswith("student.")}


# Tangents


@pytest.mark.parametrize("process", [VarianceExploding(), RectifiedFlow()], ids=["ve", "flow"])
def test_both_tangents_agree_on_attention(process):
    """Forward mode, without a rule for fused attention, must run and agree with a short hop."""
    network = DiT([2, 4, 4], width=16, depth=1, heads=2).double()
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    teacher = Teacher(Denoiser(network, process, "edm", 1.0), (2, 4, 4))
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    tau, rates = f64(0.3, 0.5, 0.8), []
    for settings in ({"tangent": "jvp"}, {"tangent": "fd", "delta": 1e-6}):
        model = MDTDist(teacher, **settings)
        student = model.average_velocity({})
        with torch.no_grad():
            rates.append(model.residual(student, x, tau, student(x, tau), {}, 1.0))
    torch.testing.assert_close(rates[0], rates[1], rtol=1e-3, atol=1e-4)
    assert rates[0].abs().max() > 0.01


def test_a_hop_costs_one_more_call_of_the_student():
    for settings, expected in (({"lambda_vd": 0.0}, 2), ({}, 5)):
        model, calls = MDTDist(neural(), **settings), []
        model.student.register_forward_pre_hook(lambda m, args, calls=calls: calls.append(torch.is_grad_enabled()))
        model.student_loss(BATCH)
        assert len(calls) == expected and sum(calls) == (1 if expected == 2 else 2)


# Levels


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("times", [None, LogNormal(1.0, 1.0)], ids=["uniform", "released"])
def test_levels_fill_the_students_range(process, times):
    """`fd` leaves room for the hop, `product` goes on to the end."""
    for tangent, room in (("fd", 0.05), ("product", 0.0)):
        model = MDTDist(neural(process), student_times=times, tangent=tangent, delta=0.05)
        ends = torch.tensor([process.t_min, float(model.step_times[0])], dtype=torch.float64)
        low, high = flow_time(process, ends).tolist()
        tau = model.levels(20_000)
        assert low + room - 1e-6 <= tau.min() and tau.max() <= high + 1e-6
        if times is None:
            assert tau.mean().item() == pytest.approx((low + room + high) / 2, abs=0.01)
            assert tau.min() < low + room + 0.01 and tau.max() > high - 0.01


@pytest.mark.parametrize("tangent", ["fd", "product"])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_next_to_the_data_the_teachers_own_direction_is_the_target(process, tangent):
    """Where no hop fits R = phi - v, so jumps that all lead to one point are no fixed point."""
    model = MDTDist(neural(process), tangent=tangent, delta=0.05)
    x, cond = model.randn((8, 2), "x"), model.condition(BATCH)
    tau = torch.linspace(model.low, model.first - 1e-6, 8, dtype=x.dtype)

    def constant(x, tau):
        return (x - 0.3) / tau[:, None]

    phi, v = constant(x, tau), flow_velocity(lambda x_t, t: model.teacher.denoiser(x_t, t, cond), process)(x, tau)
    torch.testing.assert_close(model.residual(constant, x, tau, phi, cond, 1.0), phi - v)
    # where one fits, jumps are held to each other alone; but for that which `fd` errs by
    x, tau = x.double(), tau.double() + 0.1
    phi, v = constant(x, tau), flow_velocity(lambda x_t, t: model.teacher.denoiser(x_t, t, cond), process)(x, tau)
    expected = -(phi - v) * (0.05 / (tau - 0.05))[:, None] if tangent == "fd" else torch.zeros_like(x)
    torch.testing.assert_close(model.residual(constant, x, tau, phi, cond, 1.0), expected)


def test_lognormal_levels_are_the_released_logit_normal():
    model = MDTDist(neural(RectifiedFlow(t_min=1e-6)), student_times=LogNormal(1.0, 1.0))
    assert model.levels(20_000).median().item() == pytest.approx(0.01 + 0.99 * torch.sigmoid(f64(1.0)).item(), abs=0.01)


def test_levels_are_mapped_from_the_processs_range_onto_the_students():
    """In tau: the median, sigmoid(1), is as far along the one as along the other.

    A hop fits at the lower end.
    """
    process = PROCESSES["latent"]
    model = MDTDist(neural(process), student_times=LogNormal(1.0, 1.0), t_init=0.8 * process.t_max, delta=0.05)
    ends = torch.tensor([process.t_min, process.t_max, 0.8 * process.t_max], dtype=torch.float64)
    low, high, last = flow_time(process, ends).tolist()
    share = (torch.sigmoid(f64(1.0)).item() - low) / (high - low)
    expected = low + 0.05 + (last - low - 0.05) * share
    assert model.levels(20_000).median().item() == pytest.approx(expected, abs=0.01)
    assert high - last > 0.05 and high < 0.95


# Guidance and switches


def test_guidance_reaches_either_teacher(monkeypatch):
    calls, original = [], module.guided
    monkeypatch.setattr(module, "guided", lambda *a: calls.append((a[0], a[5])) or original(*a))
    model = MDTDist(neural(), kappa=41.0, vd_kappa=101.0)
    model.student_loss(BATCH)
    assert calls == [(model.teacher.denoiser, 41.0), (model.teacher.denoiser, 101.0)]
    calls.clear()
    MDTDist(neural(), kappa=3.0).student_loss(BATCH)
    assert [kappa for _, kappa in calls] == [3.0, 3.0]


def test_a_guided_student_rests_at_the_guided_mean():
    """With equal widths kappa = 41 moves the mean to m_0 + 41 (m_c - m_0); beside it is a pull."""
    m_c, m_0, kappa = 0.4, 0.3, 41.0
    law = Mixture([[0.5], [m_c], [m_0]], [[[S**2]]] * 3, labels=[0, 1, 2])
    teacher = ExactTeacher(law, VarianceExploding(), classes=CLASSES)
    batch = data(256) | {"label": torch.ones(256, dtype=torch.long)}
    for shift, sign in ((0.0, 0), (0.1, 1), (-0.1, -1)):
        model, line = on_a_line(m_0 + kappa * (m_c - m_0) + shift, S, teacher=teacher, tangent="jvp", kappa=kappa)
        found = line.gradient(model.student_loss(batch))[0]
        assert (0 if abs(found) < 1e-6 else math.copysign(1, found)) == sign


def test_the_released_noise_is_shared_and_ours_is_not():
    for settings, expected in (({}, {"eps", "vd eps", "vd start"}), ({"share_vd_noise": True}, {"eps", "vd start"})):
        model, drawn = MDTDist(neural(), **settings), []
        randn = model.randn
        model.randn = lambda shape, purpose, randn=randn, drawn=drawn: drawn.append(purpose) or randn(shape, purpose)
        model.student_loss(BATCH)
        assert set(drawn) == expected and len(drawn) == len(expected)


def test_the_released_norm_leaves_the_exact_student_no_rest():
    """Its fixed point is elsewhere: on, the exact student is pulled; off, it is not."""
    for normalise, pulled in ((False, False), (True, True)):
        model, line = on_a_line(M, S, tangent="jvp", lambda_vd=0.0, normalise_tangent=normalise)
        assert (max(map(abs, line.gradient(model.student_loss(data())))) > 1e-3) == pulled


def test_without_weight_a_loss_is_not_computed():
    alone = MDTDist(neural(), lambda_vd=0.0)
    both, half = MDTDist(neural()), MDTDist(neural(), lambda_vd=0.5)
    for model in (both, half):
        model.seed = alone.seed
    vm, one, part = (model.student_loss(BATCH) for model in (alone, both, half))
    torch.testing.assert_close(part, (vm + one) / 2)
    assert one > vm


def test_the_weight_of_matching_counts():
    alone, half = (MDTDist(neural(), lambda_vm=weight, lambda_vd=0.0) for weight in (1.0, 0.5))
    half.seed = alone.seed
    torch.testing.assert_close(half.student_loss(BATCH), alone.student_loss(BATCH) / 2)


@pytest.mark.parametrize("step", [0, 2, 3, 4])
def test_distillation_counts_from_its_start_on(step):
    """The loss is VM to the bit before that step and the sum from then on, also when resumed."""
    start, losses = 3, []
    for settings in ({"lambda_vd": 0.5, "vd_start": start}, {"lambda_vd": 0.0}, {"lambda_vd": 0.5}):
        torch.manual_seed(0)
        model = MDTDist(neural(), **settings)
        model._trainer = SimpleNamespace(global_step=step, global_rank=0, world_size=1, accumulate_grad_batches=1)
        model.log = lambda *args: None
        losses.append(model.student_loss(BATCH))
    late, alone, both = losses
    assert alone != both and torch.equal(late, both if step >= start else alone)


@pytest.mark.parametrize("domain", ["toy", "image", "threed", "video", "protein"])
def test_recipes_do_what_the_readme_says(domain):
    """Velocity distillation was measured to help digits only, in the second half of the run."""
    composed = config.compose([f"domain={domain}", "method=mdt_dist"])[0]
    model = composed["model"]
    if domain == "image":
        assert 0 < model["lambda_vd"] < 1 and 2 * model["vd_start"] == composed["trainer"]["max_steps"]
    else:
        assert model["lambda_vd"] == 0


# Refusals


def test_a_start_before_the_first_step_is_refused():
    with pytest.raises(ValueError, match="vd_start must be at least 0, got -1"):
        MDTDist(neural(), vd_start=-1)


@pytest.mark.parametrize("delta", [0.0, -0.1, 1.0])
def test_a_hop_that_does_not_fit_is_refused(delta):
    with pytest.raises(ValueError, match=f"delta must lie between 0 and .*, got {delta}"):
        MDTDist(neural(), delta=delta)


def test_real_data_are_required():
    with pytest.raises(ValueError, match="MDTDist needs data, which Teacher and SimpleNamespace do not give"):
        MDTDist(neural()).require(SimpleNamespace(provides=frozenset()))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_weights_are_refused(precision):
    model = MDTDist(neural())
    model._trainer = SimpleNamespace(precision=precision)
    with pytest.raises(ValueError, match=f"for which {precision} is too coarse: use 32-true or bf16-mixed"):
        model.setup("fit")
