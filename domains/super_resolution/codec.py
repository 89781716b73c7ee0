"""The codec between photographs and the space of the diffusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from distillkit import checks
from distillkit.codec import Codec
from domains.super_resolution.resize import enlarged


class Upscale(Codec):
    """Photographs, or what they add to their enlarged observation; of the size that it asks for.

    Args:
        scale: how many times larger than its observation a photograph is.
        residual: whether samples are `data - enlarged(low)`, as ResShift's process needs it, or the
            photographs themselves.
    """

    in_graph = True
    free = {"low": (2, 3)}

    def __init__(self, scale: int = 4, residual: bool = True):
        checks.whole(1, 64, scale=scale)
        self.scale, self.residual = scale, residual

    def base(self, cond: Mapping[str, Tensor]) -> Tensor | float:
        """What is taken from encoded photographs: the enlarged observation, or nothing."""
        if not self.residual:
            return 0.0
        low = cond["low"].float()
        return enlarged(low, [self.scale * side for side in low.shape[-2:]])

    def encode(self, batch):
        return batch["data"] - self.base(batch)

    def decode(self, x, cond):
        return x + self.base(cond)

    def shape(self, num: int, event_shape: Sequence[int], cond: Mapping[str, Tensor]) -> tuple[int, ...]:
        return num, event_shape[0], *(self.scale * side for side in cond["low"].shape[-2:])

    def answering(self, student, seed, kappa, tile, overlap):
        from domains.super_resolution.enlarge import Enlarger

        return Enlarger(student, self.scale, seed, kappa, tile, overlap)
