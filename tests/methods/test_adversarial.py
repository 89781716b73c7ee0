"""The discriminator that methods share: its features, who learns from it, its gradient penalty."""

import pytest
import torch
from helpers import CLASSES, UNMEASURED, wake
from torch import nn

from distillkit import checks
from distillkit.cli import front
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding
from distillkit.losses.gan import r1_penalty
from distillkit.methods.adversarial import Discriminator
from distillkit.methods.dmd import DMD
from distillkit.networks.blocks import sinusoids
from distillkit.networks.dit import DiT
from distillkit.networks.heads import Head
from distillkit.networks.mlp import MLP
from distillkit.networks.pair_transformer import PairTransformer
from distillkit.students.makers import Fresh
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactTeacher, Mixture

BATCH = {"data": torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(5)), "label": torch.arange(6) % 2}


def teacher() -> Teacher:
    network = wake(DiT([1, 4, 4], width=8, depth=3, heads=2, classes=CLASSES))
    return Teacher(Denoiser(network, VarianceExploding(), "edm", 0.5), (1, 4, 4), CLASSES)


def made(gan=0.5, **settings) -> DMD:
    model = DMD(teacher(), gan=gan, gan_discriminator=0.25, discriminator=Discriminator(**settings))
    wake(model.student, 1), wake(model.fake_score, 2), wake(model.heads, 3)
    model.seed = 7
    return model


def grads(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, retain_graph=True)


SETTINGS = [
    {},
    {"layers": [0, 2], "loss": "hinge", "timed": True},
    {"taps": "teacher", "layers": [2, 0]},
    {"r1": 0.3},
    {"taps": "teacher", "layers": [0, 1], "r1": 0.3, "r1_on": "features", "timed": True},
    {"taps": "teacher", "r1": 0.3, "loss": "hinge"},
    {"r1": 0.3, "r1_on": "features"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_heads_learn_in_the_fake_scores_turn_and_the_student_in_its_own(settings):
    """With gradient to nobody else: the teacher is no more than looked through."""
    model = made(**settings)
    everyone = dict(model.named_parameters())
    for role in model.roles:
        model.zero_grad(set_to_none=True)
        model.focus(role)
        getattr(model, f"{role}_loss")(BATCH).backward()
        own = {id(p) for p in model.role_parameters(role)}
        assert {id(p) for p in everyone.values() if p.grad is not None} <= own
        moved = {key.split(".")[0] for key, p in everyone.items() if p.grad is not None and p.grad.any()}
        assert moved == ({"student"} if role == "student" else {"fake_score", "heads"})
    assert not any(p.requires_grad for p in model.teacher.parameters())


@pytest.mark.parametrize("taps", ["fake_score", "teacher"])
def test_from_which_term_the_fake_score_learns(taps):
    """The discriminator's loss trains the heads, and the fake score if its features are tapped."""
    model = made(taps=taps)
    x_g, cond = model.rollout(BATCH, "fake")
    model.focus("fake_score")
    loss = model.heads_loss(x_g.detach(), cond, BATCH)
    assert any(g is not None and g.any() for g in grads(loss, model.fake_score)) == (taps == "fake_score")
    assert all(g is not None and g.any() for g in grads(loss, model.heads))


@pytest.mark.parametrize("taps", ["fake_score", "teacher"])
@pytest.mark.parametrize("loss", ["softplus", "hinge"])
def test_the_students_term_is_the_generators_loss_at_its_samples(taps, loss):
    """The term adds, with its weight and sign, a gradient through the tapped network to x_g."""
    model, none = made(taps=taps, loss=loss), made(gan=1e-9, taps=taps, loss=loss)
    x_g, cond = model.rollout(BATCH, "student")
    x_t, t = model.diffuse(x_g, model.fake_times, "student gan")
    tapped = model.teacher.denoiser if taps == "teacher" else model.fake_score
    logits = model.heads[0](tapped.features(x_t, t, cond), t)
    expected = 0.5 * (-logits if loss == "hinge" else nn.functional.softplus(-logits)).mean()
    found = model.student_loss(BATCH) - none.student_loss(BATCH)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    theirs = [
        a - b
        for a, b in zip(
            grads(model.student_loss(BATCH), model.student), grads(none.student_loss(BATCH), none.student), strict=True
        )
    ]
    torch.testing.assert_close(theirs, list(grads(expected, model.student)), rtol=1e-3, atol=1e-6)
    assert max(g.abs().max() for g in theirs) > 1e-3


def test_the_default_is_one_plain_head_on_the_middle_of_the_fake_score():
    model = made()
    assert [set(model.heads.state_dict())] == [
        {f"0.layers.{i}.{name}" for i in (0, 1, 3) for name in ("weight", "bias")}
    ]
    x, t, cond = BATCH["data"], torch.full((6,), 0.7), {"label": BATCH["label"]}
    logits = model.discriminator.logits(model.heads, model.tapped, x, t, cond)
    assert logits.shape == (6, 1)
    assert torch.equal(logits[:, 0], model.heads[0].layers(model.fake_score.features(x, t, cond).mT).mean((1, 2)))


def test_one_head_looks_at_each_of_the_layers_in_their_order():
    model = made(layers=[2, 0], taps="teacher")
    x, t, cond = BATCH["data"], torch.full((6,), 0.7), {"label": BATCH["label"]}
    logits = model.discriminator.logits(model.heads, model.tapped, x, t, cond)
    features = model.teacher.denoiser.features(x, t, cond, [2, 0])
    expected = [head(h, t) for head, h in zip(model.heads, features, strict=True)]
    assert torch.equal(logits, torch.stack(expected, 1)) and not torch.allclose(expected[0], expected[1])


@pytest.mark.parametrize("settings", [{}, {"layers": [0, 1], "timed": True}, {"r1": 1.0}], ids=str)
def test_padding_changes_no_logit_of_a_set(settings):
    """A chain of 5 in a batch with one of 9 is judged as it is alone."""
    network = wake(PairTransformer([9, 3], width=8, depth=2, heads=2, pair=4))
    tapped, told = Denoiser(network, RectifiedFlow(), "flow"), Discriminator(**settings)
    heads, generator = wake(told.heads(tapped), 3), torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 9, 3, generator=generator), torch.tensor([0.3, 0.6])
    mask = torch.arange(9) < torch.tensor([[5], [9]])

    def judged(x, t, mask):
        if told.r1:
            return told.penalised(heads, tapped, x, t, {"mask": mask})[0]
        return told.logits(heads, tapped, x, t, {"mask": mask})

    both = judged(x, t, mask)
    torch.testing.assert_close(both[:1], judged(x[:1, :5], t[:1], mask[:1, :5]))
    torch.testing.assert_close(both[1:], judged(x[1:], t[1:], mask[1:]))


def test_heads_that_are_told_the_level_begin_as_those_that_are_not():
    torch.manual_seed(0)
    plain = Head(8)
    torch.manual_seed(0)
    timed = Head(8, timed=True)
    features, low, high = torch.randn(5, 8, 3), torch.full((5,), 0.1), torch.full((5,), 0.9)
    assert torch.equal(plain(features, low), timed(features, low)) and torch.equal(
        plain(features, low), plain(features, high)
    )
    wake(timed.modulate)
    assert not torch.allclose(timed(features, low), timed(features, high))
    norm, first, act, last = timed.layers
    h = norm(features.mT)
    scale, shift = timed.modulate(sinusoids(low, 64))[:, None].chunk(2, -1)
    torch.testing.assert_close(timed(features, low), last(act(first(h * (1 + scale) + shift))).mean((1, 2)))


@pytest.mark.parametrize("taps", ["fake_score", "teacher"])
@pytest.mark.parametrize("r1_on", ["images", "features"])
def test_the_penalty_is_added_to_the_discriminators_loss(taps, r1_on):
    """The weighted penalty adds value and gradient at the noised real samples or their features."""
    plain, model = made(taps=taps, layers=[0, 1]), made(taps=taps, layers=[0, 1], r1=0.3, r1_on=r1_on)
    x_t, t = model.diffuse(BATCH["data"], model.fake_times, "real gan")
    cond = {"label": BATCH["label"]}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        x_t.requires_grad_()
        features = model.tapped.features(x_t, t, cond, [0, 1])
    logits = torch.stack([head(h, t) for head, h in zip(model.heads, features, strict=True)], 1)
    penalty = r1_penalty(logits, [x_t] if r1_on == "images" else features)
    found, without = model.fake_score_loss(BATCH), plain.fake_score_loss(BATCH)
    torch.testing.assert_close(found - without, 0.25 * 0.3 * penalty, rtol=1e-3, atol=1e-5)
    ours = [a - b for a, b in zip(grads(found, model.heads[0]), grads(without, plain.heads[0]), strict=True)]
    expected = [
        torch.zeros_like(p) if g is None else 0.25 * 0.3 * g
        for g, p in zip(grads(penalty, model.heads[0]), model.heads[0].parameters(), strict=True)
    ]
    torch.testing.assert_close(ours, expected, rtol=2e-3, atol=1e-5)
    assert max(g.abs().max() for g in expected) > 3e-4


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"discriminator.layers=\[3\] must name blocks of DiT, which lets one see 3"):
        made(layers=[3])
    with pytest.raises(checks.Unfit, match="loss must be softplus or bce or hinge, got wasserstein"):
        Discriminator(loss="wasserstein")
    with pytest.raises(checks.Unfit, match="r1 must not be negative"):
        Discriminator(r1=-1.0)
    exact = ExactTeacher(Mixture([[0.0]], [[[1.0]]]), VarianceExploding())
    with pytest.raises(ValueError, match="Identity has no features for a discriminator to look at"):
        DMD(
            exact, gan=0.5, discriminator=Discriminator(taps="teacher"), student_maker=Fresh(MLP([1], width=8, depth=1))
        )


def test_from_the_command_line(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        DMD, "heads_loss", lambda self, x_g, cond, batch: seen.append(self.discriminator) or x_g.sum() * 0
    )
    words = [
        "domain=toy",
        "method=dmd",
        "student=fresh",
        "fake_score=fresh",
        "model.gan=0.1",
        "network.width=8",
        "network.depth=2",
        "data.batch_size=8",
    ]
    words += ["data.num_samples=64", "trainer.max_steps=3", "trainer.limit_val_batches=0"]
    words += ["model.discriminator.loss=hinge", "model.discriminator.layers=[0,1]", "model.discriminator.timed=true"]
    assert front.main(["fit", *words, *UNMEASURED, "--out", str(tmp_path / "run")]) == 0
    assert seen[0] == Discriminator(loss="hinge", layers=[0, 1], timed=True)
