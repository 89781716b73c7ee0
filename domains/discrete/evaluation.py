"""How good sequences of tokens are.

No metric here rewards sharpness alone: likelihood never stands without entropy.

N: sequences; d: length; S: number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distillkit.data import TensorData
from distillkit.discrete.laws import kl, total_variation
from distillkit.discrete.worlds import positions
from distillkit.evaluation.metrics import Estimate
from domains.discrete.judge import Judge, codes
from domains.discrete.teacher import World
from domains.image.evaluation import ImageEvaluator

LISTED = 4096  # sequences of the largest world whose whole law is compared


class WorldEvaluator:
    """Compares samples [N, d] with a law that is known, on the CPU: such worlds are small.

    - `pair_tv`: total variation between the neighbours (x^i, x^{i+1}) of the samples, all positions
      together, and the world's.
    - `entropy`: nats of a token given the one before it. Below the world's own where a sampler
      sharpens, above it where neighbours are forgotten.
    - `nll`, where every sequence has a probability: nats per token under the true law. Below that
      of real data means sharpened.
    - `tv`, of worlds of at most 4096 sequences: between the frequencies of whole sequences and
      their probabilities. It is biased upwards by the number of samples, so look at the floor.
    - Countdowns only, how often the rule is broken: `pair_error` of all neighbours, `error` of
      those after x^i > 0, `sequence_error` of sequences. `released_error` counts as a published
      counter does (only every second pair, over d).
    - `zeros`, countdowns only: share of zeros, because a sample of zeros alone breaks no rule.

    Args:
        teacher: the world.
        seed: of the exact draws that stand for real data.
    """

    def __init__(self, teacher: World, seed: int = 1):
        self.teacher, self.seed = teacher, seed
        self.law, self.countdown = teacher.law, teacher.countdown
        self.num_tokens, self.length = teacher.process.num_tokens, teacher.event_shape[0]
        marginals = self.law.clean_marginal()[:-1]
        self._pairs_SS = (marginals[:, :, None] * self.law.transitions).mean(0)
        self._everywhere = bool((self.law.transitions > 0).all() and (self.law.initial > 0).all())
        self.table = teacher.table() if self.num_tokens**self.length <= LISTED else None

    @property
    def headline(self) -> str:
        return "pair_error" if self.countdown else "pair_tv"

    @property
    def better(self) -> dict[str, str]:
        """Which way each metric is good; `target` means close to the value of real data."""
        better = {"pair_tv": "lower", "entropy": "target"}
        if self._everywhere:
            better["nll"] = "target"
        if self.table is not None:
            better["tv"] = "lower"
        if self.countdown:
            better |= dict.fromkeys(("pair_error", "error", "sequence_error", "released_error"), "lower")
            better["zeros"] = "target"
        return better

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data."""
        return {"domain": "discrete", "world": self.teacher.id, "reference": "the exact law", "seed": self.seed}

    def __call__(self, samples: Tensor, cond: dict[str, Tensor] | None = None) -> dict[str, float]:
        """Metrics of samples [N, d]."""
        check(samples, self.length, self.num_tokens)
        pairs = codes(samples, 2, self.num_tokens)
        found = count(pairs, self.num_tokens**2).reshape(self._pairs_SS.shape)
        before, gap = found.sum(1, keepdim=True), found - self._pairs_SS
        metrics = {
            "pair_tv": Estimate(float(gap.abs().sum() / 2), gap.sign().flatten()[pairs].mean(1) / 2),
            "entropy": float(-torch.xlogy(found, found / before.clamp_min(1e-300)).sum()),
        }
        if self._everywhere:
            metrics["nll"] = Estimate.mean(-self.law.log_prob(samples) / self.length)
        if self.table is not None:
            frequency = count(positions(samples, self.num_tokens), self.table.numel())
            metrics["tv"] = float(total_variation(frequency, self.table.flatten()))
        if self.countdown:
            metrics |= countdown_errors(samples) | {"zeros": float((samples == 0).double().mean())}
        return metrics

    def of_law(self, law: Tensor) -> dict[str, float]:
        """`tv`, and `kl` = KL(world | sampler) in nats, of a sampler whose law is known.

        Free of sampling error. `law` is [S, ..., S].
        """
        if self.table is None:
            raise ValueError(f"a world of {self.num_tokens}^{self.length} sequences is too large to be listed")
        return {"tv": float(total_variation(law, self.table)), "kl": float(kl(self.table, law))}

    def floor(self, num_samples: int) -> dict[str, float]:
        """Metrics of as many exact draws."""
        return self(self.law.draw(num_samples, torch.Generator().manual_seed(self.seed)))


def countdown_errors(samples: Tensor) -> dict[str, float]:
    """How often sequences [N, d] break the rule that x - 1 follows x > 0, in four counts in use.

    The released counter of Jump-Your-Steps forgets what it compared, so a tested pair is never
    followed by another; it comes out at about half of `pair_error`.
    """
    first, second = samples[:, :-1], samples[:, 1:]
    bound = first > 0
    wrong = bound & (second != first - 1)
    remembered, released = torch.zeros_like(samples[:, 0]), torch.zeros_like(samples[:, 0])
    for token in samples.unbind(1):
        compared = remembered > 0
        released += compared & (token != remembered - 1)
        remembered = torch.where(compared, 0, token)
    return {
        "pair_error": Estimate.mean(wrong.double().mean(1)),
        "error": float(wrong.sum() / bound.sum().clamp_min(1)),
        "sequence_error": Estimate.mean(wrong.any(1)),
        "released_error": float(released.double().mean() / samples.shape[1]),
    }


class TextEvaluator:
    """Compares samples [N, d] of text with text that nobody trained on.

    - `trigram_tv`, the headline: total variation between the three-character sequences of the
      samples and of the held-out text. A sampler that repeats itself misses it as one that errs
      does.
    - `perplexity`: of a character under a judge, an n-gram model of the held-out text. Below that
      of real text means sharpened.
    - `entropy`: of the characters inside a sample, nats, averaged over samples.
    - `distinct`: different 4-grams as a share of all; falls with the number of samples, alike in
      each row.
    - `copied`: share of 12-character windows that occur in the training text. Far above real text
      means memorised.

    For vocabularies so large that n-grams do not fit into 64 bits, n is smaller throughout.

    Args:
        train: the training data; it gives `copied` and, since the judge has not seen it, the values
            of real text.
        held_out: data sets that the judge and the trigrams are counted in.
        num_tokens: S.
    """

    headline = "trigram_tv"
    device = torch.device("cpu")  # of everything that is counted
    better = {
        "trigram_tv": "lower",
        "perplexity": "target",
        "entropy": "target",
        "distinct": "target",
        "copied": "target",
    }

    def __init__(self, train: TensorData, held_out: Sequence[TensorData], num_tokens: int):
        self.train, self.num_tokens = train.tensors["data"], num_tokens
        self.held_out = torch.cat([part.tensors["data"] for part in held_out])
        most = int(63 * math.log(2) / math.log(num_tokens))
        self.order, self.window, self.few, self.three = (min(n, most) for n in (5, 12, 4, 3))

    @cached_property
    def judge(self) -> Judge:
        return Judge(self.held_out.to(self.device), self.num_tokens, self.order)

    @cached_property
    def _trigrams(self) -> Tensor:
        return codes(self.held_out.to(self.device), self.three, self.num_tokens)

    @cached_property
    def _seen(self) -> Tensor:
        return codes(self.train.to(self.device), self.window, self.num_tokens).unique()

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data; numbers under different protocols are not comparable."""
        return {
            "domain": "discrete",
            "judge": f"{self.order}-gram model, Witten-Bell",
            "reference": "validation and test text",
            "num_reference": self.held_out.numel(),
            "distinct": self.few,
            "copied": self.window,
        }

    def __call__(self, samples: Tensor, cond: dict[str, Tensor] | None = None) -> dict[str, float]:
        """Metrics of samples [N, d]."""
        check(samples, self.held_out.shape[1], self.num_tokens)
        samples = samples.to(self.device)
        fourgrams = codes(samples, self.few, self.num_tokens)
        trigrams = codes(samples, self.three, self.num_tokens)
        return {
            "trigram_tv": self._trigram_tv(trigrams),
            "perplexity": float((-self.judge.log_prob(samples).mean()).exp()),
            "entropy": Estimate.mean(unigram_entropy(samples, self.num_tokens)),
            "distinct": len(fourgrams.unique()) / fourgrams.numel(),
            "copied": self._copied(samples),
        }

    def _trigram_tv(self, trigrams: Tensor) -> Estimate:
        """Total variation, with half of the mean sign of the excess of its trigrams per sample."""
        _, where = torch.cat([trigrams.flatten(), self._trigrams.flatten()]).unique(return_inverse=True)
        own, theirs = where.split([trigrams.numel(), self._trigrams.numel()])
        ours, real = (count(numbers, int(where.max()) + 1) for numbers in (own, theirs))
        signs = (ours - real).sign()[own].reshape(trigrams.shape)
        return Estimate(float(total_variation(ours, real)), signs.mean(1) / 2)

    def _copied(self, samples: Tensor) -> float:
        return float(torch.isin(codes(samples, self.window, self.num_tokens), self._seen).double().mean())

    def floor(self, num_samples: int) -> dict[str, float]:
        """Metrics of real text: as many training blocks against the held-out text.

        `copied` is that of held-out blocks.
        """
        rows = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:num_samples]
        return self(self.train[rows]) | {"copied": self._copied(self.held_out.to(self.device))}


class DigitEvaluator(ImageEvaluator):
    """Digits as tokens, measured as the image domain measures digits: 0 is black, 1 is white."""

    def __init__(self, train: TensorData, held_out: Sequence[TensorData], classes: dict[str, int]):
        super().__init__(_pictures(train), [_pictures(part) for part in held_out], classes)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"domain": "discrete", "pixels": "black and white"}

    def __call__(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """Metrics of samples [N, 64], made for the conditions `cond`."""
        check(samples, 64, 2)
        return super().__call__(as_images(samples), cond)


def as_images(tokens: Tensor) -> Tensor:
    """Tokens [N, 64] in {0, 1} as images [N, 1, 8, 8] in {-1, 1}."""
    return tokens.reshape(-1, 1, 8, 8).float() * 2 - 1


def _pictures(data: TensorData) -> TensorData:
    return TensorData({**data.tensors, "data": as_images(data.tensors["data"])})


def unigram_entropy(samples: Tensor, num_tokens: int) -> Tensor:
    """Entropy of the tokens inside each sample [N, d], nats, [N]."""
    rows = torch.arange(len(samples), device=samples.device)[:, None] * num_tokens + samples
    cells, counts = rows.unique(return_counts=True)
    share = counts.double() / samples.shape[1]
    return share.new_zeros(len(samples)).index_add_(0, cells // num_tokens, -torch.xlogy(share, share))


def count(numbers: Tensor, size: int) -> Tensor:
    """Frequencies of the numbers 0 .. size - 1, [size] float64."""
    return numbers.flatten().bincount(minlength=size).double() / numbers.numel()


def check(samples: Tensor, length: int, num_tokens: int) -> None:
    """Refuse what is no sample: another shape, numbers that are no tokens, a mask that was left."""
    if samples.ndim != 2 or samples.shape[1] != length or samples.is_floating_point():
        raise ValueError(
            f"samples must be integers [N, {length}], got {samples.dtype} {list(samples.shape)}; decode them first"
        )
    if samples.min() < 0 or samples.max() >= num_tokens:
        raise ValueError(
            f"samples hold tokens from {int(samples.min())} to {int(samples.max())}, but this data has 0 to "
            f"{num_tokens - 1}: was a mask left?"
        )
