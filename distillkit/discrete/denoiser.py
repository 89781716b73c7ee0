"""Denoisers of tokens: `denoiser(x_t, t, cond) -> log pi`, [B, d, S], with score and rates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from distillkit.diffusion.denoiser import Cond, precise
from distillkit.diffusion.process import expand
from distillkit.discrete.process import Absorbing, DiscreteProcess
from distillkit.spec import Recorded


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
    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """`log p(x_0^i = y | x_t^{-i})`, [B, d, S]; t: [B] or scalar.

        Under absorbing noise it is certain where the token is visible.
        """

    def log_score(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """`log p_t(x with x^i := y) / p_t(x)`, [B, d, C]; -inf if a visible token rules y out."""
        log_mean = self(x_t, t, cond)
        return self.process.score_from_mean(log_mean, x_t, self.alpha(t, log_mean))

    def rates(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Reverse rates `sigma'(t) Q(y, x^i) s_i(y)`, [B, d, C]; zero at the current state."""
        score = self.log_score(x_t, t, cond).exp()
        return expand(self.process.rate(_time(t, score)), score) * self.process.jumps(x_t, score.dtype) * score

    def alpha(self, t: Tensor, like: Tensor) -> Tensor:
        """alpha(t), shaped to broadcast against `like` [B, d, ...]."""
        return expand(self.process.alpha(_time(t, like)), like)


def _time(t: Tensor, like: Tensor) -> Tensor:
    """t as a tensor on the right device; a number becomes float64, for the digits of 1 - alpha."""
    return torch.as_tensor(t, device=like.device, dtype=None if isinstance(t, Tensor) else torch.float64)


def network_time(t: Tensor, x_t: Tensor) -> Tensor:
    """t in the form of networks' inputs: [B], float32."""
    return torch.as_tensor(t, device=x_t.device, dtype=torch.float32).expand(len(x_t))


class Mean(DiscreteDenoiser):
    """A denoiser whose network predicts the clean token (MDLM, RADD; uniform noise: UDLM, Duo).

    Args:
        network: `network(x_t, t [B], cond) -> logits` [B, d, S] or [B, d, C]; a column for the mask
            is dropped, since the mask is never predicted.

    Args:
        network: `network(x_t, t [B], cond) -> logits` [B, d, S] or [B, d, C]; a column for the mask
            is dropped (never predicted).
        process: the noising process.
    """

    def __init__(self, network: nn.Module, process: DiscreteProcess):
        super().__init__(process)
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        logits = precise(self.network(x_t, network_time(t, x_t), cond or {}))
        return self.process.carry_over(logits[..., : self.process.num_tokens].log_softmax(-1), x_t)


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

    def log_score(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        log_score = precise(self.network(x_t, network_time(t, x_t), cond or {}))
        if self.scaled:
            alpha = self.alpha(t, log_score)
            log_score = log_score + (alpha / (1 - alpha) / self.process.num_tokens).log()
        return log_score.scatter(-1, x_t[..., None], 0)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        log_score = self.log_score(x_t, t, cond)
        return self.process.mean_from_score(log_score, x_t, self.alpha(t, log_score))


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

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        with_cond, without = self.denoiser(x_t, t, cond), self.denoiser(x_t, t, self.null(cond or {}))
        mixed = without + self.kappa * (with_cond - without)
        ruled_out = with_cond.isneginf() | without.isneginf()
        return mixed.masked_fill(ruled_out, -torch.inf).log_softmax(-1)
