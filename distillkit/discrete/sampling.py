"""Samplers: steps `step(denoiser, x, t, s, noise)` from time t to an earlier s, and their loop.

A run calls the network at each of its decreasing `times`: one step from each to the next, and a
last call that draws the clean tokens. So with one time every sampler is one independent draw per
position, and with one-call steps the number of network evaluations (NFE) is the number of times.
Every step also knows its exact effect on a distribution over all sequences.

A step reads the network's output, and draws, a few thousand numbers at a time, and only at the
positions that may move: under absorbing noise the masked ones.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.process import expand
from distillkit.discrete.denoiser import DiscreteDenoiser, Reading
from distillkit.discrete.noise import Draws, Noise, draw
from distillkit.discrete.process import Absorbing
from distillkit.discrete.worlds import outer, positions, push, sequences
from distillkit.spec import Recorded


class Step(Recorded, ABC):
    """One step of a sampler; it is stateless, all randomness is an argument.

    Attributes:
        calls: network evaluations of a step, each with its own noise.
    """

    calls = 1

    @abstractmethod
    def __call__(
        self, denoiser: DiscreteDenoiser, x: Tensor, t: Tensor, s: Tensor, *noise: Noise, cond: Cond | None = None
    ) -> Tensor:
        """x at time s [B, d] from x at time t; t, s: scalar tensors, s < t."""

    @abstractmethod
    def push(self, denoiser: DiscreteDenoiser, x: Tensor, weights: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The law at s over all sequences, [C^d].

        Args:
            x: [n, d], the sequences that have a probability at t.
            weights: [n], these probabilities.
        """


class Independent(Step):
    """A step in which positions move independently, given x."""

    @abstractmethod
    def law(self, reading: Reading, s: Tensor) -> Tensor:
        """Law of each position at s from a denoiser's reading at t, [B, d, C]."""

    def kernel(self, denoiser: DiscreteDenoiser, x: Tensor, t: Tensor, s: Tensor, cond: Cond | None = None) -> Tensor:
        """Law of each position at s, [B, d, C], by one call of the denoiser."""
        return self.law(denoiser(x, t, cond), s)

    def __call__(self, denoiser, x, t, s, *noise, cond=None):
        return self.move(denoiser(x, t, cond), s, *noise)

    def move(self, reading: Reading, s: Tensor, noise: Noise) -> Tensor:
        """The states at s [B, d] from a reading of all positions at t."""
        moved = reading.x.clone()
        for where in reading.movable():
            some = reading[where]
            moved[where] = draw(self.law(some, s), some.x, noise[where])
        return moved

    def push(self, denoiser, x, weights, t, s):
        return push(weights, self.kernel(denoiser, x, t, s))


def stay_or(moves: Tensor, x: Tensor) -> Tensor:
    """The kernel of the given moves [B, d, C]; the remaining probability is that of staying."""
    here = x[..., None]
    moves = moves.scatter(-1, here, 0)
    return moves.scatter_(-1, here, (1 - moves.sum(-1, keepdim=True)).clamp_min(0))


def leap(rates: Tensor, x: Tensor, dt: Tensor) -> Tensor:
    """The kernel of rates held for a time dt, up to the first jump.

    A position leaves with probability `1 - exp(-dt sum rates)`.
    """
    here = x[..., None]
    rates = rates.scatter(-1, here, 0)
    total = rates.sum(-1, keepdim=True)
    each = -torch.expm1(-dt * total) / total.clamp_min(torch.finfo(total.dtype).tiny)
    return (rates * each).scatter_(-1, here, (-dt * total).exp())


class Euler(Independent):
    """A move to y with probability `dt rate(y)`; where these exceed one in sum, a sure move."""

    def law(self, reading, s):
        moves = expand(reading.t - s, reading.x[..., None]) * reading.rates()
        return stay_or(moves / moves.sum(-1, keepdim=True).clamp_min(1), reading.x)


class TauLeap(Independent):
    """Rates held over the step up to the first jump: the old token's rates end with it."""

    def law(self, reading, s):
        return leap(reading.rates(), reading.x, expand(reading.t - s, reading.x[..., None]))


class Tweedie(Independent):
    """The exact reversal of one position at a time, from the score (SEDD's analytic sampler)."""

    def law(self, reading, s):
        return reading.process.tweedie(reading.log_score(), reading.x, reading.alpha(), reading.alpha(s))


class Ancestral(Independent):
    """The exact reversal of one position at a time, from the mean (MDLM, UDLM, Duo)."""

    def law(self, reading, s):
        return reading.process.ancestral(reading.log_mean(), reading.x, reading.alpha(), reading.alpha(s))


class Denoise(Independent):
    """The last call: each clean token is drawn from its posterior, whatever s is; no mask stays."""

    def law(self, reading, s):
        alpha = reading.alpha()
        return reading.process.ancestral(reading.log_mean(), reading.x, alpha, torch.ones_like(alpha))


class TwoStage(Step):
    """A tau-leap over `theta dt` to a middle point, and a second leap with rates from both places.

    Args:
        theta: place of the middle, in (0, 1].
    """

    calls = 2
    from_middle: bool  # where the second leap starts, else from x

    def __init__(self, theta: float = 0.5):
        checks.within("(0, 1]", theta=theta)
        self.theta = theta

    @abstractmethod
    def second(self, x: Tensor, rates: Tensor, middle: Tensor, rates_middle: Tensor, dt: Tensor) -> Tensor:
        """The kernel [B, d, C] of the second leap, from `middle` or from x."""

    def __call__(self, denoiser, x, t, s, *noise, cond=None):
        between, (first, second) = t - self.theta * (t - s), noise
        reading = denoiser(x, t, cond)
        middle = TAU_LEAP.move(reading, between, first)
        reading_middle = denoiser(middle, between, cond)
        start = reading_middle if self.from_middle else reading
        moved = start.x.clone()
        for where in start.movable():
            a, b = reading[where], reading_middle[where]
            kernel = self.second(a.x, a.rates(), b.x, b.rates(), expand(a.t - s, a.x[..., None]))
            moved[where] = draw(kernel, start.x[where], second[where])
        return moved

    def push(self, denoiser, x, weights, t, s):
        between = t - self.theta * (t - s)
        reading, everything = denoiser(x, t), sequences(denoiser.process.num_states, x.shape[1])
        rates, rates_everywhere = reading.rates(), denoiser(everything, between).rates()
        chances = weights[:, None] * outer(TAU_LEAP.law(reading, between))
        law, rows = 0, max(1, 2**16 // len(everything))  # pairs of a state and a middle, a block at a time
        for block in torch.arange(len(x)).split(rows):
            i, j = (index.flatten() for index in torch.meshgrid(block, torch.arange(len(everything)), indexing="ij"))
            law = law + push(chances[i, j], self.second(x[i], rates[i], everything[j], rates_everywhere[j], t - s))
        return law


class ThetaTrapezoidal(TwoStage):
    """The theta-trapezoidal step (arXiv 2502.00234).

    The second leap goes from the middle over `(1 - theta) dt` with `[a_1 rates(middle) - a_2
    rates(x)]_+`, `a_1 = 1 / (2 theta (1 - theta))`, `a_2 = a_1 - 1`. It is of second order as long
    as no combined rate is clamped at zero.
    """

    from_middle = True

    def __init__(self, theta: float = 0.5):
        checks.within("(0, 1)", theta=theta)
        super().__init__(theta)

    def second(self, x, rates, middle, rates_middle, dt):
        a_1 = 1 / (2 * self.theta * (1 - self.theta))
        combined = (a_1 * rates_middle - (a_1 - 1) * rates).clamp_min(0)
        return leap(combined, middle, (1 - self.theta) * dt)


class ThetaRK2(TwoStage):
    """The theta-RK-2 step (arXiv 2502.00234).

    The second leap starts from x again, over dt, with `[(1 - 1/(2 theta)) rates(x) + 1/(2 theta)
    rates(middle)]_+`. With leaps up to the first jump it is of first order and, on exact models,
    behind Euler with as many steps.
    """

    from_middle = False

    def second(self, x, rates, middle, rates_middle, dt):
        weight = 1 / (2 * self.theta)
        return leap(((1 - weight) * rates + weight * rates_middle).clamp_min(0), x, dt)


class Ranked(Step):
    """A step that draws all masked positions, commits the first in some order, masks the others."""

    @abstractmethod
    def masks(self, length: int, s: float) -> int:
        """The number of `length` positions that are masked at time s."""

    @abstractmethod
    def rank(self, kernel: Tensor, tokens: Tensor, move: Tensor) -> Tensor:
        """Ranks [B, d]; the largest are committed first, the leftmost among equals."""

    @abstractmethod
    def orders(self, length: int) -> Tensor:
        """Values of `move` [n, d], equally likely, that represent every order."""

    def __call__(self, denoiser, x, t, s, *noise, cond=None):
        reading, (noise,) = self._reading(denoiser, x, t, cond), noise
        tokens, rank = x.clone(), torch.zeros_like(noise.move)
        for where in reading.movable():
            some = reading[where]
            kernel = DENOISE.law(some, s)
            tokens[where] = drawn = draw(kernel, some.x, noise[where])
            rank[where] = self.rank(kernel, drawn, noise.move[where]).double()
        return self._commit(rank, x, tokens, denoiser.process.mask, float(s))

    def push(self, denoiser, x, weights, t, s):
        kernel, num_states = DENOISE.law(self._reading(denoiser, x, t), s), denoiser.process.num_states
        chances = weights[:, None] * outer(kernel)
        i, j = chances.nonzero(as_tuple=True)
        tokens, orders = sequences(num_states, x.shape[1])[j], self.orders(x.shape[1])
        law = chances.new_zeros(chances.shape[1])
        for move in orders:
            rank = self.rank(kernel[i], tokens, move.expand(len(i), -1))
            reached = self._commit(rank, x[i], tokens, denoiser.process.mask, float(s))
            law.index_add_(0, positions(reached, num_states), chances[i, j] / len(orders))
        return law

    def _reading(self, denoiser, x, t, cond=None):
        if not isinstance(denoiser.process, Absorbing):
            raise ValueError(
                f"{type(self).__name__} unmasks tokens and needs an Absorbing process, got {denoiser.process}"
            )
        return denoiser(x, t, cond)

    def _commit(self, rank: Tensor, x: Tensor, tokens: Tensor, mask: int, s: float) -> Tensor:
        length = x.shape[1]
        order = rank.masked_fill(x != mask, math.inf).argsort(dim=-1, descending=True, stable=True).argsort(-1)
        return torch.where((x == mask) & (order >= length - self.masks(length, s)), mask, tokens)


class Confidence(Ranked):
    """Commit the likeliest tokens first (MaskGIT, arXiv 2202.04200; LLaDA's `low_confidence`).

    `floor(d sin(pi s / 2))` positions stay masked. It seeks modes: no number of calls makes it a
    sampler of the model.
    """

    def masks(self, length, s):
        return math.floor(length * math.sin(math.pi / 2 * s) + 1e-9)

    def rank(self, kernel, tokens, move):
        # rounded, so that equal probabilities that were computed in another order stay equal
        return kernel.gather(-1, tokens[..., None])[..., 0].round(decimals=9)

    def orders(self, length):
        return torch.zeros(1, length)


class FirstHitting(Ranked):
    """Commit positions in random order; `floor(d s)` stay masked.

    With d times, one token is committed per call and the law is exactly the model's (arXiv
    2409.02908). With K < d this is the k-Gillespie sampler, k = d / K. A time-conditioned network
    gets the expected noise level, not the drawn one.
    """

    def masks(self, length, s):
        return math.floor(length * s + 1e-9)

    def rank(self, kernel, tokens, move):
        return move

    def orders(self, length):
        return torch.tensor(list(itertools.permutations(range(length))), dtype=torch.float64)


DENOISE, TAU_LEAP = Denoise(), TauLeap()
SAMPLERS: dict[str, Step] = {
    "euler": Euler(),
    "tau_leap": TAU_LEAP,
    "tweedie": Tweedie(),
    "ancestral": Ancestral(),
    "theta_trapezoidal": ThetaTrapezoidal(),
    "theta_rk2": ThetaRK2(),
    "confidence": Confidence(),
    "first_hitting": FirstHitting(),
}


def network_passes(step: Step, num_times: int) -> int:
    """Network evaluations of a run with `num_times` times."""
    return step.calls * (num_times - 1) + 1


def plan(step: Step | Sequence[Step], times: Tensor) -> list[tuple[Step, Tensor, Tensor]]:
    """`(step, t, s)` for each interval of a run, without the last call."""
    steps = [step] * (len(times) - 1) if isinstance(step, Step) else step
    return list(zip(steps, times[:-1], times[1:], strict=True))


def sample(
    denoiser: DiscreteDenoiser,
    x: Tensor,
    times: Tensor,
    noise: Draws,
    step: Step | Sequence[Step] = SAMPLERS["tweedie"],
    cond: Cond | None = None,
) -> Tensor:
    """Returns clean tokens [B, d] from x at times[0].

    Args:
        denoiser: the model.
        x: [B, d], mostly `process.start(...)`.
        times: [K] decreasing, mostly `process.grid(K)`.
        noise: `noise(i)` is the noise of network evaluation i.
        step: the sampler, or one step for each of the K - 1 intervals.
    """
    call = 0
    for rule, t, s in plan(step, times):
        x = rule(denoiser, x, t, s, *(noise(call + i) for i in range(rule.calls)), cond=cond)
        call += rule.calls
    return DENOISE(denoiser, x, times[-1], torch.zeros_like(times[-1]), noise(call), cond=cond)
