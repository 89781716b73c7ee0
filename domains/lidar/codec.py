"""The codec of point sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distillkit import checks
from distillkit.codec import Codec


class Completion(Codec):
    """Points around those of a scan, `repeat` for each; as many as the scan asks for.

    Args:
        repeat: points of a sample for each of the scan.
        refine: folder of a refinement network, which samples pass on their way to data, see
            `domains.lidar.refinement`; None for none. It is frozen, and not part of a student.

    Raises:
        ValueError: the folder holds no refinement.
    """

    free = {"part": (1,)}

    def __init__(self, repeat: int = 8, refine: str | None = None):
        checks.whole(1, 1000, repeat=repeat)
        self.repeat, self._refinement = repeat, None
        if refine is not None:
            from domains.lidar.refinement import load_refinement

            self._refinement = load_refinement(refine)

    @torch.no_grad()
    def decode(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        if self._refinement is None:
            return x
        with torch.autocast(x.device.type, enabled=False):
            return self._refinement.to(x.device)(x.float())

    def data_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        factor = 1 if self._refinement is None else self._refinement.factor
        return factor * event_shape[0], 3

    def shape(self, num: int, event_shape: Sequence[int], cond: Mapping[str, Tensor]) -> tuple[int, ...]:
        return num, self.repeat * cond["part"].shape[1], 3

    def answering(self, student, seed, kappa, tile, overlap):
        from domains.lidar.complete import Completer

        return Completer(student, seed, kappa, tile, overlap)
