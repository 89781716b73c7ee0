"""Videos longer than a clip: the last frames of one clip are the context frames of the next."""

from __future__ import annotations

from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.rollouts import Continuation


class LastFrames(Continuation):
    """The last frames of a clip [B, C, T, H, W] become the context frames `first` of the next.

    There are as many of them as were given.

    They are cut to [-1, 1], and no gradient flows through them.
    """

    axis = 2

    def __call__(self, cond: Cond, x_0: Tensor) -> Cond:
        return {**cond, "first": x_0[:, :, -self.overlap(cond) :].detach().clamp(-1, 1)}

    def overlap(self, cond: Cond) -> int:
        if "first" not in cond or cond["first"].ndim != 5:
            raise ValueError("videos go on from their first frames, cond['first'], which this model is not given")
        return cond["first"].shape[2]
