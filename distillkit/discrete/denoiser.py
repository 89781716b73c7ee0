"""Denoisers of tokens: `denoiser(x_t, t, cond) -> Reading`, with mean, score and rates.

The network is called once for all positions. Its output is read where it matters: a tensor
[B, d, C] takes 200 MB at 1,024 positions and 50,257 states, and a step makes a dozen of them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.diffusion.denoiser import Cond, precise
from distillkit.diffusion.process import expand
from distillkit.discrete.process import Absorbing, DiscreteProcess
from distillkit.spec import Recorded

CELLS = 2**20  # positions x states that are read at a time: a few MB each for a dozen intermediate tensors


class Reading(ABC):
    """What a denoiser says at states x, computed when asked for.

    `reading[i, j]` is the reading of the positions `x[i, j]` alone, [n] instead of [B, d].

    Args:
        process: the noising process.
        x: states, [B, d].
        t: their times, [B] or scalar; a number becomes float64, for the digits of 1 - alpha.
        output: of the network, [B, d, ...], or the reading that this one is made from.
    """

    def __init__(self, process: DiscreteProcess, x: Tensor, t: Tensor | float, output: Any):
        self.process, self.x, self.output = process, x, output
        self.t = torch.as_tensor(t, device=x.device, dtype=None if isinstance(t, Tensor) else torch.float64)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, where: tuple[Tensor, ...]) -> Reading:
        some = copy.copy(self)
        some.x, some.output = self.x[where], self.output[where]
        some.t = self.t[where[0]] if self.t.ndim else self.t
        return some

    @abstractmethod
    def log_mean(self) -> Tensor:
        """`log p(x_0^i = y | x_t^{-i})`, [B, d, S].

        Under absorbing noise it is certain where the token is visible.
        """

    def log_score(self) -> Tensor:
        """`log p_t(x with x^i := y) / p_t(x)`, [B, d, C]; -inf if a visible token rules y out."""
        log_mean = self.log_mean()
        return self.process.score_from_mean(log_mean, self.x, self.alpha())

    def rates(self) -> Tensor:
        """Reverse rates `sigma'(t) Q(y, x^i) s_i(y)`, [B, d, C]; zero at the current state."""
        score = self.log_score().exp()
        return self.process.jumps(self.x, score.dtype) * score * expand(self.process.rate(self.t), score)

    def alpha(self, t: Tensor | None = None) -> Tensor:
        """alpha at t or another time, shaped to broadcast against [B, d, ...]."""
        return expand(self.process.alpha(self.t if t is None else t), self.x[..., None])

    def movable(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The positions that a step may change, as indices `(i, j)` of x [B, d], some at a time."""
        i, j = self.process.movable(self.x).nonzero(as_tuple=True)  # the one synchronisation
        some = max(1, CELLS // self.process.num_states)
        return zip(i.split(some), j.split(some), strict=True)


class DiscreteDenoiser(Recorded, nn.Module, ABC):
    """A discrete diffusion model: the law of each clean token given all other positions.

    Args:
        process: the noising process.
    """

    def __init__(self, process: DiscreteProcess):
        super().__init__()
        self.process = process

    def with_network(self, network: nn.Module) -> DiscreteDenoiser:
        """Returns a denoiser of the same kind on the same process with another network."""
        return type(self)(**self.recorded() | {"network": network})

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor | float, cond: Cond | None = None) -> Reading:
        """One call of the network; t: [B] or scalar."""


def network_time(t: Tensor | float, x_t: Tensor) -> Tensor:
    """t in the form of networks' inputs: [B], float32."""
    return torch.as_tensor(t, device=x_t.device, dtype=torch.float32).expand(len(x_t))


class Mean(DiscreteDenoiser):
    """A denoiser whose network predicts the clean token (MDLM, RADD; uniform noise: UDLM, Duo).

    Args:
        network: `network(x_t, t [B], cond) -> logits` [B, d, S] or [B, d, C]; a column for the mask
            is dropped, since the mask is never predicted.
        process: the noising process.
    """

    def __init__(self, network: nn.Module, process: DiscreteProcess):
        super().__init__(process)
        self.network = network

    def forward(self, x_t, t, cond=None):
        return MeanReading(self.process, x_t, t, self.network(x_t, network_time(t, x_t), cond or {}))


class MeanReading(Reading):
    def log_mean(self):
        logits = precise(self.output[..., : self.process.num_tokens])
        return self.process.carry_over(logits.log_softmax(-1), self.x)


class Ratio(DiscreteDenoiser):
    """A denoiser whose network predicts the log score (SEDD), which need not belong to a law.

    Args:
        network: `network(x_t, t [B], cond) -> log s` [B, d, C]; its value at the current state is
            replaced by 0.
        process: the noising process.
        scaled: whether the network leaves out the factor `alpha / (1 - alpha) / S`, the mean score
            of a mask (SEDD's `scale_by_sigma`); absorbing noise only.
    """

    def __init__(self, network: nn.Module, process: DiscreteProcess, scaled: bool = False):
        super().__init__(process)
        if scaled and not isinstance(process, Absorbing):
            raise ValueError(f"a scaled ratio belongs to absorbing noise, got {process}: set scaled to false")
        self.network, self.scaled = network, scaled

    def forward(self, x_t, t, cond=None):
        output = self.network(x_t, network_time(t, x_t), cond or {})
        return RatioReading(self.process, x_t, t, output, self.scaled)


class ScoreReading(Reading):
    """A reading whose score is given."""

    @abstractmethod
    def log_score(self): ...

    def log_mean(self):
        return self.process.mean_from_score(self.log_score(), self.x, self.alpha())


class RatioReading(ScoreReading):
    def __init__(self, process: DiscreteProcess, x: Tensor, t: Tensor | float, output: Tensor, scaled: bool):
        super().__init__(process, x, t, output)
        self.scaled = scaled

    def log_score(self):
        log_score = precise(self.output)
        if self.scaled:
            alpha = self.alpha()
            log_score = log_score + (alpha / (1 - alpha) / self.process.num_tokens).log()
        return log_score.scatter(-1, self.x[..., None], 0)


class Guided(DiscreteDenoiser):
    """Guided mean `log pi_null + kappa (log pi_cond - log pi_null)`, normalised to sum to one.

    Args:
        denoiser: the model.
        null: map from a condition to the unconditional one.
        kappa: guidance scale; 1 means no guidance.
    """

    def __init__(self, denoiser: DiscreteDenoiser, null: Callable[[Cond], Cond], kappa: float):
        super().__init__(denoiser.process)
        self.denoiser, self.null, self.kappa = denoiser, null, kappa

    def forward(self, x_t, t, cond=None):
        with_cond, without = self.denoiser(x_t, t, cond), self.denoiser(x_t, t, self.null(cond or {}))
        return GuidedReading(with_cond, without, self.kappa)


class GuidedReading(Reading):
    def __init__(self, with_cond: Reading, without: Reading, kappa: float):
        super().__init__(with_cond.process, with_cond.x, with_cond.t, with_cond)
        self.without, self.kappa = without, kappa

    def __getitem__(self, where):
        return GuidedReading(self.output[where], self.without[where], self.kappa)

    def log_mean(self):
        with_cond, without = self.output.log_mean(), self.without.log_mean()
        mixed = without + self.kappa * (with_cond - without)
        ruled_out = with_cond.isneginf() | without.isneginf()
        return mixed.masked_fill(ruled_out, -torch.inf).log_softmax(-1)
