"""Distillation-DPO's two objectives: what they inject, of whom, and with which sign."""

# ruff: noqa: E501 (a fault is a row of a table)

from functools import partial

import pytest
import torch
from helpers import f64
from mutations import Mutation, prove

from distillkit.losses.dmd import dmd_loss
from distillkit.losses.preference import Judged, guidance_loss, published_loss

GENERATOR = torch.Generator().manual_seed(0)
X, REAL, FAKE, WINNER, LOSER = torch.randn(5, 4, 3, 2, generator=GENERATOR, dtype=torch.float64)
MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)
SETTINGS = [(over, mask) for over in (None, "sample", "batch") for mask in (None, MASK)]


def gradient(loss, *inputs):
    """The gradients of a loss in its inputs, zero where there is none."""
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def injected(x, real, fake, over, mask):
    """What DMD injects into x."""
    x = x.clone().requires_grad_()
    return gradient(dmd_loss(x, real, fake, over, mask), x)[0]


@pytest.mark.parametrize("over, mask", SETTINGS)
def test_guidance_subtracts_the_preference_from_the_fake_score(over, mask):
    """`g = [(fake - real) - beta (winner - loser)] / n`; n knows nothing of the preference."""
    x, *others = (value.clone().requires_grad_() for value in (X, REAL, FAKE, WINNER, LOSER))
    real, fake, winner, loser = others
    found, *rest = gradient(guidance_loss(Judged(x, real, fake), winner, loser, 0.3, over, mask), x, *others)
    plain, preference = injected(X, REAL, FAKE, over, mask), injected(X, REAL, REAL + WINNER - LOSER, over, mask)
    torch.testing.assert_close(found, plain - 0.3 * preference)
    assert not any(g.any() for g in rest)


@pytest.mark.parametrize("over, mask", SETTINGS)
def test_guidance_without_weight_is_dmd_bit_for_bit(over, mask):
    assert torch.equal(
        guidance_loss(Judged(X, REAL, FAKE), WINNER, LOSER, 0, over, mask), dmd_loss(X, REAL, FAKE, over, mask)
    )


@pytest.mark.parametrize("over, mask", SETTINGS)
def test_the_published_loss_pulls_winners_and_pushes_losers(over, mask):
    """DMD's injection into the winners, and `-weight` times it into the losers."""
    inputs = [value.clone().requires_grad_() for value in (X, REAL, FAKE, WINNER, LOSER, REAL + 1)]
    loss = published_loss(Judged(*inputs[:3]), Judged(*inputs[3:]), 0.3, over, mask)
    winner, *_, loser, _, _ = found = gradient(loss, *inputs)
    torch.testing.assert_close(winner, injected(X, REAL, FAKE, over, mask))
    torch.testing.assert_close(loser, -0.3 * injected(WINNER, LOSER, REAL + 1, over, mask))
    assert not any(found[i].any() for i in (1, 2, 4, 5))


def test_of_equal_pairs_nothing_is_left_at_weight_one():
    judged = Judged(X.clone().requires_grad_(), REAL, FAKE)
    assert not gradient(published_loss(judged, judged, 1.0), judged.x_g)[0].any()


def test_the_released_surrogate_has_no_gradient():
    """`mean(sg[difference] (x_t - x_g))` with x_g in both places, as in the released code."""
    x = f64(0.3, -1.2).requires_grad_()
    x_t = x + 0.7 * f64(1.0, -0.5)
    assert not gradient((f64(0.4, 0.9) * (x_t - x)).mean(), x)[0].any()
    assert gradient(published_loss(Judged(x, f64(0.4, 0.9), x_t), Judged(x, x_t, x_t), 1.0), x)[0].all()


guided, published = (
    partial(test, "sample", MASK)
    for test in (
        test_guidance_subtracts_the_preference_from_the_fake_score,
        test_the_published_loss_pulls_winners_and_pushes_losers,
    )
)
GUIDANCE = [
    ("away from the winners", "- beta", "+ beta", guided),
    ("winners and losers exchanged", "winner - loser", "loser - winner", guided),
    ("beta left out", "beta * ", "", guided),
    ("beta squared", "beta * ", "beta**2 * ", guided),
    ("the losers left out", "(winner - loser)", "winner", guided),
    ("on the teacher's side, where it is in n too", "real, fake - beta * (winner - loser),", "real + beta * (winner - loser), fake,", guided),
    ("teacher and fake score exchanged", "dmd_loss(x_g, real,", "dmd_loss(x_g, 2 * fake - real,", guided),
    ("the normaliser not handed on", "normalise, mask)", "None, mask)", guided),
    ("the mask not handed on", "normalise, mask)", "normalise)", guided),
]  # fmt: skip
PUBLISHED = [
    ("losers pulled too", "- weight", "+ weight", published),
    ("the weight left out", "weight * ", "", published),
    ("the weight squared", "weight * ", "weight**2 * ", published),
    ("winners and losers exchanged", "dmd_loss(*winner, normalise, mask) - weight * dmd_loss(*loser,", "dmd_loss(*loser, normalise, mask) - weight * dmd_loss(*winner,", published),
    ("the winners stopped", "dmd_loss(*winner,", "0 * dmd_loss(*winner,", published),
    ("the winners' normaliser not handed on", "*winner, normalise,", "*winner, None,", published),
    ("the losers' mask not handed on", "*loser, normalise, mask)", "*loser, normalise)", published),
]  # fmt: skip
MUTATIONS = [
    *(Mutation(says, guidance_loss, *rest) for says, *rest in GUIDANCE),
    *(Mutation(says, published_loss, *rest) for says, *rest in PUBLISHED),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)
