"""Distillation-DPO's losses (arXiv 2504.11447): score distillation that ranks its own samples."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from distillkit.losses.dmd import dmd_loss
from distillkit.losses.reduce import Normalise


class Judged(NamedTuple):
    """Samples and what two denoisers say of them once they are noised, [B, ...] each.

    Attributes:
        x_g: student samples, with gradient.
        real, fake: denoised samples of the teacher and of the fake score of such samples.
    """

    x_g: Tensor
    real: Tensor
    fake: Tensor


def published_loss(
    winner: Judged,
    loser: Judged,
    weight: float,
    normalise: Normalise | None = "sample",
    mask: Tensor | None = None,
) -> Tensor:
    """`dmd_loss` of the winners, minus `weight` times that of the losers.

    With `normalise=None` the gradient is the paper's, with its intended stop-gradients, but for its
    unit: the paper takes differences of noises, which are these over sigma. The winners move
    towards the teacher, the losers away from it.

    Args:
        winner, loser: the preferred samples and the others, under one noise.
        weight: of the losers; 1 in the paper.
        normalise, mask: as in `dmd_loss`.
    """
    return dmd_loss(*winner, normalise, mask) - weight * dmd_loss(*loser, normalise, mask)


def guidance_loss(
    judged: Judged,
    winner: Tensor,
    loser: Tensor,
    beta: float,
    normalise: Normalise | None = "sample",
    mask: Tensor | None = None,
) -> Tensor:
    """`dmd_loss` whose gradient is `g = [(fake - real) - beta (winner - loser)] / n`.

    `winner - loser` is `sigma^2 / alpha` times the gradient, at the noised sample, of the log-odds
    that it won: classifier guidance (arXiv 2105.05233) without a classifier. It is bounded wherever
    the fake scores are. With beta = 0 this is DMD.

    Args:
        judged: the samples, seen by the teacher and by the fake score of all samples.
        winner, loser: what the fake scores of winners and losers say of the same noised samples,
            [B, ...]; constants.
        beta: weight of the preference.
        normalise, mask: as in `dmd_loss`; n is DMD's, without the preference.
    """
    x_g, real, fake = judged
    return dmd_loss(x_g, real, fake - beta * (winner - loser), normalise, mask)
