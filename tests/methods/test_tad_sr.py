"""TAD-SR's terms in closed form: what moves the student, at which levels, and who learns when."""

# ruff: noqa: E501 (a fault is a row of a table)

from functools import partial

import pytest
import torch
from helpers import BATCH, CLASSES, PROCESSES, Affine, Line, f64, gaussian, neural, trainer, wake
from helpers import Pairs as Points
from jsonargparse import ArgumentParser
from methods import test_sets
from methods.test_pairs import Jump
from mutations import Mutation, prove

from distillkit import checks
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.guidance import guided
from distillkit.diffusion.process import ResShift, VarianceExploding
from distillkit.methods.adversarial import Discriminator
from distillkit.methods.tad_sr import TADSR
from distillkit.networks.dit import DiT
from distillkit.networks.mlp import MLP
from distillkit.networks.unet import UNet
from distillkit.students.makers import Fresh
from distillkit.teachers.base import Teacher

M, S, RATIO = 0.3, 0.5, 0.9
Z = f64(1.0, -1.0)[:, None]  # has the first two moments of unit noise
VE = PROCESSES["ve"]
ALONE = {"regression": 0.0, "delta": 0.0, "gan": 0.0}


def on_a_line(mu, s, process=VE, **settings):
    """A student `mu + s z` of the teacher N(M, S^2), whose pairs are `M + S z`; one low level."""
    model = TADSR(gaussian(M, S, process), student_maker=Fresh(MLP([1], width=8, depth=1)), **(ALONE | settings))
    line = Line(mu, s)
    model.student, model.low = Jump(line, process), process.from_ratio(f64(RATIO))
    model.pairs.random = lambda num, generator: (Z, M + S * Z, {})
    return model, line


def loss_of(model):
    return model.student_loss({"data": torch.zeros(2, 1)})


GAINS = {"noise": RATIO / (S**2 + RATIO**2), "sample": S**2 / (S**2 + RATIO**2)}  # alpha sigma / V, alpha^2 S^2 / V


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("compared", GAINS)
def test_the_delta_score_in_closed_form(compared, process):
    """`g = a (x_g - y)`, the same for all noise; x_g - y has moments 0.2 and -0.1."""
    model, line = on_a_line(M + 0.2, S - 0.1, process, delta=3.0, compared=compared)
    gain = GAINS[compared]
    for seed in range(3):
        model.seed = seed
        loss = loss_of(model)
        assert loss.item() == pytest.approx(3 * 0.5 * gain**2 * (0.2**2 + 0.1**2), rel=1e-4)
        assert line.gradient(loss) == pytest.approx([3 * gain * 0.2, -3 * gain * 0.1], rel=1e-4)


def test_the_regression_has_its_weight():
    model, line = on_a_line(M + 0.2, S - 0.1, regression=3.0)
    assert line.gradient(loss_of(model)) == pytest.approx([3 * 2 * 0.2, -3 * 2 * 0.1])


@pytest.mark.parametrize("compared", GAINS)
@pytest.mark.parametrize("normalise", [None, "sample", "batch"])
def test_the_pair_map_is_the_fixed_point(normalise, compared):
    for sign in (1.0, 0.0, -1.0):
        terms = {"regression": 1.0, "delta": 1.0, "normalise": normalise, "compared": compared}
        model, line = on_a_line(M + 0.2 * sign, S * 1.3**sign, **terms)
        found = line.gradient(loss_of(model))
        assert all(sign * g > 0.05 for g in found) if sign else found == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("compared", GAINS)
def test_a_sample_that_is_the_teachers_is_left_exactly_alone(compared):
    """Whatever a teacher that has learnt nothing says of it."""
    model = TADSR(neural(), gan=0.0, compared=compared)
    x_g, cond = BATCH["data"].clone().requires_grad_(), {"label": BATCH["label"]}
    loss = model.delta_term(x_g, BATCH["data"], cond)
    assert loss.item() == 0 and not torch.autograd.grad(loss, x_g)[0].any()


@pytest.mark.parametrize("over", ["sample", "batch"])
def test_the_delta_score_is_divided_by_the_distance_to_the_teacher(over):
    model, plain = (TADSR(neural(), gan=0.0, compared="sample", normalise=n) for n in (over, None))
    model.seed = plain.seed = 3
    x_g, y, cond = BATCH["data"].clone().requires_grad_(), BATCH["data"] * 1.5, {"label": BATCH["label"]}
    said, calls = [], model.teacher.denoiser.forward
    model.teacher.denoiser.forward = lambda *args: said.append(calls(*args)) or said[-1]
    found, without = (torch.autograd.grad(m.delta_term(x_g, y, cond), x_g)[0] for m in (model, plain))
    distance = (x_g - said[0][:8]).abs().detach()
    scale = distance.mean(1, keepdim=True) if over == "sample" else distance.mean()
    torch.testing.assert_close(found * scale, without)


def heard(model, method="forward"):
    """The arguments of the calls of the teacher's denoiser, from now on."""
    calls, plain = [], getattr(model.teacher.denoiser, method)
    setattr(model.teacher.denoiser, method, lambda *args: calls.append(args) or plain(*args))
    return calls


def test_both_samples_go_through_the_teacher_in_one_call_under_one_noise():
    model = TADSR(neural(), gan=0.0)
    model.low, calls = f64(0.5, 0.1), heard(model)
    x_g, y = BATCH["data"].clone().requires_grad_(), -BATCH["data"]
    model.delta_term(x_g, y, {"label": BATCH["label"]})
    ((x_t, t, cond),) = calls
    assert torch.equal(t[:8], t[8:]) and set(t.tolist()) == {0.5, 0.10000000149011612}
    assert torch.equal(cond["label"], BATCH["label"].repeat(2)) and not x_t.requires_grad
    torch.testing.assert_close(x_t[:8] - x_t[8:], (x_g - y).detach(), rtol=0, atol=1e-6)
    eps = (x_t[:8] - x_g.detach()) / t[:8, None]
    assert 0.6 < eps.std() < 1.4 and abs(eps.mean()) < 0.6


def test_a_guided_teacher_is_asked_with_guidance():
    model = TADSR(neural(), gan=0.0, kappa=3.0, compared="sample")
    cond, x_g, y = {"label": BATCH["label"]}, BATCH["data"].clone().requires_grad_(), -BATCH["data"]
    calls = heard(model)
    found = torch.autograd.grad(model.delta_term(x_g, y, cond), x_g)[0]
    (x_t, t, _), teacher = calls[0], model.teacher
    x_t, t = x_t[:16], t[:16]  # the second half is without condition
    twice = {"label": BATCH["label"].repeat(2)}
    moved, still = guided(teacher.denoiser, x_t, t, twice, teacher.null_condition(twice), 3.0).chunk(2)
    torch.testing.assert_close(found, (moved - still) / 16)


def test_the_levels_are_the_least_noisy_of_the_teachers_sampler():
    """Of ResShift's 15 levels the published three; the discriminator sees all but the first."""
    teacher = neural(ResShift())
    teacher.best = {"solver": "resshift", "steps": 15}
    model = TADSR(teacher)
    assert model.low.square().tolist() == pytest.approx([0.0311, 0.0137, 0.0004], abs=5e-5)
    assert torch.equal(model.judged, teacher.grid(15)[1:])
    for share, num in ((1e-3, 1), (0.5, 8), (1.0, 15)):
        assert torch.equal(TADSR(teacher, share=share).low, teacher.grid(15)[-num:])
    assert len(TADSR(teacher, steps=4).judged) == 3 and len(TADSR(teacher, steps=1).judged) == 1


def test_every_level_is_drawn_and_no_other():
    model = TADSR(neural(), steps=5)
    for levels in (model.low, model.judged):
        _, t = model.diffuse("levels", levels, torch.zeros(400, 2))
        assert set(t.tolist()) == set(levels.float().tolist())


# The discriminator


IMAGES = {"data": torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(5)), "label": torch.arange(6) % 2}


def made(teacher=None, **settings):
    """A model of a small transformer, awake, with random pairs."""
    if teacher is None:
        network = wake(DiT([1, 4, 4], width=8, depth=3, heads=2, classes=CLASSES))
        teacher = Teacher(Denoiser(network, VarianceExploding(), "edm", 0.5), (1, 4, 4), CLASSES)
    model = TADSR(teacher, **settings)
    model.seed = 7
    wake(model.student, 1)
    if model.gan:
        wake(model.heads, 3)
    z, y = (torch.randn(6, *teacher.event_shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    model.pairs.random = lambda num, generator: (z, y, {"label": IMAGES["label"].flip(0)})
    return model


def grads(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)


@pytest.mark.parametrize("settings", [{}, {"discriminator": Discriminator(taps="teacher", r1=0.3)}], ids=str)
def test_each_role_learns_in_its_own_turn_and_the_teacher_never(settings):
    model = made(**settings)
    everyone = dict(model.named_parameters())
    assert [model.turn(step) for step in range(3)] == ["student", "heads", "student"]
    for role in model.roles:
        model.zero_grad(set_to_none=True)
        model.focus(role)
        getattr(model, f"{role}_loss")(IMAGES).backward()
        moved = {key.split(".")[0] for key, p in everyone.items() if p.grad is not None}
        assert moved == {role} and all(p.grad.isfinite().all() for p in model.role_parameters(role))
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_the_students_term_is_the_hinge_of_its_noised_samples():
    """It adds, with weight and sign, a gradient through the teacher's features to x_g."""
    model, none = made(gan=0.5), made(gan=0.0)
    x_g, _, cond = model.paired(IMAGES)
    x_t, t = model.diffuse("student gan", model.judged, x_g)
    features = model.teacher.denoiser.features(x_t, t, cond, [0, 1])
    time = model.teacher.process.network_time(t)
    expected = -0.5 * torch.stack([head(h, time) for head, h in zip(model.heads, features, strict=True)]).mean()
    found = model.student_loss(IMAGES) - none.student_loss(IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with_gan, without = (grads(m.student_loss(IMAGES), m.student) for m in (model, none))
    theirs = [a - b for a, b in zip(with_gan, without, strict=True)]
    torch.testing.assert_close(theirs, list(grads(expected, model.student)), rtol=1e-3, atol=1e-5)
    assert max(g.abs().max() for g in theirs) > 1e-3


def test_the_heads_tell_the_data_from_the_student_at_one_level_under_one_noise():
    model = made(teacher=neural(codec=Affine()))
    batch = {"data": torch.randn(6, 2, 1, generator=torch.Generator().manual_seed(8)), "label": IMAGES["label"]}
    calls = heard(model, "features")
    loss = model.heads_loss(batch)
    (x_g, t, cond, layers), (x_0, s, other, _) = calls
    assert torch.equal(t, s) and cond is other and torch.equal(cond["label"], batch["label"])
    assert not x_g.requires_grad
    noise = model.randn((6, 2), "heads")
    jump = model.student(noise * model.step_times[0].float(), model.step_times[0], cond)
    torch.testing.assert_close(x_0 - x_g, (model.teacher.codec.encode(batch) - jump).detach(), rtol=1e-4, atol=1e-4)
    fake, real = (
        torch.stack([head(h, t.log() / 4) for head, h in zip(model.heads, features, strict=True)])
        for features in (model.teacher.denoiser.network.features(x / (1 + t[:, None] ** 2) ** 0.5, t.log() / 4, cond, layers) for x in (x_g, x_0))
    )  # fmt: skip
    torch.testing.assert_close(loss, (1 + fake).relu().mean() + (1 - real).relu().mean(), rtol=1e-4, atol=1e-5)


def test_the_penalty_is_added(monkeypatch):
    plain, model = made(), made(discriminator=Discriminator(taps="teacher", timed=True, loss="hinge", r1=0.3))
    monkeypatch.setattr(Discriminator, "penalised", lambda self, *args: (self.logits(*args), 5.0))
    torch.testing.assert_close(model.heads_loss(IMAGES), plain.heads_loss(IMAGES) + 5)


def test_the_heads_are_told_the_level():
    """The same features have other logits at another level."""
    model, features = made(), torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(0))
    low, high = torch.full((5,), 0.1), torch.full((5,), 0.9)
    assert all(not torch.allclose(head(features, low), head(features, high)) for head in model.heads)


def test_a_head_looks_at_each_block_down_to_the_middle():
    """Of a U-Net these are its encoder and middle; other layers can be named."""
    network = UNet([1, 8, 8], channels=8)
    model = TADSR(Teacher(Denoiser(network, VarianceExploding()), (1, 8, 8)))
    assert model.discriminator.layers == [*range(network.feature_layer + 1)] and len(model.heads) > 2
    assert made().discriminator == Discriminator(taps="teacher", layers=[0, 1], timed=True, loss="hinge")
    chosen = made(discriminator=Discriminator(taps="teacher", layers=[2]))
    assert chosen.discriminator.layers == [2] and len(chosen.heads) == 1
    network = test_sets.DeepSet()
    network.feature_channels = 8  # gives the features in its middle alone
    model = TADSR(Teacher(Denoiser(network, VarianceExploding()), (6, 2), context=("place", "mask")))
    assert model.discriminator.layers is None and len(model.heads) == 1


def test_without_weight_there_are_no_heads_and_nothing_is_asked_of_the_data():
    assert list(TADSR(neural(), gan=0.0).roles) == ["student"] and not hasattr(TADSR(neural(), gan=0.0), "heads")
    assert TADSR.needs({}) == TADSR.needs({"gan": 0.1}) == {"denoiser", "data", "features"} == TADSR(neural()).requires
    assert TADSR.needs({"gan": 0}) == {"denoiser"} == TADSR(neural(), gan=0.0).requires


def test_a_run_that_was_cut_goes_on_bit_for_bit(tmp_path):
    """Between the student's turn and that of the heads."""

    def run(steps, ckpt_path=None):
        torch.manual_seed(0)
        model, made = TADSR(neural(), num_pairs=16, steps=3, schedule="constant"), trainer(steps)
        made.fit(model, Points(batch_size=8), ckpt_path=ckpt_path, weights_only=bool(ckpt_path))
        return made, {key: value.clone() for key, value in model.state_dict().items()}

    whole = run(6)[1]
    half = run(3)
    half[0].save_checkpoint(tmp_path / "cut.ckpt")
    again = run(6, tmp_path / "cut.ckpt")[1]
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    assert any(not torch.equal(value, half[1][key]) for key, value in whole.items() if key.startswith("heads"))


def test_who_names_the_layers_keeps_the_other_defaults():
    """From the command line, where a part of a group of settings is given."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TADSR, "model", skip={"teacher", "student_maker"})
    given = parser.parse_object({"model": {"discriminator": {"layers": [0]}, "heads": {"updates": 2}}}).model
    assert Discriminator(**vars(given.discriminator)) == Discriminator("teacher", [0], timed=True, loss="hinge")
    assert (given.heads.lr, given.heads.updates) == (5e-5, 2)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="give model.regression, delta or gan a weight"):
        TADSR(neural(), **ALONE)
    with pytest.raises(ValueError, match="set model.discriminator.taps=teacher"):
        TADSR(neural(), discriminator=Discriminator())
    with pytest.raises(checks.Unfit, match="compared must be noise or sample, got score"):
        TADSR(neural(), compared="score")
    for wrong in ({"share": 0.0}, {"share": 1.1}, {"delta": -1.0}, {"gan": float("nan")}):
        with pytest.raises(checks.Unfit, match=next(iter(wrong))):
            TADSR(neural(), **wrong)
    with pytest.raises(ValueError, match="need model.num_steps=1, got 2"):
        TADSR(neural(), num_steps=2)


closed, samples = (partial(test_the_delta_score_in_closed_form, compared, VE) for compared in GAINS)
one, levels = (
    test_both_samples_go_through_the_teacher_in_one_call_under_one_noise,
    test_the_levels_are_the_least_noisy_of_the_teachers_sampler,
)
term, told = test_the_students_term_is_the_hinge_of_its_noised_samples, test_a_guided_teacher_is_asked_with_guidance
apart = test_the_heads_tell_the_data_from_the_student_at_one_level_under_one_noise
over = {
    name: partial(test_the_delta_score_is_divided_by_the_distance_to_the_teacher, name) for name in ("sample", "batch")
}
sets = partial(test_sets.test_sets_padded_further_have_the_same_loss, "delta score over the batch")


def with_heads(test):
    """A test that asks for `monkeypatch`, which is undone when it ends."""

    def check():
        with pytest.MonkeyPatch.context() as monkeypatch:
            test(monkeypatch)

    return check


DELTA = [
    ("away from the teacher's sample", "moved, still = said", "still, moved = said", closed),
    ("the ratio left out", " / expand(teacher.process.ratio(t), x)", "", closed),
    ("the ratio squared", "expand(teacher.process.ratio(t), x)", "expand(teacher.process.ratio(t), x) ** 2", closed),
    ("samples for noises", 'if self.compared == "noise"', "if False", closed),
    ("noises for samples", 'if self.compared == "noise"', "if True", samples),
    ("gradient through the teacher", "torch.no_grad()", "torch.enable_grad()", one),
    ("the discriminator's levels", "self.low", "self.judged", one),
    ("the teacher not guided", "self.kappa)", "1.0)", told),
    ("kappa off by one", "self.kappa)", "self.kappa + 1)", told),
    ("no normaliser", "if self.normalise else", "if False else", over["sample"]),
    ("the normaliser of the teacher's sample", "said[: len(x_g)]", "said[len(x_g) :]", over["batch"]),
    ("each sample for the batch", "real, self.normalise", "real, 'sample'", over["batch"]),
    ("the mask not handed on", "scale, mask)", "scale)", sets),
    ("the mask not in the normaliser", "self.normalise, mask)", "self.normalise)", sets),
]
STUDENT = [
    ("the regression's weight left out", "self.regression * ", "", test_the_regression_has_its_weight),
    ("the delta score's weight left out", "self.delta * ", "", closed),
    ("the delta score's weight squared", "self.delta * ", "self.delta**2 * ", closed),
    ("the delta score from the data", "delta_term(x_g, y,", 'delta_term(x_g, batch["data"],', closed),
    ("the adversarial weight left out", "self.gan * ", "", term),
    ("the samples stopped", "self.judged, x_g)", "self.judged, x_g.detach())", term),
    ("the low levels", "self.judged", "self.low", term),
    ("the teacher's sample judged", "self.judged, x_g)", "self.judged, y)", term),
]
HEADS = [
    ("real and fake swapped", "discriminator_loss(fake, real)", "discriminator_loss(real, fake)", apart),
    ("the student's samples with gradient", "torch.no_grad()", "torch.enable_grad()", apart),
    ("the data not encoded", "teacher.codec.encode(batch)", 'batch["data"][..., 0]', apart),
    ("fake samples for real ones", "self.judged, x_g, x_0)", "self.judged, x_g, x_g)", apart),
    ("no penalty", " + penalty", "", with_heads(test_the_penalty_is_added)),
]
MUTATIONS = [
    *(Mutation(says, TADSR.delta_term, *rest) for says, *rest in DELTA),
    *(Mutation(says, TADSR.student_loss, *rest) for says, *rest in STUDENT),
    *(Mutation(says, TADSR.heads_loss, *rest) for says, *rest in HEADS),
    Mutation("one level more", TADSR.__init__, "round(share * len(levels))", "round(share * len(levels)) + 1", levels),
    Mutation("the first level judged", TADSR.__init__, "levels[min(1, len(levels) - 1) :]", "levels", levels),
    Mutation("other noise for either", TADSR.diffuse, "add_noise(x, eps, t)", "add_noise(x, self.randn(x.shape, str(x.sum())), t)", one),
    Mutation("no level is the last", TADSR.diffuse, "* len(levels))", "* (len(levels) - 1))", test_every_level_is_drawn_and_no_other),
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)
