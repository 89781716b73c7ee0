"""The loss of discrete diffusion models: the negative evidence lower bound, as score entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.process import expand
from distillkit.discrete.denoiser import DiscreteDenoiser
from distillkit.discrete.noise import Noise


def score_entropy(denoiser: DiscreteDenoiser, x_0: Tensor, t: Tensor, noise: Noise, cond: Cond | None = None) -> Tensor:
    """Score entropy of each sample, nats, [B] (SEDD, arXiv 2310.16834).

    It is `sigma'(t) sum_i sum_y Q(y, x_t^i) [s - r log s + r (log r - 1)]`, where
    `r = q(y | x_0) / q(x_t^i | x_0)` is the target of the score s = s_i(y). Its mean over
    t ~ U(0, 1) bounds `-log p(x_0)` up to the divergence of the prior. With absorbing noise and a
    model of the mean it is, term by term, MDLM's cross-entropy of the masked tokens with weight
    `-alpha' / (1 - alpha)` (arXiv 2406.07524); with uniform noise it is UDLM's bound (arXiv
    2412.10193).

    Args:
        x_0: clean tokens [B, d].
        t: times, [B].
        noise: noise of `process.add_noise`.
        cond: conditions.
    """
    process = denoiser.process
    x_t = process.add_noise(x_0, t, noise)
    reading = denoiser(x_t, t, cond)
    log_score = reading.log_score()
    jumps = process.jumps(x_t, log_score.dtype)
    log_score = log_score.masked_fill(jumps == 0, 0)
    law = process.transition(x_0, reading.alpha().to(log_score.dtype))
    ratio = law / law.gather(-1, x_t[..., None])
    bracket = log_score.exp() - ratio * log_score + torch.xlogy(ratio, ratio) - ratio
    return (expand(process.rate(t).to(log_score.dtype), bracket) * jumps * bracket).sum((1, 2))
