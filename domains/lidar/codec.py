"""The codec of point sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from distillkit import checks
from distillkit.codec import Codec


class Completion(Codec):
    """Points around those of a scan, `repeat` for each; as many as the scan asks for.

    Args:
        repeat: points of a sample for each of the scan.
    """

    free = {"part": (1,)}

    def __init__(self, repeat: int = 8):
        checks.whole(1, 1000, repeat=repeat)
        self.repeat = repeat

    def shape(self, num: int, event_shape: Sequence[int], cond: Mapping[str, Tensor]) -> tuple[int, ...]:
        return num, self.repeat * cond["part"].shape[1], 3

    def answering(self, student, seed, kappa, tile, overlap):
        from domains.lidar.complete import Completer

        return Completer(student, seed, kappa, tile, overlap)
