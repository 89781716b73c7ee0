"""Score distillation: calls, trained parts, closed-form gradients; the claims of SiD and DMD."""

import math
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    BATCH,
    CLASSES,
    Line,
    Pairs,
    Tail,
    at,
    f64,
    fit,
    gaussian,
    neural,
    same,
    sigma_points,
    trainer,
    wake,
)
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

import distillkit.methods.dmd as dmd_module
import distillkit.methods.sid as sid_module
from distillkit.cli import front
from distillkit.data import TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding, VariancePreserving
from distillkit.diffusion.times import Times
from distillkit.losses.denoising import denoising_loss
from distillkit.methods.base import Adam
from distillkit.methods.distillation_dpo import DistillationDPO
from distillkit.methods.dmd import DMD
from distillkit.methods.rcm import RCM
from distillkit.methods.score import ScoreDistiller
from distillkit.methods.scorelidar import ScoreLiDAR
from distillkit.methods.sid import SiD
from distillkit.networks.mlp import MLP
from distillkit.networks.unet import UNet
from distillkit.students.makers import Fresh
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactTeacher, Mixture

METHODS = {
    "dmd": lambda **k: DMD(neural(), **k),
    "dmd guided": lambda **k: DMD(neural(), kappa=2.0, **k),
    "dmd gan": lambda **k: DMD(neural(), gan=0.1, **k),
    "sid": lambda **k: SiD(neural(), **k),
    "sid guided": lambda **k: SiD(neural(), kappa=2.0, **k),
    "sida": lambda **k: SiD(neural(), gan=0.5, **k),
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


def test_these_are_all_methods_of_this_kind():
    kinds = {kind for kind in subclasses(ScoreDistiller) if kind.__module__.startswith("distillkit.methods")}
    others = {DistillationDPO, ScoreLiDAR, RCM}  # tests of their own: they need more of the data, or of the student
    assert kinds - others == {type(make()) for make in METHODS.values()}


def subclasses(kind):
    own = kind.__subclasses__()
    return set(own).union(*map(subclasses, own))


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_the_fake_score_is_fitted_to_the_students_samples(name, num_steps, monkeypatch):
    """Its loss ignores the data, unless there is a discriminator."""
    model, fitted = METHODS[name](num_steps=num_steps), []
    wake(model.student, 1), wake(model.fake_score, 2)
    for module in (dmd_module, sid_module):
        original = module.denoising_loss
        monkeypatch.setattr(module, "denoising_loss", lambda *a, o=original: fitted.append(a) or o(*a))
    others = BATCH | {"data": BATCH["data"] + 3}
    losses = [model.fake_score_loss(batch).item() for batch in (BATCH, others)]
    x_g, cond = model.rollout(BATCH, "fake")
    t = model.fake_times(model.rand(8, "fake t"), model.teacher.process)
    for denoiser, x_0, times, eps, _, *_ in fitted:
        assert denoiser is model.fake_score and torch.equal(x_0, x_g) and not x_0.requires_grad
        assert torch.equal(times, t) and torch.equal(eps, model.randn((8, 2), "fake eps"))
    assert (losses[0] == losses[1]) == (not model.gan)
    if name in ("dmd", "dmd guided", "sid"):  # told everything, and without guidance of its own
        assert losses[0] == denoising_loss(model.fake_score, x_g, t, model.randn((8, 2), "fake eps"), cond).item()


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
    """A method in closed form: exact teacher, affine student, its best response, four points."""
    process = process or VarianceExploding()
    model = kind(
        teacher or gaussian(m, S, process),
        student_maker=Fresh(MLP([1], width=8, depth=1)),
        student_times=Level(ratio),
        **kwargs,
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
    """The whole student step; with detached scores the mean's gradient would be twice as large."""
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


@pytest.mark.parametrize(
    "process", [VarianceExploding(), VariancePreserving(), RectifiedFlow()], ids=["ve", "vp", "flow"]
)
def test_swiftbrushs_weight_is_sigma_alpha_once(process):
    """(mu - m) r^2 / (S^2 + r^2) times the variance-preserving sigma alpha of ratio r."""
    m, S, r = 0.4, 0.8, 0.9
    model, line = on_a_line(DMD, 1.1, S, process, weight="sigma_alpha")
    preserving = VariancePreserving()
    t = preserving.from_ratio(f64(r))
    weight = (preserving.sigma(t) * preserving.alpha(t)).item()
    expected = (1.1 - m) * r**2 / (S**2 + r**2) * weight
    assert line.gradient(model.student_loss({"data": torch.zeros(4, 1)}))[0] == pytest.approx(expected, rel=1e-6)
    assert abs(weight - 1) > 0.05


def labelled(m_c, m_0, S=0.5):
    """One class at m_c, the null class at m_0, equal widths: guided means are closed forms."""
    law = Mixture([[0.5], [m_c], [m_0]], [[[S**2]]] * 3, labels=[0, 1, 2])
    return ExactTeacher(law, VarianceExploding(), classes=CLASSES)


@pytest.mark.parametrize("kappa", [0.0, 3.0])
@pytest.mark.parametrize("guide_fake", [False, True])
@pytest.mark.parametrize("mu, mu_0", [(1.0, -0.2), (-0.2 + 3 * 1.2, -0.2), (0.7, 0.1)])
def test_where_guided_dmd_rests_depends_on_whose_fake_score_is_guided(kappa, guide_fake, mu, mu_0):
    """g = (1 - a) {(mu_0 - m_0) + kappa [(mu - mu_0) - (m_c - m_0)]} if both are guided.

    With the teacher alone guided it is (1 - a) (mu - m_kappa), m_kappa = m_0 + kappa (m_c - m_0).
    So the unguided optimum (mu = m_c, mu_0 = m_0) rests if both are guided, and moves on to m_kappa
    if the teacher alone is.
    """
    m_c, m_0, S, r = 1.0, -0.2, 0.5, 0.9
    model, line = on_a_line(DMD, mu, S, teacher=labelled(m_c, m_0), kappa=kappa, guide_fake=guide_fake)
    model.fake_score = labelled(mu, mu_0).denoiser
    found = line.gradient(model.student_loss({"data": torch.zeros(4, 1), "label": torch.ones(4, dtype=torch.long)}))[0]
    both = (mu_0 - m_0) + kappa * ((mu - mu_0) - (m_c - m_0))
    alone = mu - (m_0 + kappa * (m_c - m_0))
    assert found == pytest.approx((both if guide_fake else alone) * r**2 / (S**2 + r**2), rel=1e-6, abs=1e-9)
    assert (abs(both) < 1e-9) == (mu == m_c and mu_0 == m_0) or kappa == 0


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"kappa": 2.0}, 0),
        ({"guide_fake": True}, 0),
        ({"kappa": 2.0, "guide_fake": True}, 0.1),
        ({"kappa": [0.5, 1.5], "guide_fake": True}, 0.1),
    ],
)
def test_a_fake_score_that_judges_with_guidance_learns_its_unconditional_branch(settings, expected, monkeypatch):
    model, told = DMD(neural(), **settings), []
    original = dmd_module.denoising_loss
    monkeypatch.setattr(dmd_module, "denoising_loss", lambda *a: told.append(a[4]["label"]) or original(*a))
    with torch.no_grad():
        model.fake_score_loss({"data": torch.zeros(4000, 2), "label": torch.ones(4000, dtype=torch.long)})
    share = (told[0] == 2).double().mean().item()
    assert share == pytest.approx(expected, abs=5 * math.sqrt(0.09 / 4000) if expected else 0)


def test_a_range_around_one_is_guidance_too():
    """Its middle is 1, which alone would be none."""
    assert "classes" in DMD(neural(), kappa=[0.5, 1.5]).requires
    with pytest.raises(ValueError, match="kappa=0.5 has nothing to guide"):
        DMD(gaussian(0.4, 0.8), kappa=[0.5, 1.5])


@pytest.mark.parametrize("kappa", [1.0, 3.0])
def test_guided_dmd_rests_at_the_guided_mean(kappa):
    """With the teacher alone guided, m_0 + kappa (m_c - m_0) is the only fixed point."""
    m_c, m_0, S = 1.0, -0.2, 0.5
    teacher = labelled(m_c, m_0, S)
    batch = {"data": torch.zeros(4, 1), "label": torch.ones(4, dtype=torch.long)}
    for shift, sign in ((0.0, 0), (0.3, 1), (-0.3, -1)):
        model, line = on_a_line(DMD, m_0 + kappa * (m_c - m_0) + shift, S, teacher=teacher, kappa=kappa)
        found = line.gradient(model.student_loss(batch))[0]
        assert (0 if abs(found) < 1e-6 else math.copysign(1, found)) == sign


def test_sidas_adversarial_part_is_divided_by_what_its_other_part_is():
    """Without a normaliser the adversarial part is `gan` times the mean of softplus(-logits)."""
    plain, sida = pair(lambda **k: SiD(neural(), normalise=None, **k), gan=0.5, gan_clamp=None)
    added = sida.student_loss(BATCH) - plain.student_loss(BATCH)
    x_g, cond = sida.rollout(BATCH, "student")
    logits = sida.logits(*sida.diffuse(x_g, sida.student_times, "student"), cond)
    torch.testing.assert_close(added, 0.5 * nn.functional.softplus(-logits).mean(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", [SiD, DMD])
@pytest.mark.parametrize("over", ["sample", "batch"])
def test_the_loss_is_divided_by_the_distance_to_the_teacher(kind, over):
    """The loss is divided by each sample's distance n, or by the mean of all n."""
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
    """No signal and std sigma(t_init), not 1: SiD's 2.5 on EDM, sigma_625 on Stable Diffusion."""
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


@pytest.mark.parametrize("kind", [SiD, DMD])
def test_training_takes_the_steps_that_the_finished_student_takes(kind):
    """Equal times, start and noise of every step; any noise between steps."""
    made = []
    for renoise in ("fresh", "implied", "first"):
        model = kind(neural(), num_steps=3, matched="last", renoise=renoise, ema_halflife=0)
        model.seed = 7
        wake(model.student, 1)
        draw = lambda i, model=model: model.randn((8, 2), f"student noise {i}")  # noqa: E731
        made.append(model.rollout(BATCH, "student")[0])
        torch.testing.assert_close(model.product()(draw(0), model.condition(BATCH), draw), made[-1].detach())
    assert all(not torch.allclose(a, b, atol=1e-2) for a, b in combinations(made, 2))


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


@pytest.mark.parametrize("kind", [SiD, DMD])
def test_the_fake_score_and_nobody_else_knows_the_step(kind):
    """Without the step it would follow the mixture of all steps, whose errors may cancel."""
    model = kind(neural(), num_steps=3)
    tables = {name for name in model.fake_score.network.state_dict() if "step" in name}
    assert tables == {"embed.told.step.weight"}
    assert not any("step" in name for name in {**model.student.state_dict(), **model.teacher.state_dict()})
    told = []
    model.fake_score.register_forward_pre_hook(lambda module, args: told.append(args[2]["step"].tolist()))
    for step in range(12):
        at(model, step=step)
        getattr(model, f"{model.turn(step)}_loss")(BATCH)
        assert told.pop() == [model.step] * 8
    wake(model.fake_score.network.embed.told["step"])
    x, t = BATCH["data"], torch.ones(8)
    cond = [{"label": BATCH["label"], "step": torch.full((8,), k)} for k in range(3)]
    assert not torch.equal(model.fake_score(x, t, cond[0]), model.fake_score(x, t, cond[1]))


def test_one_step_and_the_last_alone_need_no_telling():
    for settings in ({}, {"num_steps": 3, "matched": "last"}):
        model = SiD(neural(), **settings)
        assert not model.fake_score.told and "step" not in model.rollout(BATCH, "student")[1]


def test_a_fake_score_that_cannot_be_told_the_step_is_refused():
    plain = Teacher(Denoiser(nn.Linear(2, 2), VarianceExploding(), "edm", 1.0), (2,))
    with pytest.raises(
        ValueError, match="Linear cannot be told which of the 2 steps it judges: set model.matched=last"
    ):
        SiD(plain, num_steps=2)


class Judge(nn.Module):
    """For each step of the student a fake score that has learnt it exactly."""

    def __init__(self, teachers):
        super().__init__()
        self.each = [teacher.denoiser for teacher in teachers]

    def forward(self, x, t, cond):
        return self.each[int(cond["step"][0])](x, t, cond)


def test_steps_whose_errors_cancel_in_the_mixture_are_pulled_back():
    """Steps at m + 0.3 and m - 0.3 have the teacher's mean together, yet each is pushed to m."""
    m, S = 0.4, 0.8
    for step, sign in ((0, 1), (1, -1)):
        model, line = on_a_line(DMD, m + 0.3 * sign, S, m=m, S=S, num_steps=2)
        model.fake_score = Judge([gaussian(m + 0.3, S), gaussian(m - 0.3, S)])
        model.randint = lambda high, purpose, step=step: min(step, high - 1)
        z, eps = sigma_points()
        model.student = Started(line, z)
        model.randn = lambda shape, purpose, z=z, eps=eps: eps if "eps" in purpose else z
        assert line.gradient(model.student_loss({"data": torch.zeros(4, 1)}))[0] * sign > 0.05


class Started(nn.Module):
    """A student whose every step starts from z."""

    def __init__(self, line, z):
        super().__init__()
        self.line, self.z = line, z

    def forward(self, x, t, cond):
        return self.line(self.z)


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
    assert [(call[0], call[5]) for call in calls] == [(model.teacher.denoiser, 2.5), (model.fake_score, 1)]


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


def picture_teacher() -> Teacher:
    """A small U-Net of 8 by 8 pictures in three channels; its middle is a map of 4 by 4."""
    network = wake(UNet([3, 8, 8], channels=8, multipliers=[1, 1], blocks=1, attention=False))
    return Teacher(Denoiser(network, VarianceExploding(), "edm", 0.5), (3, 8, 8))


def pair(make, **settings):
    """The method without and with `settings`, of the same weights and noise."""
    made = make(), make(**settings)
    for model in made:
        wake(model.student, 1), wake(model.fake_score, 2)
        model.seed = 7
    return made


def gradients(loss, module):
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()), allow_unused=True) if g is not None]
    )


def test_sida_adds_the_published_share_of_its_adversarial_part():
    """The released loss, in sums over pixels, with `lsg_gan` doubled and `lsd` tripled, is ours."""
    batch = {"data": torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(5))}
    plain, sida = pair(lambda **k: SiD(picture_teacher(), alpha=1.0, **k), gan=2e-4, gan_discriminator=3.0)
    num = batch["data"][0].numel()
    bce = nn.BCEWithLogitsLoss()

    x_g, cond = sida.rollout(batch, "student")
    x_t, t = sida.diffuse(x_g, sida.student_times, "student")
    real, fake = sida.teacher.denoiser(x_t, t), sida.fake_score(x_t, t)
    n = (x_g - real).abs().mean((1, 2, 3), keepdim=True).detach().clip(1e-5)
    sid = ((real - fake) * ((real - x_g) - (real - fake)) / n).sum() * 100 / 6
    logits = sida.fake_score.features(x_t, t).mean(1, keepdim=True).clamp(-10, 10)
    gan = ((bce(logits, torch.ones_like(logits)) / n).mean((1, 2, 3)) * num).sum() * 2 * 0.01 / 6
    torch.testing.assert_close(
        (sida.student_loss(batch) - plain.student_loss(batch)) * 50 * num, 0.5 * gan, rtol=1e-3, atol=0
    )
    torch.testing.assert_close(50 * num * plain.student_loss(batch), 0.5 * sid)
    both = gradients(0.5 * sid + 0.5 * gan, sida.student) / (50 * num)
    torch.testing.assert_close(gradients(sida.student_loss(batch), sida.student), both, rtol=1e-3, atol=1e-6)

    x_g = sida.rollout(batch, "fake")[0].detach()
    t, eps = sida.fake_times(sida.rand(6, "fake t"), sida.teacher.process), sida.randn(x_g.shape, "fake eps")
    sigma = t.reshape(6, 1, 1, 1)
    w = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    error = (w * (sida.fake_score(x_g + sigma * eps, t) - x_g) ** 2).sum() / 6
    seen = [sida.fake_score.features(x + sigma * eps, t).mean(1) for x in (x_g, batch["data"])]
    against = (w * (bce(seen[1], torch.ones_like(seen[1])) + bce(seen[0], torch.zeros_like(seen[0]))) / 2).sum() * 3 / 6
    torch.testing.assert_close(num * plain.fake_score_loss(batch), error)
    torch.testing.assert_close(num * sida.fake_score_loss(batch), error + against)
    both = gradients(error + against, sida.fake_score) / num
    torch.testing.assert_close(gradients(sida.fake_score_loss(batch), sida.fake_score), both, rtol=1e-3, atol=1e-6)


def test_sida_without_weight_is_sid():
    plain, none = pair(lambda **k: SiD(neural(), **k), gan=0.0, gan_discriminator=5.0)
    assert torch.equal(plain.student_loss(BATCH), none.student_loss(BATCH))
    assert torch.equal(plain.fake_score_loss(BATCH), none.fake_score_loss(BATCH))


def test_sidas_student_waits_while_its_discriminator_learns():
    """`gan_start` counts student steps, here every second one, and goes on in a resumed run."""
    plain, sida = pair(lambda **k: SiD(neural(), **k), gan=1.0, gan_start=3)

    def joined(step):
        return not torch.equal(at(sida, step).student_loss(BATCH), at(plain, step).student_loss(BATCH))

    assert [joined(step) for step in (1, 3, 5, 7, 9)] == [False, False, False, True, True]
    assert not torch.equal(at(sida, 0).fake_score_loss(BATCH), at(plain, 0).fake_score_loss(BATCH))


@pytest.mark.parametrize("limit, moves", [(1e-6, False), (10.0, True), (None, True)])
def test_sidas_student_is_not_moved_by_clipped_logits(limit, moves):
    plain, sida = pair(lambda **k: SiD(neural(), **k), gan=1.0, gan_clamp=limit)
    for role in (plain, sida):
        role.focus("student")
    with_it, without = (gradients(model.student_loss(BATCH), model.student) for model in (sida, plain))
    assert torch.equal(with_it, without) != moves


def test_sidas_discriminator_sees_fake_and_real_at_the_same_level_and_noise():
    model, seen = SiD(neural(), gan=0.5), []
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


def test_dmd2s_discriminator_is_shown_the_student_and_the_data():
    model, seen = DMD(neural(), gan=0.1), []
    model.logits = lambda x_0, cond, purpose: seen.append((x_0, cond["label"], purpose)) or torch.zeros(8, 1)
    model.fake_score_loss(BATCH), model.student_loss(BATCH)
    x_g = [model.rollout(BATCH, purpose)[0] for purpose in ("fake", "student")]
    for (shown, label, _), expected in zip(seen, [x_g[0], BATCH["data"], x_g[1]], strict=True):
        assert torch.equal(shown, expected) and torch.equal(label, BATCH["label"])
    assert [purpose for *_, purpose in seen] == ["fake gan", "real gan", "student gan"]


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
    assert DMD(neural(), gan=0.1).requires == SiD(neural(), gan=0.5).requires == {"denoiser", "data", "features"}
    with pytest.raises(ValueError, match="DMD needs data, which Teacher and SimpleNamespace do not give; `python"):
        DMD(neural(), gan=0.1).require(SimpleNamespace(provides=frozenset()))
    DMD(neural()).require(SimpleNamespace(provides=frozenset()))


@pytest.mark.parametrize(
    "name, value",
    [("gan", -0.1), ("gan", math.nan), ("gan_discriminator", -1.0), ("gan_start", -1), ("gan_clamp", 0.0)],
)
def test_sidas_numbers_are_refused_below_zero(name, value):
    with pytest.raises(ValueError, match=f"^{name} must .*, got {value}"):
        SiD(neural(), **{name: value})


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
    with pytest.raises(ValueError, match="needs model.num_steps=1, got 4"):
        DMD(neural(), regression=0.25, num_steps=4)


def paired(seed, **settings):
    return began(DMD(neural(), regression=0.25, num_pairs=50, **settings), seed)


def began(model, seed=0):
    """The model at the start of a run on a few points with labels in turn."""
    model.seed = seed
    at(model)._trainer.datamodule = SimpleNamespace(train=TensorData(BATCH))
    model._trainer.strategy = None
    model.on_fit_start()
    return model


def test_noise_decides_the_sample_of_a_pair():
    """A teacher whose best solver draws on its way makes its pairs by another one."""
    teacher = neural()
    teacher.best = {"solver": "ancestral", "steps": 5}
    assert DMD(teacher, regression=0.25).pairs.solver == "ddim"
    assert DMD(neural(), regression=0.25).pairs.solver == "heun"


def test_pairs_are_a_function_of_the_seed():
    one, again, other = (list(paired(seed).pairs.draw(torch.arange(50))) for seed in (3, 3, 4))
    assert same(one, again) and not torch.equal(one[0], other[0]) and one[2]["label"].tolist() == [0, 1] * 25


def test_pairs_are_teacher_samples_from_the_same_noise():
    """A Gaussian's exact flow is x_0 = m + S / sqrt(S^2 + 80^2) (80 z - m); rows stay together."""
    model = began(
        DMD(gaussian(0.4, 0.9), student_maker=Fresh(MLP([1], width=8, depth=1)), regression=0.25, num_pairs=50)
    )
    noise, y, _ = model.pairs.random(20, model.generator("pairs"))
    torch.testing.assert_close(y, 0.4 + 0.9 / math.hypot(0.9, 80) * (80 * noise - 0.4), rtol=0.02, atol=0.02)
    assert len(set(noise.flatten().tolist())) > 10


def test_pairs_are_guided_as_the_teacher_is():
    """y = the teacher's sample from the pair's noise for its class with kappa 3, and no other."""
    teacher = labelled(1.0, -0.2)
    teacher.best = {"solver": "heun", "steps": 8}
    student = Fresh(MLP([1], width=8, depth=1, classes=CLASSES))
    model = began(DMD(teacher, student_maker=student, kappa=3.0, regression=0.25, num_pairs=20))
    noise, y, cond = model.pairs.draw(torch.arange(20))
    torch.testing.assert_close(y, teacher.sample(noise, cond, kappa=3.0))
    assert (y - teacher.sample(noise, cond)).abs().max() > 1


def test_regression_is_added_with_its_weight():
    plain, model = DMD(neural()), paired(7)
    for each in (plain, model):
        wake(each.student, 1), wake(each.fake_score, 2)
        each.seed = 7
    noise, y, cond = model.pairs.random(8, model.generator("pairs"))
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
    assert model.num_steps == 2 and model.product().times == [80.0, 2.0]


class Next(nn.Module):
    """Clips of two frames: the context frame, and `b` times it plus noise of std w."""

    def __init__(self, b, w):
        super().__init__()
        self.process = VarianceExploding()
        self.b, self.w = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (b, w))


class Going(Next):
    """The student: from sigma z."""

    def forward(self, x, t, cond):
        first = cond["first"]
        return torch.cat([first, self.b * first + self.w * x[:, :, 1:] / self.process.sigma(t)], dim=2)


class Gone(Next):
    """The denoiser of such clips."""

    loss_weight, told = staticmethod(torch.ones_like), {}

    def forward(self, x, t, cond):
        first = cond["first"]
        seen = self.w**2 / (self.w**2 + self.process.sigma(t)[:, None, None, None] ** 2)
        return torch.cat([first, self.b * first + seen * (x[:, :, 1:] - self.b * first)], dim=2)


def going_on(last, a=0.9, b=0.4, w=0.2, ratio=0.9, rollouts=3, method=DMD):
    """A method in its closed form, on data of zeros; the sample after `last` others is trained."""
    teacher = Teacher(Gone(a, w), (1, 2, 1), context=("first",), continuation=Tail("first"))
    model = method(teacher, student_times=Level(ratio), rollouts=rollouts)
    model.normalise = None
    model.student, model.fake_score = Going(b, w), Gone(b, w)
    z = (torch.cartesian_prod(*[f64(1, -1)] * 4))[:, :, None, None, None].expand(-1, -1, 1, 2, 1)
    draws = {"student clip 0 noise 0": 0, "student clip 1 noise 0": 1, "student noise 0": 2, "student eps": 3}
    model.randn = lambda shape, purpose: z[:, draws[purpose]]
    model.randint = lambda high, purpose: last if purpose == "clip" else 0
    return model, {"data": torch.zeros(16, 1, 2, 1).double(), "first": torch.zeros(16, 1, 1, 1).double()}


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_student_that_goes_on_learns_from_what_it_made(last):
    """dL/db = (b - a) E f^2 r^2/(w^2 + r^2), learned from the student's own frames alone.

    All data begin with zeros, so they do not say what follows what.
    """
    a, b, w, r = 0.9, 0.4, 0.2, 0.9
    model, batch = going_on(last)
    loss = model.student_loss(batch)
    found = torch.autograd.grad(loss, [model.student.b, model.student.w], materialize_grads=True)
    square = (0, w**2, (1 + b**2) * w**2)[last]  # of the frame that the trained one was given
    share = 0.5  # of the loss, a mean over two frames
    expected = share * (b - a) * square * r**2 / (w**2 + r**2)
    assert [g.item() for g in found] == pytest.approx([expected, 0], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("last", [1, 2])
def test_no_gradient_flows_from_one_rollout_to_the_next(last):
    model, batch = going_on(last)
    x_g, cond = model.rollout(batch, "student")
    assert x_g.requires_grad and cond["first"].abs().max() > 0 and not cond["first"].requires_grad


def test_all_roles_train_the_same_rollout_and_each_is_drawn():
    model, _ = going_on(0)
    del model.randint
    drawn = [{at(model, step=step + turn).randint(3, "clip") for turn in range(6)} for step in range(0, 240, 6)]
    assert all(len(cycle) == 1 for cycle in drawn) and set.union(*drawn) == {0, 1, 2}


def test_samples_in_a_row_need_a_teacher_that_proceeds():
    with pytest.raises(ValueError, match="rollouts=2 need a teacher that says what comes after a sample"):
        DMD(neural(), rollouts=2)
    with pytest.raises(ValueError, match="rollouts must be at least 1, got 0"):
        SiD(neural(), rollouts=0)


@pytest.mark.parametrize("method", ["dmd", "sid"])
def test_the_former_word_for_rollouts_is_refused_with_the_new_one(method, capsys):
    assert front.main(["fit", "domain=toy", f"method={method}", "model.clips=2"]) == 2
    assert capsys.readouterr().err == (
        "error: no key model.clips any more: how many samples in a row is model.rollouts\n"
    )


@pytest.mark.parametrize("method, module", [(DMD, dmd_module), (SiD, sid_module)])
def test_real_samples_are_judged_by_what_they_really_followed(method, module, monkeypatch):
    """The student goes on from frames that it made; the data do not."""
    model, batch = going_on(1, method=method)
    batch["first"] = batch["first"] + 0.3
    generator, judged = torch.Generator().manual_seed(0), []
    model.gan = 0.5
    model.randn = lambda shape, purpose: torch.randn(shape, generator=generator).double()
    model.logits = lambda *args: judged.append(next(a["first"] for a in args if isinstance(a, dict))) or args[0].mean()
    monkeypatch.setattr(module, "denoising_loss", lambda *args: torch.zeros(()))
    model.fake_score_loss(batch)
    fake, real = judged
    assert torch.equal(real, batch["first"]) and not torch.allclose(fake, batch["first"])


def test_sidas_former_share_is_refused_in_the_words_that_replace_it(capsys):
    assert front.main(["fit", "domain=toy", "method=sid", "model.adversarial=0.5"]) == 2
    error = capsys.readouterr().err
    assert "no key model.adversarial any more" in error and "model.gan=1e-4" in error
    assert "model.gan_discriminator" in error and len(error.splitlines()) == 1


# The student's samples, reused


OTHERS = {"data": BATCH["data"] + 3, "label": 1 - BATCH["label"]}


def reusing(kind, **settings):
    """A method of three steps at a student's step of its run, with weights that are not zero."""
    model = at(kind(neural(), num_steps=3, reuse=True, **settings), step=1)
    wake(model.student, 1), wake(model.fake_score, 2)
    return model


@pytest.mark.parametrize(
    "method, module, settings",
    [
        *(
            (kind, module, given)
            for kind, module in ((DMD, dmd_module), (SiD, sid_module))
            for given in ({}, {"gan": 0.5})
        ),
        (DMD, dmd_module, {"kappa": [0.5, 2.0]}),
    ],
)
def test_the_fake_score_is_fitted_to_the_very_samples_of_the_students_step(method, module, settings, monkeypatch):
    """Once, with what they were made for, and without gradient; real data keep their own."""
    model, fitted, told = reusing(method, **settings), [], []
    original = module.denoising_loss
    monkeypatch.setattr(module, "denoising_loss", lambda *a: fitted.append((a[1], a[4])) or original(*a))
    real = model.real_condition
    monkeypatch.setattr(model, "real_condition", lambda *a: told.append(real(*a)) or told[-1])
    x_g, cond = model.rollout(BATCH, "student")
    model.student_loss(BATCH).backward()
    model.zero_grad()
    at(model, step=2), wake(model.student, 3)  # the student's own step has moved it
    model.fake_score_loss(OTHERS).backward()
    assert torch.equal(fitted[0][0], x_g) and same(fitted[0][1], cond) and not fitted[0][0].requires_grad
    assert set(cond) == {"label", "step", *({"kappa"} if "kappa" in settings else ())}
    assert all(p.grad is None for p in model.student.parameters())
    for given in told:  # of the discriminator alone
        assert torch.equal(given["label"], OTHERS["label"]) and torch.equal(given["step"], cond["step"])
    model.fake_score_loss(OTHERS)
    assert torch.equal(fitted[1][0], model.rollout(OTHERS, "fake")[0]) and len(told) == 2 * ("gan" in settings)


@pytest.mark.parametrize("reuse", [False, True])
def test_the_discriminator_cannot_tell_by_a_dropped_condition_what_is_real(reuse, monkeypatch):
    """Real and fake samples lose theirs in the same rows, and in some."""
    model = at(SiD(neural(), kappa=2.0, gan=0.5, reuse=reuse), step=1)
    model.student_loss(BATCH)
    at(model, step=2)
    seen, logits = [], model.logits
    monkeypatch.setattr(model, "logits", lambda x_t, t, cond: seen.append(cond["label"]) or logits(x_t, t, cond))
    monkeypatch.setattr(model, "rand", lambda num, purpose: torch.arange(num) / num)
    model.fake_score_loss(OTHERS)
    fake, real = (label == CLASSES["label"] for label in seen)
    assert torch.equal(fake, real) and fake.any() and not fake.all()


def test_a_rollout_of_several_samples_is_reused_with_what_it_follows(monkeypatch):
    model, batch = going_on(1)
    model.reuse, fitted = True, []
    monkeypatch.setattr(dmd_module, "denoising_loss", lambda *a: fitted.append(a) or torch.zeros(()))
    x_g, cond = model.rollout(batch, "student")
    model.student_loss(batch)
    model.rand = lambda num, purpose: torch.zeros(num)
    model.randn = lambda shape, purpose: torch.zeros(shape)
    model.fake_score_loss(batch)
    assert torch.equal(fitted[0][1], x_g) and same(fitted[0][4], cond)
    assert not torch.equal(cond["first"], batch["first"])


@pytest.mark.parametrize("updates", [1, 2, 3])
@pytest.mark.parametrize("kind", [SiD, DMD])
def test_reuse_saves_one_rollout_in_every_cycle_but_the_first(kind, updates):
    """And keeps nothing when the fake score has seen it, or when it is off."""
    calls = {}
    for reuse in (False, True):
        model = kind(neural(), reuse=reuse, fake_score=Adam(updates=updates))
        calls[reuse], held = [], []
        model.student.register_forward_pre_hook(lambda *_, reuse=reuse: calls[reuse].append(None))
        step = model.training_step
        model.training_step = lambda *a, step=step, held=held, model=model: (held.append(len(model._kept)), step(*a))[1]
        fit(model, 3 * (updates + 1))
        assert held == [int(reuse and n > 0 and n % (updates + 1) == 0) for n in range(len(held))]
    assert len(calls[False]) == 3 * (updates + 1) and len(calls[True]) == len(calls[False]) - 2


def test_a_role_that_joins_late_reuses_what_there_is():
    """A late fake score finds the samples of the step before it; a late student has left none."""
    for late, alone in (("fake_score", "student"), ("student", "fake_score")):
        model, held = SiD(neural(), reuse=True, **{late: Adam(start=3)}), []
        step = model.training_step
        model.training_step = lambda *a, step=step, held=held, model=model: (held.append(len(model._kept)), step(*a))[1]
        fit(model, 6)
        assert held == ([0, 1, 1, 1, 0, 1] if alone == "student" else [0, 0, 0, 0, 0, 1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", [SiD, DMD])
def test_a_run_cut_between_the_student_and_the_fake_score_goes_on_exactly(kind, accumulate, tmp_path):
    def made():
        torch.manual_seed(0)
        return kind(neural(), num_steps=2, reuse=True, fake_score=Adam(updates=1), schedule="constant")

    straight, short, again = made(), made(), made()
    _, run, _ = fit(short, 2, accumulate_grad_batches=accumulate)
    run.save_checkpoint(tmp_path / "cut.ckpt")
    trainer(5, accumulate_grad_batches=accumulate).fit(
        again, Pairs(batch_size=8), ckpt_path=tmp_path / "cut.ckpt", weights_only=True
    )
    fit(straight, 5, accumulate_grad_batches=accumulate)
    assert len(short._kept) == accumulate and same(dict(straight.state_dict()), dict(again.state_dict()))


@pytest.mark.filterwarnings("ignore")
def test_two_processes_keep_what_one_keeps_in_two_micro_batches(tmp_path):
    """The checkpoint that two wrote holds the samples of both, in the order of their batches."""

    def made():
        torch.manual_seed(0)
        return SiD(neural(), reuse=True, schedule="constant")

    class Keep(Callback):
        def on_train_end(self, trainer, model):
            trainer.save_checkpoint(tmp_path / "two.ckpt")

    _, run, _ = fit(made(), 4, accumulate_grad_batches=2)
    run.save_checkpoint(tmp_path / "one.ckpt")
    strategy = DDPStrategy(start_method="fork", find_unused_parameters=True, process_group_backend="gloo")
    trainer(4, devices=2, strategy=strategy, callbacks=[Keep()]).fit(made(), Pairs(batch_size=8))
    one, two = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["samples"] for name in ("one", "two"))
    assert len(one) == len(two) == 2 and not torch.allclose(one[0][0], one[1][0], atol=1e-3)
    for (x, cond), (y, other) in zip(one, two, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
        assert same(cond, other)
    for rank in range(2):
        model = at(made(), rank=rank, world=2)
        model._trainer.state, model._trainer.max_steps = SimpleNamespace(fn="fit"), 9
        model.on_load_checkpoint(torch.load(tmp_path / "two.ckpt", weights_only=True))
        assert same([*model._kept[0]], [*two[rank]]) and len(model._kept) == 1
