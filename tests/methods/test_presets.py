"""Methods that are another one with other settings: what each of them claims beyond its class."""

from functools import partial

import pytest
import torch
from helpers import CLASSES, Line, at
from torch import nn

from distillkit.diffusion.hops import Grid
from distillkit.diffusion.process import VarianceExploding
from distillkit.diffusion.times import LogNormal
from distillkit.methods.dmd import DMD
from distillkit.networks.adapters import Adapters
from distillkit.networks.routed import Routed
from distillkit.teachers.exact import ExactTeacher, Mixture
from tests.battery.conftest import DOMAINS, TINY, build, compose, goes, made_of
from tests.mutations import Mutation, prove

# SwiftBrush


class Modes(nn.Module):
    """Each class's own Gaussian, exactly, shifted."""

    def __init__(self, teacher, t):
        super().__init__()
        law, self.t = teacher.mixture, t
        self.means, self.std = law.means.float(), law.variances[0, 0].sqrt().float()
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, x_t, t, cond):
        return self.means[cond["label"]] + self.std * x_t / self.t + self.shift


def swiftbrush(*words):
    """The preset with exact parts on modes as classes; the gradient of the student's shift."""
    made = build("domain=toy", "method=swiftbrush", "teacher=labelled", "model.kappa=4.5", *TINY, *words).model
    made.student = Modes(made.teacher, float(made.step_times[0]))
    made.fake_score = made.teacher.denoiser
    loss = at(made).student_loss({"data": torch.zeros(512, 2), "label": torch.arange(512) % 8})
    return made, torch.autograd.grad(loss, made.student.shift)[0]


def test_swiftbrush_is_dmd_with_guided_adapters_and_no_normaliser():
    model = build("domain=image", "method=swiftbrush").model
    assert isinstance(model, DMD) and isinstance(model.fake_score.network, Adapters)
    assert not isinstance(model.student.network, Adapters)
    assert (model.guide_fake, model.weight, model.normalise, model.gan) == (True, "sigma_alpha", None, 0)


def test_swiftbrush_rests_at_the_unguided_teacher_and_only_because_both_are_guided():
    assert not swiftbrush()[1].any()
    assert swiftbrush("model.guide_fake=false")[1].abs().max() > 1e-3


# MSD: K classes, of which each is a Gaussian of its own

MEANS, STDS = (1.0, -1.0), (0.4, 1.2)


class Part(nn.Module):
    """An affine student of unit noise, as a part of a network."""

    def __init__(self):
        super().__init__()
        self.line = Line(0.0, 0.8)

    def forward(self, x, time, cond):
        return self.line(x)


class Affine(nn.Module):
    """One affine part for each class, or one for all."""

    def __init__(self, parts: int, sigma: float):
        super().__init__()
        self.sigma = sigma
        self.network = Routed([Part() for _ in range(parts)], by="label", owner=[0, 1] if parts == 2 else [0, 0])

    def forward(self, x, t, cond):
        return self.network(x / self.sigma, t.expand(len(x)), cond)

    def law(self):
        """Mean and std that each class has, [2] each."""
        lines = [self.network.parts[k].line for k in self.network.owner[:2]]
        return [line.mu.item() for line in lines], [line.s.item() for line in lines]


def law(means, stds):
    mixture = Mixture([[m] for m in means], [[[s**2]] for s in stds], labels=[0, 1])
    return ExactTeacher(mixture, VarianceExploding(), classes=CLASSES)


def pulls(model, label, step=0):
    """The gradient of the student's parameters where the fake score has learnt it as it is."""
    model.fake_score = law(*model.student.law()).denoiser
    loss = at(model, step).student_loss({"data": torch.zeros(len(label), 1), "label": label})
    parameters = [*model.student.parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)  # a part without rows is not called
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("parts", [2, 1])
def test_students_with_a_class_each_reach_what_one_for_all_cannot(parts):
    model = DMD(law(MEANS, STDS), normalise=None, student_times=LogNormal(0.0, 1.0))
    model.student = Affine(parts, float(model.step_times[0]))
    label = torch.arange(256) % 2
    optimiser = torch.optim.Adam(model.student.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, 300)
    for step in range(300):
        for parameter, gradient in zip(model.student.parameters(), pulls(model, label, step), strict=True):
            parameter.grad = gradient
        optimiser.step()
        schedule.step()
    means, stds = model.student.law()
    alone = [torch.stack(pulls(model, torch.full((4096,), k))).view(-1, 2)[k % parts] for k in (0, 1)]
    if parts == 2:
        assert means == pytest.approx(MEANS, abs=0.02) and stds == pytest.approx(STDS, abs=0.02)
        assert max(float(pull.abs().max()) for pull in alone) < 0.01
    else:  # at rest on average, and each class pulls its own way
        assert float((alone[0] + alone[1]).abs().max()) < 0.05
        assert min(float(pull[0].abs()) for pull in alone) > 0.2 and alone[0][0] * alone[1][0] < 0


def test_msd_shares_the_classes_among_networks_and_has_one_fake_score():
    model = build("domain=image", "method=msd", "student.parts=5").model
    assert model.student.network.owner.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0]
    sizes = [sum(p.numel() for p in one.parameters()) for one in (model.student, model.fake_score)]
    assert sizes[0] == 5 * sizes[1]


# The presets of consistency


FAMILY = {  # where hops go, and the numbers of segments
    "consistency": ("edge", [1]),
    "consistency_training": ("edge", [1]),
    "ict": ("edge", [1]),
    "ect": ("edge", [1]),
    "lcm": ("edge", [1]),
    "hyper_sd": ("edge", [8, 4, 2, 1]),
    "pcm": ("edge", [8]),
    "ctm": ("any", [1]),
    "tcd": ("any", [1]),
}


def consistent(*words):
    return made_of(compose(*words), "model").model


CONTINUOUS = sorted(set(DOMAINS) - {"toy", "discrete", "text_to_3d"})  # few of them go in the last
QUICK = "protein"  # the others take several seconds each


@pytest.mark.parametrize(
    "domain", [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONTINUOUS]
)
def test_presets_of_consistency_stay_themselves_under_the_recipes_of_a_domain(domain):
    """A recipe comes after the method, and a preset without one takes that of consistency."""
    going = [method for method in FAMILY if goes(domain, method)]
    assert len(going) >= 6
    for method in going:
        model = consistent(f"domain={domain}", f"method={method}")
        assert (model.ends, model.parts) == FAMILY[method], method
        assert (model.hop == "data") == (method in ("consistency_training", "ict", "ect")), method


@pytest.mark.parametrize("domain", CONTINUOUS)
def test_consistency_training_goes_along_the_data_in_every_domain(domain):
    """Whatever the recipe of consistency says: it would be distillation otherwise."""
    for method in ("consistency_training", "ict", "ect"):
        assert compose(f"domain={domain}", f"method={method}")["model"]["init_args"]["hop"] == "data", method


def at_the_datum(hops, process, start, done):
    """The share of hops that end there."""
    u = (torch.arange(10_000) + 0.5) / 10_000
    return float((hops(u, process, start, done)[1] < 0).float().mean())


X_0 = [("threed", "structure"), ("threed", "features"), ("video", "clip"), ("video", "continuation")]
X_0 += [("super_resolution", None)]


@pytest.mark.parametrize("domain,stage", X_0)
def test_students_that_predict_x_0_are_tied_to_the_datum(domain, stage):
    """Over their own grid's share, by the levels that the recipe says: at least a tenth."""
    model = consistent(f"domain={domain}", *([f"stage={stage}"] if stage else []), "method=consistency")
    assert model.student.prediction == "x0" and model.hops.last >= 16
    for done in (0.0, 0.999):
        assert at_the_datum(model.hops, model.teacher.process, model.top, done) > 0.1
    plain = Grid(model.hops.num, model.hops.last, True)
    assert at_the_datum(plain, model.teacher.process, model.top, 0.999) < 0.1


@pytest.mark.parametrize(
    "old,new", [("self.times is None", "True"), ("clamp(1, num)", "clamp(2, num)")], ids=["levels ignored", "no datum"]
)
def test_the_tie_would_be_missed(old, new):
    prove(Mutation("", Grid.__call__, old, new, partial(test_students_that_predict_x_0_are_tied_to_the_datum, *X_0[0])))
