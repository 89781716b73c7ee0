"""ScoreLiDAR: two terms beside DMD's, on sets of points whose law is known for each condition."""

# ruff: noqa: E501 (a fault is a row of a table)

import copy

import pytest
import torch
from helpers import at, same, trainer, wake
from mutations import Mutation, prove
from torch import nn

from distillkit import checks
from distillkit.capabilities import gap, imported
from distillkit.cli import config, pairing
from distillkit.codec import Codec
from distillkit.data import DistillData, TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.diffusion.start import Start
from distillkit.diffusion.times import LogNormal
from distillkit.losses.points import keypoint_loss, scene_loss
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from distillkit.methods.scorelidar import ScoreLiDAR
from distillkit.spec import Recorded
from distillkit.students.makers import Fresh
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactDenoiser, ExactTeacher, Mixture

# Scenes: a scan of 6 points, from which sampling starts with 4 copies of each


class Seen(Recorded, nn.Module):
    """A network in which each point sees itself and the mean of the scan."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(7, 12), nn.Linear(12, 3)

    def forward(self, x, time, cond):
        seen = cond["scan"].mean(1, keepdim=True).expand_as(x)
        return self.out(torch.tanh(self.inner(torch.cat([x, seen, time[:, None, None].expand_as(x[..., :1])], -1))))


class Repeated(Codec):
    """Scenes in units of 2 m: what is not encoded shows."""

    def encode(self, batch):
        return batch["data"] / 2

    def decode(self, x, cond):
        return 2 * x


def teacher():
    torch.manual_seed(0)
    denoiser = Denoiser(wake(Seen()), VarianceExploding(0.002, 1.0), "edm", 1.0)
    return Teacher(denoiser, (24, 3), context=("scan",), codec=Repeated(), start=Start("scan"))


class Scenes(DistillData):
    """Random scenes of 24 points, and the scan that sampling starts from."""

    domain, event_shape, classes, context = "none", (24, 3), {}, ("scan",)
    provides = DistillData.provides | {"points"}
    build_evaluator = media = None

    def load(self):
        made = [TensorData(scenes(16, seed)) for seed in range(3)]
        return tuple(made)


def scenes(num=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    data = 3 * torch.randn(num, 24, 3, generator=generator)
    return {"data": data, "scan": data[:, :6].repeat(1, 4, 1) / 2}


FEW = {"neighbours": 8, "share": 0.5}
BATCH = scenes()


def made(**settings):
    model = ScoreLiDAR(teacher(), **(FEW | settings))
    for number, role in enumerate((model.student, model.fake_score), 1):
        wake(role, number)
    return model


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.student.parameters()])])


def test_each_role_learns_in_its_own_turn_and_the_teacher_never():
    model = made()
    everyone = dict(model.named_parameters())
    for role in model.roles:
        model.zero_grad(set_to_none=True)
        model.focus(role)
        getattr(model, f"{role}_loss")(BATCH).backward()
        moved = {key.split(".")[0] for key, p in everyone.items() if p.grad is not None}
        assert moved == {role} and all(p.grad.abs().sum() > 0 for p in model.role_parameters(role))
    assert not any(p.requires_grad for p in model.teacher.parameters())


def check_terms(**settings):
    """Each term has its weight and settings, and the true scene in the space of the samples."""
    model = made(scene=3.0, point=2.0, **settings)
    x_g, cond = model.rollout(BATCH, "student")
    y, kind = BATCH["data"] / 2, settings.get("correspondence", "nn")
    u = model.rand(4 * 24, "key points").reshape(4, 24)
    expected = 3 * scene_loss(x_g, y, kind, settings.get("squared", True))
    keys = FEW | {name: value for name, value in settings.items() if name in ("share", "key_share", "neighbours")}
    expected = expected + 2 * keypoint_loss(x_g, y, u, kind, **keys)
    rest = made(scene=0.0, point=0.0, **settings)
    found, without, pull = (
        gradient(*of)
        for of in ((model.student_loss(BATCH), model), (rest.student_loss(BATCH), rest), (expected, model))
    )
    torch.testing.assert_close(found - without, pull, rtol=1e-4, atol=1e-5)
    assert pull.norm() > 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"correspondence": "index"},
        {"squared": False},
        {"key_share": 1.0, "neighbours": 5},
    ],
    ids=str,
)
def test_the_terms_have_their_weights_and_settings(settings):
    check_terms(**settings)


def check_is_dmd():
    """Without weights it is DMD, bit for bit."""
    plain = DMD(teacher())
    for number, role in enumerate((plain.student, plain.fake_score), 1):
        wake(role, number)
    model = made(scene=0.0, point=0.0)
    assert torch.equal(gradient(model.student_loss(BATCH), model), gradient(plain.student_loss(BATCH), plain))
    assert model.fake_score_loss(BATCH) == plain.fake_score_loss(BATCH)


def test_without_its_terms_it_is_dmd():
    check_is_dmd()


def test_the_distillation_term_alone_moves_the_student_and_the_released_one_does_not():
    """Released: `(eps_teacher - eps_fake) (x_t - x_g)`, and in `x_t - x_g` no x_g is left."""
    model = made(scene=0.0, point=0.0)
    assert gradient(model.student_loss(BATCH), model).norm() > 1e-2
    x_g, cond = model.rollout(BATCH, "student")
    x_t, t = model.diffuse(x_g, model.student_times, "student")
    with torch.no_grad():
        difference = model.teacher.denoiser.eps(x_t, t, cond) - model.fake_score.eps(x_t, t, cond)
    released = (difference * (x_t - x_g)).mean()
    assert released.abs() > 1e-4
    found = torch.autograd.grad(released, [*model.student.parameters()], retain_graph=True)
    assert not any(g.any() for g in found)
    assert gradient((difference * x_g).mean(), model).norm() > 1e-4


def test_other_points_are_drawn_in_every_step():
    model = made()
    drawn = [at(model, step).student_loss(BATCH).item() for step in (0, 0, 6)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_it_trains_both_networks_on_data_of_points_and_leaves_the_teacher_as_it_was():
    model = ScoreLiDAR(teacher(), fake_score=Adam(lr=1e-2, updates=2), student=Adam(lr=1e-2), num_steps=1, **FEW)
    before = [copy.deepcopy(part.state_dict()) for part in (model.teacher, model.fake_score, model.student)]
    trainer(max_steps=6).fit(model, Scenes(batch_size=4))
    after = [part.state_dict() for part in (model.teacher, model.fake_score, model.student)]
    assert [same(dict(one), dict(other)) for one, other in zip(before, after, strict=True)] == [True, False, False]
    assert not model.bad_steps.any() and model.product().sample(2, {"scan": BATCH["scan"][:2]}).shape == (2, 24, 3)


# What does not fit


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"scene": -1.0}, r"scene must lie in \[0, 1000\], got -1.0"),
        ({"share": 0.0}, r"share must lie in \(0, 1\], got 0.0"),
        ({"key_share": 1.5}, r"key_share must lie in \(0, 1\], got 1.5"),
        ({"neighbours": 3}, "neighbours must be at least 4, got 3"),
        ({"correspondence": "near"}, "correspondence must be nn or index, got near"),
    ],
)
def test_a_value_out_of_range_is_refused(settings, says):
    with pytest.raises(checks.Unfit, match=says):
        ScoreLiDAR(teacher(), **settings)


def test_data_that_are_no_points_are_refused(monkeypatch):
    monkeypatch.setattr(Scenes, "provides", DistillData.provides)
    with pytest.raises(ValueError, match="ScoreLiDAR needs points, which Teacher and Scenes do not give"):
        trainer(max_steps=1).fit(made(), Scenes())


def test_images_and_chains_are_refused_before_anything_is_built():
    for domain in ("image", "protein", "video"):
        handed = config.hand_over(pairing.pair(domain, "scorelidar"))
        assert gap(handed, imported).startswith("ScoreLiDAR needs points, which ")


# A world whose law is known: one of two wires, whose points are independent draws

NUM, SCALE = 48, torch.tensor([2.0, 0.02, 0.02], dtype=torch.float64)  # points of a set, stds of a wire
TURNS = torch.linalg.qr(torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
MEANS = torch.tensor([[3.0, 0.0, 1.0], [-2.0, 1.0, 0.0]], dtype=torch.float64)
PROCESS = VarianceExploding(0.002, 4.0)


class EachPoint(ExactDenoiser):
    """The exact denoiser of sets of independent points."""

    def forward(self, x_t, t, cond=None):
        of_points = {"label": cond["label"].repeat_interleave(x_t.shape[1])}
        times = self._time(x_t, t).repeat_interleave(x_t.shape[1])
        return super().forward(x_t.flatten(0, 1), times, of_points).unflatten(0, x_t.shape[:2])


def law(means, factors):
    return Mixture(means, factors @ factors.mT + 1e-8 * torch.eye(3), labels=[0, 1])


class Bars(nn.Module):
    """The student: points `mean + A z` of each class."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
        self.factor = nn.Parameter(torch.eye(3, dtype=torch.float64).repeat(2, 1, 1))

    def forward(self, x_t, t, cond):
        z = x_t / PROCESS.sigma(t)
        return self.mean[cond["label"]][:, None] + z.double() @ self.factor[cond["label"]].mT


def settled(kind, steps=150, **settings):
    """The student after training; the fake score has always learnt it as it is."""
    truth = law(MEANS, TURNS * SCALE)
    bars = ExactTeacher(truth, PROCESS, (NUM, 3), {"label": 2})
    bars.denoiser = EachPoint(truth, PROCESS, "label")
    small = {"normalise": None, "student_times": LogNormal(-0.5, 1.0), "student_maker": Fresh(Seen())}
    model = kind(bars, **small, **settings)
    model.student, label = Bars(), torch.arange(8) % 2
    optimiser = torch.optim.Adam(model.student.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, steps)
    for step in range(steps):
        z = torch.randn(8, NUM, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        data = MEANS[label][:, None] + z @ (TURNS * SCALE)[label].mT
        model.fake_score = EachPoint(law(model.student.mean.detach(), model.student.factor.detach()), PROCESS, "label")
        loss = at(model, step).student_loss({"data": data, "label": label})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.student


def errors(student):
    """The largest error of the means, and the stds along the wires' axes, in metres."""
    with torch.no_grad():
        covariance = TURNS.mT @ student.factor @ student.factor.mT @ TURNS
        return (student.mean - MEANS).norm(dim=1).max().item(), covariance.diagonal(dim1=1, dim2=2).sqrt()


def test_dmd_alone_reaches_the_law():
    mean, stds = errors(settled(DMD))
    assert mean < 0.02 and (stds / SCALE - 1).abs()[:, 0].max() < 0.02 and (stds - SCALE).abs().max() < 0.02


def check_settles():
    """All but its width, which is less than the true points are apart: they are averaged there."""
    mean, stds = errors(settled(ScoreLiDAR, **FEW))
    assert mean < 0.05 and (stds / SCALE - 1).abs()[:, 0].max() < 0.05 and (stds[:, 1:] < 0.03).all()


def test_with_its_terms_it_reaches_the_wires():
    check_settles()


def test_by_index_the_wires_collapse():
    """The released correspondence leaves a tenth of their length."""
    _, stds = errors(settled(ScoreLiDAR, correspondence="index", **FEW))
    assert (stds[:, 0] < 0.2 * SCALE[0]).all()


# Each fault must be noticed

MUTATIONS = [
    (ScoreLiDAR.student_loss, "no matching", "loss = self.matching(x_g, cond)", "loss = 0 * x_g.sum()", check_is_dmd),
    (ScoreLiDAR.student_loss, "the scene's weight left out", "self.scene * scene_loss", "scene_loss", check_terms),
    (ScoreLiDAR.student_loss, "the point's weight left out", "self.point * keypoint_loss", "keypoint_loss", check_terms),
    (ScoreLiDAR.student_loss, "the scene's weight for the points", "self.point * keypoint_loss", "self.scene * keypoint_loss", check_terms),
    (ScoreLiDAR.student_loss, "the scene taken away", "loss + self.scene", "loss - self.scene", check_terms),
    (ScoreLiDAR.student_loss, "data that are not encoded", "self.teacher.codec.encode(batch)", 'batch["data"]', check_terms),
    (ScoreLiDAR.student_loss, "another scan's truth", "self.teacher.codec.encode(batch)", "self.teacher.codec.encode(batch).flip(0)", check_terms),
    (ScoreLiDAR.student_loss, "always nn", "y, self.correspondence, self.squared", 'y, "nn", self.squared', lambda: check_terms(correspondence="index")),
    (ScoreLiDAR.student_loss, "key points always nn", "u, self.correspondence", 'u, "nn"', lambda: check_terms(correspondence="index")),
    (ScoreLiDAR.student_loss, "always squared", "self.correspondence, self.squared", "self.correspondence, True", lambda: check_terms(squared=False)),
    (ScoreLiDAR.student_loss, "the published key points alone", "**self.keys, ", "", check_terms),
    (ScoreLiDAR.student_loss, "the samples stopped", "scene_loss(x_g,", "scene_loss(x_g.detach() + 0 * x_g,", check_terms),
]  # fmt: skip


@pytest.mark.parametrize("mutation", [Mutation(says, function, *rest) for function, says, *rest in MUTATIONS], ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)
