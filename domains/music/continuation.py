"""Music longer than a clip: the end of one sound is the beginning of the next."""

from __future__ import annotations

from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.rollouts import Continuation


class LastSound(Continuation):
    """The end of a sound [B, C, N] becomes the beginning `first` of the next.

    It is as long as the one that was given, cut to [-1, 1], and no gradient flows through it.
    """

    axis = 2

    def __call__(self, cond: Cond, x_0: Tensor) -> Cond:
        return {**cond, "first": x_0[..., -self.overlap(cond) :].detach().clamp(-1, 1)}

    def overlap(self, cond: Cond) -> int:
        if "first" not in cond or cond["first"].ndim != 3:
            raise ValueError("sounds go on from their beginnings, cond['first'], which this model is not given")
        return cond["first"].shape[2]
