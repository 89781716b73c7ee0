"""Scenes by score distillation: what SDS, ASD and VSD pull where, and what becomes of modes."""

# ruff: noqa: E501 (a fault is a row of a table)

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import BATCH, CLASSES, PROCESSES, UNMEASURED, at, distil, f64, fit, gaussian, neural, same, wake
from methods import test_sets
from methods.test_score import labelled, on_a_line
from mutations import Mutation, prove
from torch import nn

from distillkit import load_student
from distillkit.cli import front
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.guidance import guided
from distillkit.diffusion.process import DiscreteVariancePreserving
from distillkit.diffusion.times import Annealed, LogNormal, Uniform
from distillkit.methods.consistency import Consistency
from distillkit.methods.dmd import DMD
from distillkit.methods.few_step import FewStepDistiller
from distillkit.methods.flow_map import FlowMap
from distillkit.methods.mdt_dist import MDTDist
from distillkit.methods.scm import SCM
from distillkit.methods.score import ScoreDistiller
from distillkit.methods.sds import SDS
from distillkit.methods.sid import SiD
from distillkit.networks.adapters import Adapters
from distillkit.networks.mlp import MLP
from distillkit.networks.particles import Particles
from distillkit.students.makers import Copy, Fresh, FromFolder, Lora, Scene
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactTeacher, Mixture
from tests.battery.conftest import build

M, S, R = 0.4, 0.8, 0.9
EACH = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
ZEROS = {"data": torch.zeros(4, 1)}


def h(u):
    """Of N(m, S^2) the teacher sees `h(u) (x_g - m)` in x_g, besides noise; u = sigma / alpha."""
    return u / (S**2 + u**2)


def weight(u):
    """sigma^2, where sigma^2 + alpha^2 = 1."""
    return u**2 / (1 + u**2)


# Closed forms


@EACH
@pytest.mark.parametrize("mu, s", [(1.1, 1.3), (-0.3, 0.2)])
def test_sds_pulls_to_the_mean_and_narrows_whatever_the_width(process, mu, s):
    """Pulls of `(mu - m) sigma^3 alpha / V` and `s sigma^3 alpha / V`: it ends in a point at m."""
    model, line = on_a_line(SDS, mu, s, process)
    found = line.gradient(model.student_loss(ZEROS))
    assert found == pytest.approx([weight(R) * h(R) * (mu - M), weight(R) * h(R) * s], rel=1e-5)
    t = PROCESSES["vp"].from_ratio(f64(R))
    alpha, sigma = PROCESSES["vp"].alpha(t).item(), PROCESSES["vp"].sigma(t).item()
    assert weight(R) * h(R) == pytest.approx(sigma**3 * alpha / (alpha**2 * S**2 + sigma**2), rel=1e-6)


def asynchronous(process, mu, s, eta=0.4, share=0.75, ratio=R, **settings):
    """ASD in closed form, its second look at the known share of eta; and that look's u."""
    model, line = on_a_line(SDS, mu, s, process, ratio=ratio, eta=eta, **settings)
    model.rand = lambda num, purpose: torch.full((num,), share, dtype=torch.float64)
    t = process.from_ratio(f64(ratio))
    return model, line, process.ratio(t + share * eta * (t - process.t_min)).item()


@EACH
def test_asd_pulls_by_the_difference_of_two_levels(process):
    model, line, u = asynchronous(process, 1.1, 1.3)
    found = line.gradient(model.student_loss(ZEROS))
    push = weight(R) * (h(R) - h(u))
    assert u > 1.05 * R and found == pytest.approx([push * (1.1 - M), push * 1.3], rel=1e-4)


@pytest.mark.parametrize("std, expected", [(1.0, -0.041), (0.2, 0.224)])
def test_asd_repels_below_the_width_of_the_data_and_attracts_above(std, expected):
    """From u = 0.5 to 0.6, without the weight."""
    process = PROCESSES["ve"]
    share = 0.1 / (0.5 - process.t_min)
    model, line, u = asynchronous(process, 1.1, 0.3, eta=1.0, share=share, ratio=0.5, teacher=gaussian(M, std, process))
    found = line.gradient(model.student_loss(ZEROS))[0] / (1.1 - M) / weight(0.5)
    assert u == pytest.approx(0.6) and found == pytest.approx(expected, abs=5e-4)


def test_the_second_look_never_leaves_the_process():
    for process in PROCESSES.values():
        model = SDS(gaussian(M, S, process), student_maker=Fresh(MLP([1], width=8, depth=1)), eta=1.0)
        later = model.later(torch.full((100,), process.t_max))
        assert torch.equal(later, torch.full((100,), process.t_max))


@pytest.mark.parametrize("kappa, eta, rests", [(1.0, 0.0, True), (2.0, 0.0, False), (1.0, 0.1, False)])
def test_without_delay_and_guidance_asd_does_nothing_at_all(kappa, eta, rests):
    model = SDS(neural(), student_maker=Scene(Particles((2,), 16)), eta=eta, kappa=kappa)
    loss = at(model).student_loss(BATCH)
    loss.backward()
    assert (loss == 0) == rests and model.student.network.points.grad.any() == (not rests)


@pytest.mark.parametrize("kappa", [0.0, 3.0])
@pytest.mark.parametrize("eta", [None, 0.4])
def test_the_first_look_alone_is_guided(kappa, eta):
    """The pull is `h(u) (mu - m_kappa) - h(u_later) (mu - m_c)`, m_kappa the guided mean."""
    m_c, m_0, std, mu = 1.0, -0.2, 0.5, 0.7
    process, teacher = PROCESSES["ve"], labelled(m_c, m_0, std)
    model, line, u = asynchronous(process, mu, 0.3, eta=eta or 0.4, teacher=teacher, kappa=kappa)
    model.eta = eta
    found = line.gradient(model.student_loss(ZEROS | {"label": torch.ones(4, dtype=torch.long)}))[0]
    pull = lambda u, m: u / (std**2 + u**2) * (mu - m)  # noqa: E731
    second = pull(u, m_c) if eta else 0
    assert found == pytest.approx(weight(R) * (pull(R, m_0 + kappa * (m_c - m_0)) - second), rel=1e-5)


@pytest.mark.parametrize("eta, kappa, rows", [(None, 1.0, 8), (None, 2.0, 16), (0.1, 1.0, 16), (0.1, 2.0, 24)])
def test_the_teacher_is_called_once_and_not_differentiated(eta, kappa, rows):
    model, asked = SDS(neural(), student_maker=Scene(Particles((2,), 16)), eta=eta, kappa=kappa), []
    model.teacher.denoiser.register_forward_pre_hook(lambda _, given: asked.append((given[0], torch.is_grad_enabled())))
    at(model).student_loss(BATCH).backward()
    ((x_t, differentiated),) = asked
    assert len(x_t) == rows and not x_t.requires_grad and not differentiated
    assert model.student.network.points.grad.any()
    assert not any(p.requires_grad or p.grad is not None for p in model.teacher.parameters())


def test_both_looks_have_one_noise_and_what_the_teacher_says_is_as_by_hand():
    model = at(SDS(neural(), student_maker=Scene(Particles((2,), 16)), eta=0.5, kappa=2.0))
    process, teacher, cond = model.teacher.process, model.teacher.denoiser, {"label": BATCH["label"]}
    x_g, eps = BATCH["data"], torch.randn(8, 2)
    t = torch.linspace(0.5, 3, 8)
    s = model.later(t)
    real, later = model.heard(x_g, eps, t, s, cond)
    null = {"label": torch.full((8,), CLASSES["label"])}
    torch.testing.assert_close(real, guided(teacher, process.add_noise(x_g, eps, t), t, cond, null, 2.0))
    torch.testing.assert_close(later, teacher(process.add_noise(x_g, eps, s), s, cond))
    assert (s >= t).all() and (s <= 1.5 * t).all() and (s > t).any()


# What is refused


@pytest.mark.parametrize(
    "words, said",
    [
        (["model.num_steps=2"], "Particles looks at the conditions alone, so that further steps change nothing, got 2"),
        (["student=copy"], "SDS needs scene, which Gaussian and ToyData do not give"),
        (["model.kappa=2"], "SDS with kappa=2 needs classes"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(words, said, capsys):
    assert front.main(["fit", "domain=toy", "method=sds", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and len(error.splitlines()) == 1


@pytest.mark.parametrize("kind", [SDS, DMD])
def test_a_scene_takes_one_step_in_every_method(kind):
    levels = Uniform(0.02, 0.98)
    with pytest.raises(ValueError, match="Particles looks at the conditions alone, .* leave model.num_steps at 1"):
        kind(neural(), student_maker=Scene(Particles((2,), 16)), num_steps=2, student_times=levels)


def test_a_finished_scene_is_no_start_of_a_method_that_maps_noise(tmp_path):
    """Whose loss would never reach what it asks of the student."""
    flow = neural(PROCESSES["flow"])
    SDS(flow, student_maker=Scene(Particles((2,), 16, CLASSES))).product().save(tmp_path / "s")
    for kind in (Consistency, SCM, FlowMap, MDTDist):
        with pytest.raises(
            ValueError, match=f"Particles looks at the conditions alone, and {kind.__name__} learns a map"
        ):
            kind(flow, student_maker=FromFolder(str(tmp_path / "s")))
    with pytest.raises(ValueError, match="gives no score of noised samples: say fake_score=copy"):
        levels = Uniform(0.02, 0.98)
        DMD(flow, student_times=levels, fake_score_maker=FromFolder(str(tmp_path / "s")))


def test_no_time_is_later_by_more_than_itself():
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got 1.5 \(null is SDS\)"):
        SDS(neural(), eta=1.5)


def test_a_student_made_of_noise_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match="SDS needs scene"):
        fit(SDS(neural(), student_maker=Copy()), 1)


@pytest.mark.parametrize("kind", [SDS, DMD])
@pytest.mark.parametrize("changing", [True, False])
def test_levels_that_change_need_the_end_of_the_run(kind, changing):
    levels = Annealed(Uniform(0.5, 0.98), Uniform(0.02, 0.5)) if changing else Uniform(0.5, 0.98)
    model, said = kind(neural(), student_maker=Scene(Particles((2,), 16)), student_times=levels), ""
    try:
        model.on_fit_start()
    except ValueError as error:
        said = str(error)
    assert said.endswith("whose end is not known: give trainer.max_steps") == changing


# The presets


def preset(method, *words):
    return build("domain=toy", f"method={method}", *words).model


def test_vsd_is_dmd_without_normaliser_whose_fake_score_is_adapters():
    model = preset("vsd")
    assert type(model) is DMD and isinstance(model.fake_score.network, Adapters)
    assert isinstance(model.student.network, Particles)
    assert (model.guide_fake, model.weight, model.normalise, model.gan) == (False, "sigma_alpha", None, 0)


@pytest.mark.parametrize(
    "method, done, low, high",
    [
        ("asd", 0.0, 0.5, 0.98),
        ("asd", 0.5, None, None),
        ("asd", 1.0, 0.02, 0.5),
        ("vsd", 0.19, 0.02, 0.98),
        ("vsd", 0.2, 0.02, 0.5),
    ],
)
def test_levels_fall_in_the_course_of_the_run(method, done, low, high):
    """Published in steps of Stable Diffusion: the same noise on a process of another kind."""
    model = preset(method, "model.student_times=${vars.annealed}")
    at(model, step=round(1000 * done))._trainer.estimated_stepping_batches = 1000
    drawn = model.draw_times(model.student_times, 20_000, "student t")
    table = DiscreteVariancePreserving(beta_start=0.00085, beta_end=0.012, schedule="scaled_linear")
    ends = lambda low, high: table.ratio(999 * f64(low, high))  # noqa: E731
    expected = ends(low, high) if low else (ends(0.5, 0.98) + ends(0.02, 0.5)) / 2
    assert [drawn.min().item(), drawn.max().item()] == pytest.approx(expected.tolist(), rel=0.02)


def test_a_run_leaves_a_scene_that_samples_as_a_student_does(tmp_path):
    """From the words of the command line to the folder."""
    words = ["domain=toy", "method=asd", "vars.scene.num=8", "trainer.max_steps=3", "data.batch_size=64"]
    distil("fit", *words, *UNMEASURED, "--out", tmp_path / "run")
    student = load_student(tmp_path / "run")
    own, before = student.denoiser.network.points[0], build(*words).model.student.network.points[0]
    made = student.sample(256, {}, 0)
    assert (made[:, None] == own).all(-1).any(1).all() and len(made.unique(dim=0)) == 8
    assert not torch.equal(own, before) and (own - before).abs().max() < 0.1


# Modes


class Cloud(nn.Module):
    """The fake score that has learned the particles: their mean, weighed by nearness."""

    told, loss_weight = {}, staticmethod(torch.ones_like)

    def __init__(self, points):
        super().__init__()
        self.points = [points]  # no parameter of this role

    def forward(self, x_t, t, cond):
        points, sigma = self.points[0].detach()[0], t[:, None]
        near = (-torch.cdist(x_t, points.to(x_t)).square() / (2 * sigma**2)).softmax(1)
        return near @ points.to(x_t)


MODES = Mixture([[-2.0, 0.0], [2.0, 0.0]], [(0.4**2 * torch.eye(2)).tolist()] * 2, [1.0, 3.0])


def particles(kind, steps=300, num=128, **settings):
    """What becomes of particles: share at the lighter mode, and the width of the heavier one."""
    settings |= {"student_times": LogNormal(0.3, 0.6), "student_maker": Scene(Particles((2,), num, std=2.0))}
    model = kind(ExactTeacher(MODES, PROCESSES["ve"]), **settings)
    points = model.student.network.points
    model.fake_score = Cloud(points)
    optimiser = torch.optim.Adam([points], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        optimiser.zero_grad()
        at(model, step).student_loss({"data": torch.zeros(512, 2)}).backward()
        optimiser.step(), schedule.step()
    final = points.detach()[0]
    heavy = final[final[:, 0] > 0]
    return (final[:, 0] < 0).float().mean().item(), heavy.std(0).mean().item()


def test_vsd_keeps_both_modes_where_sds_collapses():
    """A quarter at the lighter mode, of the right width; SDS leaves a point at the other."""
    torch.set_num_threads(1)
    kept, width = particles(DMD, normalise=None, weight="sigma_alpha")
    lost, point = particles(SDS)
    assert kept == pytest.approx(0.25, abs=0.08) and width == pytest.approx(0.4, rel=0.25)
    assert lost < 0.02 and point < 0.1


# A fake score that is told the camera


CAMERA = torch.randn(8, 3, generator=torch.Generator().manual_seed(7))
VIEWS = BATCH | {"camera": CAMERA}


class Viewing(MLP):
    """A network that reads the camera itself."""

    def forward(self, x, time, cond):
        return super().forward(x, time, cond) + cond["camera"].sum(1, keepdim=True)


def viewed(told=3, kind=DMD, maker=Lora, network=Viewing, context=("camera",), **settings):
    """A method on a teacher that sees the camera, whose fake score is told it as well."""
    torch.manual_seed(0)
    own = wake(network([2], width=8, depth=1, classes=CLASSES))
    teacher = Teacher(Denoiser(own, PROCESSES["ve"], "edm", 1.0), (2,), CLASSES, context)
    settings |= {"fake_score_maker": maker(), "student_maker": Scene(Particles((2,), 16))}
    return at(kind(teacher, fake_told=told and {"camera": told}, **settings), step=1)


def losses(model):
    """Both roles' losses, and the gradients of the weights that there are without a camera."""
    found = []
    for role in ("student", "fake_score"):
        model.zero_grad()
        loss = getattr(model, f"{role}_loss")(VIEWS)
        loss.backward()
        grads = {
            name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and "told" not in name
        }
        found.append((loss.detach(), grads))
    return found


@pytest.mark.parametrize("maker", [Lora, Copy])
@pytest.mark.parametrize("kind", [DMD, SiD])
def test_before_training_a_fake_score_that_is_told_the_camera_is_the_plain_one(kind, maker):
    """Bit for bit, its own reading of the camera included."""
    settings = {"kind": kind, "maker": maker}
    for (one, first), (two, second) in zip(losses(viewed(**settings)), losses(viewed(None, **settings)), strict=True):
        assert torch.equal(one, two) and same(first, second)


def awake(**settings):
    """A fake score that makes something of the camera it is told."""
    model = viewed(**settings)
    wake(model.fake_score.network.embed.told, 3)
    return model


def test_the_fake_score_judges_by_the_camera_and_the_teacher_does_not_hear_of_it():
    model, x_t, t = awake(), torch.randn(8, 2), torch.full((8,), 0.7)
    _, cond = model.rollout(VIEWS, "student")
    turned = cond | {"told_camera": -CAMERA}
    teacher, fake = model.teacher.denoiser, model.fake_score
    assert torch.equal(cond["told_camera"], CAMERA) and torch.equal(cond["camera"], CAMERA)
    assert torch.equal(teacher(x_t, t, cond), teacher(x_t, t, turned))
    assert not torch.equal(fake(x_t, t, cond), fake(x_t, t, turned))


@pytest.mark.parametrize("reuse", [False, True])
def test_a_tenth_of_what_trains_the_fake_score_comes_without_the_camera(reuse, monkeypatch):
    """Its own reading stays, and the student is judged with the camera always."""
    model = awake(reuse=reuse)
    monkeypatch.setattr(model, "rand", lambda num, purpose: torch.tensor([0.05, 0.0999, 0.1, 0.5, 0.9, 0.3, 0.2, 0.7]))
    model.student_loss(VIEWS)
    _, cond = model.fake_samples(VIEWS)
    expected = torch.cat([torch.zeros(2, 3), CAMERA[2:]])
    assert torch.equal(cond["told_camera"], expected) and torch.equal(cond["camera"], CAMERA)
    seen, forward = [], type(model.fake_score).forward
    monkeypatch.setattr(
        type(model.fake_score),
        "forward",
        lambda self, x, t, cond: seen.append((self, cond)) or forward(self, x, t, cond),
    )
    model.student_loss(VIEWS)
    (judged,) = [cond["told_camera"] for who, cond in seen if who is model.fake_score]
    assert torch.equal(judged, CAMERA)


def test_what_is_made_of_the_camera_is_trained_with_the_fake_score_alone():
    model = viewed()
    weights = dict(model.fake_score.network.embed.told.named_parameters())
    assert weights and {id(p) for p in weights.values()} <= {id(p) for p in model.role_parameters("fake_score")}
    wake(model.fake_score.network.layers, 2)  # the output of adapters is zero at first, as that of the network
    for role, trained in (("student", False), ("fake_score", True)):
        model.zero_grad(), model.focus(role)
        getattr(model, f"{role}_loss")(VIEWS).backward()
        assert all((p.grad is not None and bool(p.grad.any())) == trained for p in weights.values())


def test_a_picture_is_told_as_a_row_of_numbers():
    model = viewed(6)
    pictures = torch.randn(8, 3, 2)
    _, cond = model.rollout(VIEWS | {"camera": pictures}, "student")
    assert torch.equal(cond["told_camera"], pictures.flatten(1))


def test_a_camera_that_is_not_there_or_has_another_size_is_refused():
    with pytest.raises(
        ValueError, match="cannot be told 'camera', which is not in the context .* model.fake_told=null"
    ):
        viewed(context=(), network=MLP)
    with pytest.raises(
        ValueError, match="camera has 3 numbers in a batch, 13 were announced: set model.fake_told.camera=3"
    ):
        viewed(13).student_loss(VIEWS)
    blind = SimpleNamespace(make=lambda teacher: Denoiser(nn.Linear(2, 2), teacher.process, "edm"))
    with pytest.raises(ValueError, match="Linear cannot be told 'camera': set model.fake_told=null"):
        viewed(maker=lambda: blind)


# Faults


def patched(test, *args):
    """A test that asks for `monkeypatch`, which is undone when it ends."""

    def check():
        with pytest.MonkeyPatch.context() as monkeypatch:
            test(*args, monkeypatch=monkeypatch)

    return check


VE = PROCESSES["ve"]
sds = partial(test_sds_pulls_to_the_mean_and_narrows_whatever_the_width, VE, 1.1, 1.3)
asd = partial(test_asd_pulls_by_the_difference_of_two_levels, VE)
rests = partial(test_without_delay_and_guidance_asd_does_nothing_at_all, 1.0, 0.0, True)
guides = partial(test_the_first_look_alone_is_guided, 3.0, 0.4)
once = partial(test_the_teacher_is_called_once_and_not_differentiated, 0.1, 2.0, 24)
looks, inside = (
    test_both_looks_have_one_noise_and_what_the_teacher_says_is_as_by_hand,
    test_the_second_look_never_leaves_the_process,
)
plain = partial(test_before_training_a_fake_score_that_is_told_the_camera_is_the_plain_one, DMD, Lora)
forgets = patched(test_a_tenth_of_what_trains_the_fake_score_comes_without_the_camera, False)
ended = partial(test_levels_that_change_need_the_end_of_the_run, SDS, True)
judges = test_the_fake_score_judges_by_the_camera_and_the_teacher_does_not_hear_of_it
FAULTS = [
    (SDS.student_loss, "the looks swapped", "real, later = self", "later, real = self", asd),
    (SDS.student_loss, "the second look's level for both", "x_g, real, process.ratio(t)", "x_g, real, process.ratio(t if s is None else s)", asd),
    (SDS.student_loss, "the first look's level for both", "else process.ratio(s)", "else process.ratio(t)", asd),
    (SDS.student_loss, "the teacher differentiated", "torch.no_grad()", "torch.enable_grad()", once),
    (SDS.student_loss, "the scene stopped", "return sds_loss(x_g,", "return sds_loss(x_g.detach() + 0 * x_g,", sds),
    (SDS.student_loss, "the mask not handed on", 'cond.get("mask")', "None", partial(test_sets.test_sets_padded_further_have_the_same_loss, "asd")),
    (SDS.later, "the delay left out", "self.eta * passed", "0 * passed", asd),
    (SDS.later, "eta left out", "self.eta * passed", "passed", rests),
    (SDS.later, "eta squared", "self.eta * passed", "self.eta**2 * passed", asd),
    (SDS.later, "an earlier time", "t + self", "t - self", asd),
    (SDS.later, "always the largest delay", "self.rand(len(t), \"student later\") * ", "", asd),
    (SDS.later, "the time from zero", "(t - process.t_min)", "t", asd),
    (SDS.later, "beyond the process", ".clamp_max(process.t_max)", "", inside),
    (SDS.heard, "noise not shared", "add_noise(x_g, eps, time)", "add_noise(x_g, eps if time is t else -eps, time)", looks),
    (SDS.heard, "the second look guided", "[(s, cond)]", "[(s, self.null(cond))]", guides),
    (SDS.heard, "kappa off by one", "self.kappa * (", "(self.kappa + 1) * (", guides),
    (SDS.heard, "w for kappa", "self.kappa * (", "(self.kappa - 1) * (", guides),
    (SDS.heard, "guidance the wrong way", "(said[0] - said[1])", "(said[1] - said[0])", guides),
    (SDS.heard, "no guidance", " if guides else said[0]", " if False else said[0]", guides),
    (SDS.on_fit_start, "an unknown end not noticed", "self.check_ends(self.student_times)", "None", ended),
    (ScoreDistiller.on_fit_start, "an unknown end not noticed", "self.student_times, ", "", partial(test_levels_that_change_need_the_end_of_the_run, DMD, True)),
    (FewStepDistiller.check_ends, "levels that stay refused", "any(times.changes for times in levels) and ", "", partial(test_levels_that_change_need_the_end_of_the_run, SDS, False)),
    (FewStepDistiller.draw_times, "the beginning for ever", "self.done if times.changes", "0.0 if times.changes", partial(test_levels_fall_in_the_course_of_the_run, "asd", 1.0, 0.02, 0.5)),
    (ScoreDistiller.fake_samples, "the camera never dropped", ">= 0.1", ">= 0.0", forgets),
    (ScoreDistiller.fake_samples, "the camera dropped twice as often", ">= 0.1", ">= 0.2", forgets),
    (ScoreDistiller.fake_samples, "the camera kept where it should go", ">= 0.1", "< 0.1", forgets),
    (ScoreDistiller.fake_samples, "the network's own camera dropped", "told(name): keep", "name: keep", forgets),
    (ScoreDistiller.rollout, "no camera told", "self.vector(cond[name], name) for", "0 * self.vector(cond[name], name) for", judges),
    (ScoreDistiller.rollout, "what the network reads itself changed", "return x_g, cond | {told(name):", "return x_g, {name: 0 * v for name, v in cond.items()} | {told(name):", judges),
]  # fmt: skip


@pytest.mark.parametrize("mutation", [Mutation(says, function, *rest) for function, says, *rest in FAULTS], ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)
