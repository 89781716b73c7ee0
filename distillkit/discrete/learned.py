"""Samplers of discrete diffusion with a few learned numbers per step (LSD, arXiv 2509.19962)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distillkit.diffusion.learned import LearnedTimes
from distillkit.discrete.denoiser import Reading, ScoreReading
from distillkit.discrete.process import Absorbing, DiscreteProcess
from distillkit.discrete.sampling import SAMPLERS, Independent
from distillkit.spec import Recorded


def tempered(process: DiscreteProcess, log_score: Tensor, x: Tensor, power: Tensor, scale: Tensor) -> Tensor:
    """The log of `scale s^power` at legal moves, [B, d, C].

    Under absorbing noise the power acts on the tokens' probabilities alone and `sum_y s` stays:
    `scale` alone decides when to unmask.
    """
    legal = process.jumps(x, log_score.dtype) > 0
    known = log_score.masked_fill(~legal, 0)  # minus infinity stays out of the graph
    if isinstance(process, Absorbing):
        total = log_score.masked_fill(~legal, -torch.inf).logsumexp(-1, keepdim=True)
        changed = (power * known).masked_fill(~legal, -torch.inf)
        known = torch.where(legal, changed - changed.logsumexp(-1, keepdim=True) + total, 0)
    else:
        known = power * known
    return torch.where(legal, known + scale.log(), log_score)


class TemperedReading(ScoreReading):
    """A reading whose score is raised to a power and scaled, see `tempered`."""

    def __init__(self, reading: Reading, power: Tensor, scale: Tensor):
        super().__init__(reading.process, reading.x, reading.t, reading)
        self.power, self.scale = power, scale

    def log_score(self):
        log_score = self.output.log_score()
        power, scale = self.power.to(log_score.dtype), self.scale.to(log_score.dtype)
        return tempered(self.process, log_score, self.x, power, scale)


class LearnedStep(Independent):
    """A step of a plain sampler on a score that is raised to a power and scaled.

    Args:
        rule: the plain step; it must work from the score.
        power, scale: with both 1 the step is the plain one.
    """

    def __init__(self, rule: Independent, power: Tensor, scale: Tensor):
        self.rule, self.power, self.scale = rule, power, scale

    def law(self, reading, s):
        return self.rule.law(TemperedReading(reading, self.power, self.scale), s)


class LearnedSampler(Recorded, nn.Module):
    """A sampler of K network evaluations: K - 1 learned steps and the plain last one.

    It starts as the plain sampler on its initial times.

    Args:
        process: the noising process.
        times: [K] decreasing, the initial times.
        rule: the plain step: `tweedie`, `euler` or `tau_leap`.
        learn_times: whether the times are trained.
    """

    def __init__(self, process: DiscreteProcess, times: list[float], rule: str = "tweedie", learn_times: bool = False):
        super().__init__()
        if rule not in RULES:
            raise ValueError(
                f"a learned sampler needs a rule that works from the score, {' or '.join(RULES)}, got {rule!r}"
            )
        self.process, self.rule = process, SAMPLERS[rule]
        self.times = LearnedTimes(times, 0.0, learn_times)
        self.log_power, self.log_scale = (nn.Parameter(torch.zeros(len(times) - 1)) for _ in range(2))

    def steps(self) -> list[LearnedStep]:
        """The K - 1 steps."""
        return [LearnedStep(self.rule, p, s) for p, s in zip(self.log_power.exp(), self.log_scale.exp(), strict=True)]

    def facts(self) -> dict[str, list]:
        """The learned numbers as plain lists, for reports."""
        numbers = {"times": self.times(), "powers": self.log_power.exp(), "scales": self.log_scale.exp()}
        return {name: value.tolist() for name, value in numbers.items()}


RULES = ("tweedie", "euler", "tau_leap")
