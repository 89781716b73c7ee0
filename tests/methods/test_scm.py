"""sCM's own parts: states at data and on trajectories, tangents, guidance, the adversarial part."""

import math
import re

import pytest
import torch
from helpers import BATCH, CLASSES, PROCESSES, Line, Pairs, at, f64, gaussian, neural, trainer
from torch import nn

from distillkit.data import TensorData
from distillkit.diffusion import trig
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding, expand
from distillkit.diffusion.times import LogNormal, Uniform
from distillkit.errors import Failure
from distillkit.losses.tangent import normalised, residual
from distillkit.methods.adversarial import Discriminator
from distillkit.methods.flow_map import FlowMap
from distillkit.methods.rcm import RCM
from distillkit.methods.scm import SCM
from distillkit.methods.twinflow import TwinFlow
from distillkit.networks.mlp import MLP
from distillkit.students.makers import Fresh
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactTeacher, Mixture

M, S = 0.3, 0.5
PLAIN = {"log_variance": False, "prior": "none", "tangent_warmup": 0, "normaliser": None}
STATES = [{"states": "data"}, {"states": "trajectory"}]


class Jump(nn.Module):
    """The exact student of N(mu, s^2) as a denoiser: `f = mu + (s / b) (x_t - alpha mu)`.

    Told kappa, it is that of N(mu + (kappa - 1) shift, s^2).
    """

    def __init__(self, line: Line, process, shift: float = 0.0):
        super().__init__()
        self.line, self.process, self.shift = line, process, shift

    def forward(self, x_t, t, cond):
        alpha, sigma = (expand(scale(torch.as_tensor(t)), x_t) for scale in (self.process.alpha, self.process.sigma))
        mu, s = self.line.mu, self.line.s
        if self.shift:
            mu = mu + self.shift * (cond["kappa"][:, None] - 1)
        return mu + s * (alpha**2 * s**2 + sigma**2).rsqrt() * (x_t - alpha * mu)


def on_a_line(mu, s, process=None, teacher=None, shift=0.0, **kwargs):
    """Teacher N(M, S^2), student exact for N(mu, s^2), two weights."""
    process = process or VarianceExploding()
    teacher = teacher or gaussian(M, S, process)
    model = SCM(teacher, student_maker=Fresh(MLP([1], width=8, depth=1)), **(PLAIN | kwargs))
    line = Line(mu, s)
    model.student = Jump(line, process, shift)
    randn, rand = model.randn, model.rand
    model.randn = lambda shape, purpose: randn(shape, purpose).double()
    model.rand = lambda num, purpose: rand(num, purpose).double()
    return model, line


def data(num=512):
    return {"data": M + S * torch.randn(num, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.student.parameters()))])


# The whole loss


@pytest.mark.parametrize("settings", STATES, ids=["data", "trajectory"])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_nothing_pulls_at_the_exact_student(process, settings):
    model, line = on_a_line(M, S, process, **settings)
    loss = model.student_loss(data())
    assert loss.item() < 1e-18 and max(map(abs, line.gradient(loss))) < 1e-10


@pytest.mark.parametrize("settings", STATES, ids=["data", "trajectory"])
@pytest.mark.parametrize("process", [VarianceExploding(), RectifiedFlow()], ids=["ve", "flow"])
def test_the_loss_pulls_back_from_either_side(process, settings):
    """A shift and a scale that vanish at the datum: others are constant along the ODE."""
    for sign in (1.0, -1.0):
        for number in (0, 1):
            wrong = (M + 0.3 * sign, S) if number == 0 else (M, S * 1.3**sign)
            model, line = on_a_line(*wrong, process, **settings)
            assert sign * line.gradient(model.student_loss(data(2048)))[number] > 0


@pytest.mark.parametrize("normaliser", ["rms", "norm", None])
def test_only_the_bare_field_is_differentiated(normaliser):
    """The gradient is `-2 w e^-a g dF/dtheta` over the elements; the log-variance has its own."""
    model = at(SCM(neural(), tangent_warmup=0, normaliser=normaliser, sigma_data=0.5), step=5)
    nn.init.normal_(model.log_variance.out.weight, std=0.1)
    model.focus("student")
    loss = model.student_loss(BATCH)
    found = gradient(loss, model)
    (own,) = torch.autograd.grad(model.student_loss(BATCH), model.log_variance.out.bias, allow_unused=True)
    assert own is not None and own.abs() > 0
    with torch.no_grad():
        x, tau, dx, cond = model.at_data(BATCH)
        F_sg, rate = model.rate(x, tau, dx, cond)
        g = normalised(residual(F_sg, rate, x, tau, dx, model.sd), normaliser)
        w = (-model.log_variance(tau)).exp() / (model.sd * tau.tan())
    F = trig.trig_field(lambda x_t, t: model.student(x_t, t, cond), model.teacher.process, model.sd)(x, tau)
    expected = gradient((-2 * w[:, None] * g * F).sum() / g.numel(), model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tangent, calls", [("jvp", 2), ("quotient", 3)])
def test_the_calls_of_the_student(tangent, calls):
    model, seen = SCM(neural(), tangent=tangent), []
    model.student.register_forward_pre_hook(lambda m, args: seen.append(torch.is_grad_enabled()))
    model.student_loss(BATCH)
    assert len(seen) == calls and sum(seen) == 1


def test_the_tangent_warms_up_over_the_students_steps():
    model = SCM(neural(), tangent_warmup=4)
    assert [at(model, step).warmth for step in (0, 1, 3, 4, 9)] == [0, 0.25, 0.75, 1, 1]
    model = SCM(neural(), tangent_warmup=4, gan=0.5)  # every second step is the student's
    assert [at(model, step).warmth for step in (0, 2, 8, 10)] == [0, 0.25, 1, 1]
    assert SCM(neural(), tangent_warmup=0).warmth == 1


def test_a_copy_of_the_teacher_rests_until_the_tangent_comes():
    model = at(SCM(neural(), tangent_warmup=10, log_variance=False, fastest=None), step=0)
    assert model.student_loss(BATCH) < 1e-10 < 1e-4 < at(model, step=5).student_loss(BATCH)


@pytest.mark.parametrize("tangent", ["jvp", "quotient"])
def test_the_tangent_is_in_float32_at_any_precision(tangent):
    model = SCM(neural(), tangent=tangent)
    with torch.no_grad():
        x, tau, dx, cond = model.at_data(BATCH)
        exact = model.rate(x, tau, dx, cond)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model.rate(x, tau, dx, cond)
            again = model.at_data(BATCH)
    for one, other in zip((x, tau, dx, *exact), (*again[:3], *mixed), strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


# Levels and states


def test_levels_are_those_of_scm_for_data_of_any_scale():
    """LogNormal(-1, 1.4) for a std of 0.5: the angles are the same for data of another."""
    for sd in (0.5, 2.0):
        model = SCM(neural(), sigma_data=sd)
        tau = model.levels(20_000)
        assert tau.tan().log().median().item() == pytest.approx(-1 + math.log(2), abs=0.04)
        assert model.low - 1e-6 <= tau.min() and tau.max() <= model.high + 1e-6


def test_no_level_is_above_the_students_first():
    model = SCM(neural(), t_init=2.0, tangent_times=LogNormal(0.0, 3.0))
    tau = model.levels(2000)
    assert tau.max().item() == pytest.approx(math.atan(2.0), abs=1e-5) and (tau > 1.1).sum() > 300


def test_data_are_noised_to_the_level():
    model, _ = on_a_line(M, S, tangent_times=Uniform(0.01, 0.011), sigma_data=0.8)
    x, tau, dx, _ = model.at_data({"data": torch.zeros(50_000, 1, dtype=torch.float64)})
    assert (x / tau.sin()[:, None]).std().item() == pytest.approx(0.8, rel=0.01)
    v = model.velocity(x, tau, {})
    assert torch.equal(v, dx)


@pytest.mark.parametrize("process", [VarianceExploding(), RectifiedFlow(), PROCESSES["latent"]])
@pytest.mark.parametrize("chain", [2, 16])
def test_the_chain_is_as_narrow_as_its_hops_are_long(process, chain):
    """Its std over the law's is `prod cos(theta - theta')`, theta = atan(sigma / (alpha S))."""
    model, _ = on_a_line(M, S, process, states="trajectory", chain=chain)
    z = f64(1.0, -1.0)[:, None]
    model.randn = lambda shape, purpose: z
    x, tau, _, _ = model.on_trajectories({"data": z})
    x, tau = x.reshape(chain - 1, 2), tau.reshape(chain - 1, 2)
    start = model.step_times[0]
    theta = torch.cat(
        [torch.atan2(process.sigma(start), process.alpha(start) * S).expand(1, 2), (tau.tan() * model.sd / S).atan()]
    )
    spread = process.sigma(start) / (process.alpha(start) ** 2 * S**2 + process.sigma(start) ** 2).sqrt()
    expected = spread * (theta[:-1] - theta[1:]).cos().cumprod(0)
    b = ((tau.cos() * S) ** 2 + (model.sd * tau.sin()) ** 2).sqrt()
    # the mean of the marginal is cos(tau) M, but for what the start lacks of it
    lacking = -process.alpha(start) * M / (process.alpha(start) ** 2 * S**2 + process.sigma(start) ** 2).sqrt()
    mean = tau.cos() * M + b * (expected / spread) * lacking
    torch.testing.assert_close(x, mean + b * expected * f64(1.0, -1.0), rtol=1e-3, atol=1e-4)
    assert chain == 2 or (expected[-1] < 0.99).all()


def test_states_are_one_in_each_cell_and_not_the_first():
    model = SCM(neural(), states="trajectory", chain=5)
    edges = trig.angle(model.teacher.process, model.teacher.process.grid(5), model.sd)
    x, tau, dx, cond = model.on_trajectories({"label": torch.arange(300) % 2})
    assert x.shape == (1200, 2) and dx.shape == x.shape and cond["label"].tolist() == [0, 1] * 600
    tau = tau.reshape(4, 300).double()
    assert ((edges[1:, None] - 1e-6 <= tau) & (tau <= edges[:-1, None] + 1e-6)).all()
    share = (tau - edges[1:, None]) / -edges.diff()[:, None]
    torch.testing.assert_close(share.mean(1), torch.full((4,), 0.5, dtype=torch.float64), rtol=0, atol=0.06)
    assert share[0].max() > 0.98  # arbitrarily near to the first state, pure noise
    torch.testing.assert_close(dx, model.velocity(x, tau.flatten().float(), cond), rtol=1e-4, atol=1e-4)


class Dataless(dict):
    """A batch whose samples must not be looked at."""

    def __getitem__(self, key):
        assert key != "data", "the method read data"
        return super().__getitem__(key)


def test_trajectories_need_no_data():
    model = SCM(neural(), states="trajectory", chain=3)
    assert "data" not in model.requires and "data" in SCM(neural()).requires
    assert torch.equal(model.student_loss({"label": BATCH["label"]}), model.student_loss(Dataless(BATCH)))
    with pytest.raises(AssertionError, match="read data"):
        SCM(neural()).student_loss(Dataless(BATCH))


@pytest.mark.parametrize(
    "arguments, needed",
    [
        ({}, {"denoiser", "data"}),
        ({"states": "trajectory"}, {"denoiser"}),
        ({"states": "trajectory", "gan": 0.5}, {"denoiser", "data", "features"}),
        ({"gan": 0.5, "kappa": [4.0, 5.0]}, {"denoiser", "data", "features", "classes"}),
    ],
)
def test_needs(arguments, needed):
    assert SCM.needs(arguments) == needed == SCM(neural(), **arguments).requires


# Guidance


def labelled(m_c, m_0):
    law = Mixture([[0.5], [m_c], [m_0]], [[[S**2]]] * 3, labels=[0, 1, 2])
    return ExactTeacher(law, VarianceExploding(), classes=CLASSES)


@pytest.mark.parametrize("settings", STATES, ids=["data", "trajectory"])
def test_one_student_answers_every_kappa_it_is_told(settings):
    """Equal widths: m_kappa = m_0 + kappa (m_c - m_0), a line with the slope m_c - m_0."""
    m_c, m_0 = 0.4, 0.3
    batch = data(64) | {"label": torch.ones(64, dtype=torch.long)}
    for shift, mu, rests in ((m_c - m_0, m_c, True), (m_c - m_0, m_c + 0.1, False), (0.09, m_c, False)):
        model, line = on_a_line(mu, S, teacher=labelled(m_c, m_0), shift=shift, kappa=[4.0, 5.0], **settings)
        assert (model.student_loss(batch) < 1e-16) == rests


def test_the_student_is_told_a_kappa_of_the_range():
    model = SCM(neural(), kappa=[4.0, 5.0])
    assert model.student.told == {"kappa": {"range": [4.0, 5.0]}}
    *_, cond = model.at_data({"data": torch.zeros(4000, 2), "label": torch.zeros(4000, dtype=torch.long)})
    assert 4 <= cond["kappa"].min() < 4.01 and 4.99 < cond["kappa"].max() <= 5
    model.student_loss(BATCH)


# The adversarial part


def test_hinge_losses_in_closed_form(monkeypatch):
    """Logits l(x) = 0.3 x: the student's gradient on its mean is -0.3 gan of what it moves."""
    model, line = on_a_line(M, S)
    model.gan, model.heads, model.largest = 0.5, nn.Identity(), 1.0
    monkeypatch.setattr(model, "consistency", lambda batch: torch.zeros(()))
    monkeypatch.setattr(Discriminator, "logits", lambda self, heads, tapped, x_t, t, cond: 0.3 * x_t)
    in_mu, _ = line.gradient(model.student_loss(data()))
    t = float(model.step_times[0])  # the sample moves by 1 - s / b with mu, and its noised one as well
    assert in_mu == pytest.approx(-0.5 * 0.3 * (1 - S / math.sqrt(S**2 + t**2)), rel=1e-6)
    batch = data(64)
    x_g, cond = model.samples(batch, "heads")
    fake, real = model.logits(x_g, cond, "heads gan"), model.logits(batch["data"], cond, "heads gan", "real")
    expected = torch.relu(1 + fake).mean() + torch.relu(1 - real).mean()
    torch.testing.assert_close(model.heads_loss(batch), expected)


def test_fake_and_real_share_their_levels_and_not_their_noise():
    model = SCM(neural(), gan=0.5)
    x = torch.zeros(8, 2)
    (fake, t), (real, s) = model.diffused(x, "heads gan"), model.diffused(x, "heads gan", "real")
    assert torch.equal(t, s) and not torch.isclose(fake, real).any()


@pytest.mark.parametrize("largest", [0.0, 0.3, 1.0])
def test_a_share_of_samples_starts_from_noise(largest):
    model, seen = SCM(neural(), gan=0.5, largest=largest, tangent_times=LogNormal(-1.0, 0.1)), []
    model.student.register_forward_pre_hook(lambda m, args: seen.append(args[:2]))
    model.samples({"data": torch.full((2000, 2), 500.0), "label": torch.zeros(2000, dtype=torch.long)}, "x")
    x_t, t = seen[0]
    first = t == float(model.step_times[0])
    assert first.float().mean().item() == pytest.approx(largest, abs=0.04)
    assert not first.any() or x_t[first].mean().abs() < 10
    assert first.all() or (x_t[~first].mean() - 500).abs() < 10


def test_every_role_trains_its_own():
    model = SCM(neural(), gan=0.5)
    assert {role: names for role, names in model.roles.items()} == {
        "student": ("student", "log_variance"),
        "heads": ("heads",),
    }
    for role, prefixes in (("student", ("student.", "log_variance.")), ("heads", ("heads.",))):
        model.zero_grad(set_to_none=True)
        model.focus(role)
        getattr(model, f"{role}_loss")(BATCH).backward()
        got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert got and all(name.startswith(prefixes) for name in got)


def test_the_adversarial_part_reaches_the_student():
    losses = {}
    for gan in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        model = SCM(neural(), gan=gan)
        if gan:
            torch.manual_seed(1)
            for parameter in model.heads.parameters():
                nn.init.normal_(parameter, std=0.3)
        model.focus("student")
        model.seed = 0
        losses[gan] = gradient(model.student_loss(BATCH), model)
    torch.testing.assert_close(2 * (losses[0.5] - losses[0.0]), losses[1.0] - losses[0.0], rtol=1e-3, atol=1e-5)
    assert (losses[1.0] - losses[0.0]).abs().max() > 1e-3


def test_heads_need_a_teacher_to_look_at():
    with pytest.raises(ValueError, match="set model.discriminator.taps=teacher"):
        SCM(neural(), gan=0.5, discriminator=Discriminator())


def test_heads_on_an_exact_teacher_look_at_its_students_start():
    """It has no network; the one that its students begin with is frozen."""
    model = SCM(gaussian(M, S), gan=0.5)
    before = [p.clone() for p in model.trunk.parameters()]
    trainer(4).fit(model, Line1(batch_size=8))
    assert all(map(torch.equal, before, model.trunk.parameters())) and not model.bad_steps.any()
    assert "trunk" not in SCM(neural(), gan=0.5)._modules


class Line1(Pairs):
    """Points on a line, without classes."""

    event_shape, classes = (1,), {}

    def load(self):
        made = TensorData({"data": torch.randn(48, 1, generator=torch.Generator().manual_seed(0))})
        return made, made, made


# Refusals


class Rootless(MLP):
    """A network with an operator that has no derivative in forward mode."""

    def forward(self, x, time, cond):
        return Backward.apply(super().forward(x, time, cond))


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_a_network_without_forward_mode_is_refused_and_has_the_quotient():
    teacher = Teacher(Denoiser(Rootless([2], width=8, depth=1, classes=CLASSES), VarianceExploding()), (2,), CLASSES)
    with pytest.raises(
        ValueError, match="Rootless has an operator without a derivative in forward mode .*: set model.tangent=quotient"
    ):
        trainer(1).fit(SCM(teacher), Pairs(batch_size=8))
    trainer(1).fit(SCM(teacher, tangent="quotient"), Pairs(batch_size=8))


def test_coarse_precision_is_refused_and_mixed_works():
    with pytest.raises(
        ValueError, match="SCM differentiates the student in its input, for which bf16-true is too coarse"
    ):
        trainer(1, precision="bf16-true").fit(SCM(neural()), Pairs(batch_size=8))
    model = SCM(neural())
    trainer(2, precision="bf16-mixed").fit(model, Pairs(batch_size=8))
    assert not model.bad_steps.any()


def test_a_run_that_ran_away_is_stopped_and_says_so():
    model = SCM(neural(), tangent_warmup=0, max_residual=1e-6, max_bad_steps=3)
    with pytest.raises(Failure, match="ran away: the residual of the last [3-9] steps.*; lower model.student.lr"):
        trainer(10, log_every_n_steps=4).fit(model, Pairs(batch_size=8))
    model = SCM(neural(), tangent_warmup=0, max_bad_steps=3)
    trainer(6, log_every_n_steps=2).fit(model, Pairs(batch_size=8))
    assert model.runaway == 0


def test_only_what_is_not_set_is_recommended_to_a_run_that_ran_away():
    for settings, names in (
        ({}, ["student.lr", "tangent_warmup", "tangent=quotient"]),
        ({"normaliser": None}, ["student.lr", "tangent_warmup", "normaliser=rms", "tangent=quotient"]),
        ({"normaliser": "norm", "tangent": "quotient"}, ["student.lr", "tangent_warmup", "normaliser=rms"]),
        ({"tangent": "quotient"}, ["student.lr", "tangent_warmup"]),
    ):
        ways = re.split(", | or ", SCM(neural(), **settings).way_back)
        assert [re.search(r"model\.(\S+)", way)[1] for way in ways] == names


def test_the_count_of_runaway_steps_starts_anew():
    model = SCM(neural(), max_residual=2.0)
    counts = []
    for size in (3.0, 3.0, 1.0, 3.0):
        model.watch(torch.tensor(size * model.sd))
        counts.append(model.runaway.item())
    assert counts == [1, 2, 0, 1]


@pytest.mark.parametrize(
    "wrong",
    [{"states": "noise"}, {"tangent": "fd"}, {"normaliser": "l1"}, {"prior": "cos"}, {"chain": 1}, {"delta": 0.0}],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SCM(neural(), **wrong)


@pytest.mark.parametrize("kind", [SCM, RCM, FlowMap, TwinFlow])
def test_the_student_sees_the_level_in_slow_waves(kind):
    """It is averaged and finished as such; the teacher keeps its own waves."""
    model = kind(neural())
    assert model.student.fastest == model.product().denoiser.fastest == 4.0
    assert model.teacher.denoiser.fastest is None and kind(neural(), fastest=None).student.fastest is None


def test_a_checkpoint_of_other_waves_is_refused():
    teacher, saved = neural(), {"global_step": 3}
    SCM(teacher, fastest=None).on_save_checkpoint(saved)
    SCM(teacher, fastest=None).on_load_checkpoint(saved)
    with pytest.raises(ValueError, match=r"fastest=null, here it is 4\.0: say model\.fastest=null"):
        SCM(teacher).on_load_checkpoint(saved)
    del saved["distillkit"]["fastest"]  # of before it was kept
    SCM(teacher).on_load_checkpoint(saved)
