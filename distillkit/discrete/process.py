"""Noising processes on tokens, with conversions between predictions, and reverse kernels.

A process treats positions independently. Its reversal has two models. The *mean* is the law of the
clean token given all other positions, `pi_i(y) = p(x_0^i = y | x_t^{-i})` [B, d, S]. The *score*
holds the ratios `s_i(y) = p_t(x with x^i := y) / p_t(x)` [B, d, C] (SEDD, arXiv 2310.16834). Both
are kept as logarithms. Arguments `alpha`, `alpha_t`, `alpha_s` (s < t) broadcast against
[B, d, C]. All functions of x but `start` and `add_noise` work position by position: [B, d] may as
well be [n], some positions of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.process import expand
from distillkit.discrete.noise import Noise
from distillkit.discrete.schedule import LogLinear, Schedule
from distillkit.spec import Recorded


class DiscreteProcess(Recorded, ABC):
    """A process on S real tokens; a plain immutable object without tensors.

    Args:
        num_tokens: S, the number of real tokens (a mask is not among them).
        schedule: alpha(t); None means log-linear with eps = 1e-3.

    Attributes:
        num_states: C, the states of a position.
    """

    num_states: int

    def __init__(self, num_tokens: int, schedule: Schedule | None = None):
        checks.whole(2, why="it counts the real tokens", num_tokens=num_tokens)
        self.num_tokens, self.schedule = num_tokens, schedule or LogLinear()

    def alpha(self, t: Tensor) -> Tensor:
        return self.schedule.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.schedule.sigma(t)

    def rate(self, t: Tensor) -> Tensor:
        return self.schedule.rate(t)

    def grid(self, num: int) -> Tensor:
        """`num` decreasing times `1 - k / num`, float64; a sampler denoises at the last one."""
        return 1 - torch.arange(num, dtype=torch.float64) / num

    def states(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """One-hot x, [B, d, C]."""
        return torch.zeros(*x.shape, self.num_states, dtype=dtype, device=x.device).scatter_(-1, x[..., None], 1)

    @abstractmethod
    def prior(self) -> Tensor:
        """Law of a position at t = 1, [C] float64."""

    @abstractmethod
    def start(self, noise: Noise) -> Tensor:
        """A draw from the prior, [B, d]."""

    @abstractmethod
    def add_noise(self, x_0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """A draw of x_t given x_0 [B, d]; t: [B] or scalar.

        With the same noise a later time changes more positions, each to the same state.
        """

    @abstractmethod
    def movable(self, x: Tensor) -> Tensor:
        """Whether the reversal may change a position, bool [B, d]."""

    @abstractmethod
    def likelihood(self, x: Tensor, alpha: Tensor) -> Tensor:
        """`T(z, x^i) = p(x_t^i | x_0^i = z)` for every real z, [B, d, S]."""

    @abstractmethod
    def transition(self, x_0: Tensor, alpha: Tensor) -> Tensor:
        """`T(x_0^i, y) = p(x_t^i = y | x_0^i)` for every state y, [B, d, C]."""

    @abstractmethod
    def jumps(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`Q(y, x^i)`, the forward rate from y to x^i in units of sigma', [B, d, C].

        It is zero where no reverse move is legal.
        """

    @abstractmethod
    def carry_over(self, log_mean: Tensor, x: Tensor) -> Tensor:
        """The mean with the certain tokens of x written in."""

    @abstractmethod
    def score_from_mean(self, log_mean: Tensor, x: Tensor, alpha: Tensor) -> Tensor:
        """`log s` from `log pi`."""

    @abstractmethod
    def mean_from_score(self, log_score: Tensor, x: Tensor, alpha: Tensor) -> Tensor:
        """`log pi` from `log s`: exact for an exact score, normalised for any other."""

    @abstractmethod
    def ancestral(self, log_mean: Tensor, x: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """Law of x_s^i given x_t, from the mean, [B, d, C].

        `alpha_s = 1` gives the posterior of the clean token.
        """

    @abstractmethod
    def tweedie(self, log_score: Tensor, x: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """Law of x_s^i given x_t, from the score, [B, d, C]: SEDD's analytic step.

        It is `[e^{-dsigma Q} s]_y T_dsigma(y, x^i)`. A learned score may give negative entries;
        they are set to zero and the rest is normalised to sum to one.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_tokens}, {self.schedule!r})"

    def __eq__(self, other) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    __hash__ = None


class Absorbing(DiscreteProcess):
    """Absorbing noise: a token is kept with probability alpha, else it is a mask and stays one.

    At a masked position the mean does not depend on t and `s(y) = pi(y) alpha / (1 - alpha)`.
    """

    @property
    def mask(self) -> int:
        """The mask token: the last state."""
        return self.num_tokens

    @property
    def num_states(self) -> int:
        return self.num_tokens + 1

    def prior(self):
        return torch.eye(self.num_states, dtype=torch.float64)[self.mask]

    def start(self, noise):
        return torch.full(noise.move.shape, self.mask, device=noise.move.device)

    def add_noise(self, x_0, t, noise):
        return torch.where(noise.move < expand(self.alpha(t), x_0), x_0, self.mask)

    def movable(self, x):
        return x == self.mask

    def likelihood(self, x, alpha):
        real = alpha * self.states(x, alpha.dtype)[..., :-1]
        return torch.where(self._masked(x), 1 - alpha, real)

    def transition(self, x_0, alpha):
        kept = alpha * self.states(x_0, alpha.dtype)[..., :-1]
        return torch.cat([kept, (1 - alpha).expand(*kept.shape[:-1], 1)], -1)

    def jumps(self, x, dtype):
        real = torch.arange(self.num_states, device=x.device) < self.mask
        return self._masked(x).to(dtype) * real.to(dtype)

    def carry_over(self, log_mean, x):
        return self._where_masked(log_mean, x, 0, -torch.inf)

    def score_from_mean(self, log_mean, x, alpha):
        log_odds = (alpha / (1 - alpha)).log()
        own = log_mean.new_zeros(*x.shape, 1)  # the mask's own ratio is 1
        return self._where_masked(torch.cat([log_mean + log_odds, own], -1), x, 0, -torch.inf)

    def mean_from_score(self, log_score, x, alpha):
        return self.carry_over(log_score[..., :-1].log_softmax(-1), x)

    def ancestral(self, log_mean, x, alpha_t, alpha_s):
        unmask = (alpha_s - alpha_t) / (1 - alpha_t)
        tokens = unmask * log_mean.exp()
        stay = (1 - unmask).to(tokens.dtype).expand(*tokens.shape[:-1], 1)
        return self._where_masked(torch.cat([tokens, stay], -1), x, 1, 0)

    def tweedie(self, log_score, x, alpha_t, alpha_s):
        growth = alpha_s / alpha_t - 1  # e^dsigma - 1
        tokens = growth * log_score[..., :-1].exp()
        stay = (1 - tokens.sum(-1, keepdim=True)).clamp_min(0)
        kernel = torch.cat([tokens, stay], -1)
        return self._where_masked(kernel / kernel.sum(-1, keepdim=True), x, 1, 0)

    def _masked(self, x: Tensor) -> Tensor:
        return (x == self.mask)[..., None]

    def _where_masked(self, values: Tensor, x: Tensor, here: float, elsewhere: float) -> Tensor:
        """`values` [B, d, S or C] at masks; at a token `here` in its column, else `elsewhere`."""
        column = x[..., None].clamp_max(values.shape[-1] - 1)
        written = torch.where(self._masked(x), values, elsewhere)
        own = torch.where(self._masked(x), values.gather(-1, column), here)
        return written.scatter_(-1, column, own)


class Uniform(DiscreteProcess):
    """Uniform noise: tokens are replaced by uniform ones, `T = alpha I + (1 - alpha) / S`.

    `s(y) = (alpha S pi(y) + 1 - alpha) / (alpha S pi(x^i) + 1 - alpha)`. The networks of UDLM and
    Duo model `pi`, which leaves out position i itself; the posterior of the clean token is
    `pi(z) T(z, x^i)`, normalised to sum to one.
    """

    @property
    def num_states(self) -> int:
        return self.num_tokens

    def prior(self):
        return torch.full((self.num_tokens,), 1 / self.num_tokens, dtype=torch.float64)

    def start(self, noise):
        return (noise.place * self.num_tokens).long()

    def add_noise(self, x_0, t, noise):
        alpha = expand(self.alpha(t), x_0)
        other = (noise.place * (self.num_tokens - 1)).long()
        return torch.where(noise.move < alpha + (1 - alpha) / self.num_tokens, x_0, other + (other >= x_0))

    def movable(self, x):
        return torch.ones_like(x, dtype=torch.bool)

    def likelihood(self, x, alpha):
        return alpha * self.states(x, alpha.dtype) + (1 - alpha) / self.num_tokens

    def transition(self, x_0, alpha):
        return self.likelihood(x_0, alpha)  # T is symmetric

    def jumps(self, x, dtype):
        each = torch.full((*x.shape, self.num_tokens), 1 / self.num_tokens, dtype=dtype, device=x.device)
        return each.scatter_(-1, x[..., None], 0)

    def carry_over(self, log_mean, x):
        return log_mean

    def score_from_mean(self, log_mean, x, alpha):
        log_marginal = (alpha * self.num_tokens * log_mean.exp() + 1 - alpha).log()
        return log_marginal - log_marginal.gather(-1, x[..., None])

    def mean_from_score(self, log_score, x, alpha):
        ratio = log_score.softmax(-1) * self.num_tokens  # scaled as alpha S pi + 1 - alpha is
        return ((ratio - (1 - alpha)) / (alpha * self.num_tokens)).clamp_min(0).log()

    def ancestral(self, log_mean, x, alpha_t, alpha_s):
        pi, here, size = log_mean.exp(), x[..., None], self.num_tokens
        kept, own = alpha_t / alpha_s, pi.gather(-1, here)
        stay = alpha_t * size * own + kept - alpha_t
        kernel = (alpha_s - alpha_t) * pi + (1 - kept) * (1 - alpha_s) / size
        kernel = kernel.scatter_add(-1, here, stay)
        return kernel / (alpha_t * size * own + 1 - alpha_t)

    def tweedie(self, log_score, x, alpha_t, alpha_s):
        score, here, kept = log_score.exp(), x[..., None], alpha_t / alpha_s
        earlier = (score / kept + (1 - 1 / kept) * score.mean(-1, keepdim=True)).clamp_min(0)
        own = kept * earlier.gather(-1, here)
        kernel = ((1 - kept) / self.num_tokens * earlier).scatter_add(-1, here, own)
        return kernel / kernel.sum(-1, keepdim=True)
