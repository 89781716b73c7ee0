"""Each metric against a count by hand, an exact law or a simpler computation.

No metric is better for being sharper.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from distillkit.data import TensorData
from distillkit.discrete.laws import law
from distillkit.discrete.noise import fresh
from distillkit.discrete.sampling import SAMPLERS
from distillkit.losses.discrete import score_entropy
from domains.discrete import teacher as teacher_module
from domains.discrete.data import DigitData, TextData
from domains.discrete.evaluation import (
    DigitEvaluator,
    TextEvaluator,
    WorldEvaluator,
    countdown_errors,
    unigram_entropy,
)
from domains.discrete.judge import Judge, codes
from domains.discrete.teacher import Countdown, Potts


def witten_bell(text: list[list[int]], history: tuple[int, ...], symbol: int, size: int) -> float:
    """The recursion of the paper, by counting in plain Python."""
    n = len(history)
    lower = 1 / size if n == 0 else None
    follows = Counter(row[i + n] for row in text for i in range(len(row) - n) if tuple(row[i : i + n]) == history)
    lower = lower if n == 0 else witten_bell(text, history[1:], symbol, size)
    total, types = sum(follows.values()), len(follows)
    return lower if total == 0 else (follows[symbol] + types * lower) / (total + types)


def test_the_judge_is_witten_bell():
    text = torch.randint(0, 4, (6, 9), generator=torch.Generator().manual_seed(0))
    judge, x = Judge(text, 5, order=3), torch.tensor([[0, 1, 2, 3, 4, 0, 0, 1, 1]])
    found = judge.log_prob(x).exp()[0].tolist()
    rows = text.tolist()
    for i, p in enumerate(found):
        history = tuple(x[0, max(0, i - 2) : i].tolist())
        assert p == pytest.approx(witten_bell(rows, history, int(x[0, i]), 5), abs=1e-12)


def test_the_judge_is_a_distribution_for_every_history():
    text = torch.randint(0, 3, (20, 12), generator=torch.Generator().manual_seed(1))
    judge = Judge(text, 4, order=4)
    for history in ([0, 1, 2], [3, 3, 3], [2, 3, 0]):
        total = sum(judge.log_prob(torch.tensor([[*history, w]])).exp()[0, -1] for w in range(4))
        assert float(total) == pytest.approx(1, abs=1e-12)


def test_the_judge_refuses_orders_it_cannot_hold():
    with pytest.raises(ValueError, match="order must lie between 1 and the 4 symbols"):
        Judge(torch.zeros(2, 4, dtype=torch.long), 3, order=5)
    with pytest.raises(ValueError, match="64 bits"):
        codes(torch.zeros(2, 9, dtype=torch.long), 5, 50_257)


# Countdown


def test_the_rule_is_counted_in_four_ways():
    errors = countdown_errors(torch.tensor([[5, 9, 9, 9]]))
    assert errors["pair_error"] == 1 and errors["error"] == 1 and errors["sequence_error"] == 1
    assert errors["released_error"] == 2 / 4  # a compared pair is forgotten
    assert set(countdown_errors(torch.tensor([[3, 2, 1, 0, 7, 6]])).values()) == {0.0}
    errors = countdown_errors(torch.tensor([[0, 0, 4, 4], [3, 2, 1, 0]]))
    assert errors == {"pair_error": 1 / 6, "error": 1 / 4, "sequence_error": 1 / 2, "released_error": 1 / 8}


def test_independent_tokens_break_the_rule_as_often_as_they_must():
    """The stationary law of 32 tokens gives the three error rates of the rule.

    0.90025 of all pairs, 0.9590 of those that are bound, 0.4637 by the released count.
    """
    weights = (32 - torch.arange(32)).double().expand(2000, -1)
    x = torch.multinomial(weights, 256, replacement=True, generator=torch.Generator().manual_seed(0))
    errors = countdown_errors(x)
    assert errors["pair_error"] == pytest.approx(0.90025, abs=2e-3)
    assert errors["error"] == pytest.approx(0.9590, abs=2e-3)
    assert errors["released_error"] == pytest.approx(0.4637, abs=2e-3) and errors["sequence_error"] == 1


def test_countdown_of_few_steps_errs_as_published():
    """The error of a sampler falls with its steps, in a world small enough to be fast.

    8 tokens of 32 would take long; with Tweedie = Euler the smaller world errs in the same way.
    """
    teacher = Countdown(num_tokens=8, length=32)
    evaluator = WorldEvaluator(teacher)
    rates = [evaluator(teacher.generate(256, {}, 0, times=teacher.grid(steps)))["pair_error"] for steps in (1, 4, 16)]
    assert rates[0] > 0.6 and rates[0] > 2 * rates[1] > 4 * rates[2] > 0
    floor = evaluator.floor(512)
    assert floor["pair_error"] == floor["released_error"] == 0 and evaluator.headline == "pair_error"
    assert "nll" not in floor and "tv" not in floor  # the rule makes likelihoods infinite, the world is too large


@pytest.mark.slow
def test_the_published_countdown_at_eight_steps():
    teacher = Countdown()
    found = WorldEvaluator(teacher)(teacher.generate(512, {}, 0, times=teacher.grid(8)))
    expected = {"pair_error": 0.0964, "error": 0.1033, "released_error": 0.0491}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=0.08)
    assert found["sequence_error"] == 1 and found["zeros"] == pytest.approx(0.0606, rel=0.1)


# Worlds


def test_a_small_world_is_compared_whole():
    teacher = Potts()
    evaluator = WorldEvaluator(teacher)
    exact = law(teacher.denoiser, 5, teacher.grid(8), SAMPLERS["tweedie"])
    found = evaluator.of_law(exact)
    assert found["tv"] == pytest.approx(0.077932, abs=1e-6) and found["kl"] == pytest.approx(0.017810, abs=1e-6)
    assert evaluator.of_law(evaluator.table) == pytest.approx({"tv": 0.0, "kl": 0.0}, abs=1e-12)
    with pytest.raises(ValueError, match="too large to be listed"):
        WorldEvaluator(Countdown(8, 32)).of_law(exact)


def test_metrics_of_a_world_converge_to_their_exact_values():
    """A large exact sample has the world's own numbers; independent tokens have the formula's."""
    teacher = Potts(num_tokens=3, length=12, beta=1.5)
    evaluator = WorldEvaluator(teacher)
    floor = evaluator.floor(20_000)
    keep = math.exp(1.5) / (math.exp(1.5) + 2)
    rate = -keep * math.log(keep) - (1 - keep) * math.log((1 - keep) / 2)
    assert floor["entropy"] == pytest.approx(rate, abs=0.01)
    assert floor["nll"] == pytest.approx((math.log(3) + 11 * rate) / 12, abs=0.01)
    assert floor["pair_tv"] < 0.01
    loose = evaluator(torch.randint(0, 3, (20_000, 12), generator=torch.Generator().manual_seed(0)))
    assert loose["pair_tv"] == pytest.approx(keep - 1 / 3, abs=0.01)
    assert loose["entropy"] == pytest.approx(math.log(3), abs=0.01)


def test_sharper_is_not_better_in_any_world():
    """All tokens equal is the likeliest sequence: best `nll`, worst everything else.

    So `nll` aims at the value of real data.
    """
    evaluator = WorldEvaluator(Potts(num_tokens=3, length=12))
    real, sharp = evaluator.floor(2000), evaluator(torch.zeros(2000, 12, dtype=torch.long))
    assert sharp["nll"] < real["nll"] and evaluator.better["nll"] == "target"
    assert sharp["pair_tv"] > 0.7 and sharp["entropy"] == 0
    assert evaluator.better[evaluator.headline] == "lower"


def test_samples_that_are_none_are_refused():
    evaluator = WorldEvaluator(Potts())
    with pytest.raises(ValueError, match="was a mask left"):
        evaluator(torch.full((4, 5), 3))
    with pytest.raises(ValueError, match=r"integers \[N, 5\]"):
        evaluator(torch.zeros(4, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="torch.float32"):
        evaluator(torch.zeros(4, 5))


# Text


@pytest.fixture(scope="module")
def text() -> TextEvaluator:
    data = TextData()
    return data.evaluator()


def test_real_text_has_the_best_numbers(text):
    real = text.floor(400)
    shuffled = text.train[:400].flatten()[torch.randperm(400 * 64, generator=torch.Generator().manual_seed(0))]
    loose = text(shuffled.reshape(400, 64))
    assert real["trigram_tv"] < 0.25 < 0.6 < loose["trigram_tv"]
    assert real["perplexity"] < 5 < 15 < loose["perplexity"]
    assert set(real) == set(text.better) and text.headline in real
    assert loose["copied"] < 0.01 < real["copied"] < text(text.train[:400])["copied"] == 1


def test_repetition_is_not_better_though_the_judge_likes_it(text):
    """A sampler that repeats one likely phrase has a fine perplexity and every other number bad."""
    words = " ".join(["the statement"] * 9)[:64]
    tokens = torch.tensor([[" abcdefghijklmnopqrstuvwxyz".index(c) for c in words]]).repeat(400, 1)
    real, sharp = text.floor(400), text(tokens)
    assert sharp["perplexity"] < 1.1 * real["perplexity"]
    assert (
        sharp["trigram_tv"] > 0.9 and sharp["entropy"] < real["entropy"] and sharp["distinct"] < 0.01 < real["distinct"]
    )


def test_entropy_inside_samples():
    found = unigram_entropy(torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3], [1, 1, 2, 2]]), 5)
    assert found.tolist() == pytest.approx([0, math.log(4), math.log(2)], abs=1e-6)


def test_large_vocabularies_are_measured_with_shorter_grams():
    tokens = torch.randint(0, 50_257, (64, 16), generator=torch.Generator().manual_seed(0))
    data = [TensorData({"data": part}) for part in tokens.split(32)]
    evaluator = TextEvaluator(data[0], data[1:], 50_257)
    assert evaluator.order < 5 and evaluator(tokens[32:])["trigram_tv"] == 0
    assert evaluator(tokens[:32])["copied"] == 1 and evaluator.describe()["copied"] == evaluator.window


# Digits


def test_digits_are_measured_as_images():
    data = DigitData()
    evaluator = data.evaluator()
    assert isinstance(evaluator, DigitEvaluator)
    held = data.test[torch.arange(100)]
    real = evaluator(held["data"], {"label": held["label"]})
    noise = evaluator(
        torch.randint(0, 2, (100, 64), generator=torch.Generator().manual_seed(0)), {"label": held["label"]}
    )
    assert real["class_agreement"] > 0.85 > 0.4 > noise["class_agreement"] and real["frechet"] < noise["frechet"] / 3
    with pytest.raises(ValueError, match="was a mask left"):
        evaluator(torch.full((4, 64), 2), {})


# The embedded teacher


@pytest.mark.parametrize("noise", ["absorbing", "uniform"])
def test_the_embedded_teachers_are_small_and_know_their_neighbours(text, noise):
    """The bound on held-out text lies far below the entropy of single characters."""
    weights = Path(teacher_module.WEIGHTS) / f"text_{noise}"
    assert (weights / "model.safetensors").stat().st_size <= 2_500_000 and (weights / "README.md").is_file()
    teacher, x = teacher_module.Text(noise), text.held_out[:200]
    t = ((torch.arange(200) + 0.5) / 200)[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    draws = fresh(0, 200, 64)(0)
    bound = float(score_entropy(teacher.denoiser, x, t, draws).mean()) / 64
    share = x.flatten().bincount(minlength=27) / x.numel()
    assert bound < float(-torch.xlogy(share, share).sum()) - 0.5
