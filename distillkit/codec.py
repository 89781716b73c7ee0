"""Between data and the space that is diffused in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from distillkit.spec import Recorded


class Codec(Recorded):
    """The identity: what is diffused are the data. Others (a VAE, a spectrogram, a residual) derive from it."""

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The batch's real samples as the teacher diffuses them, [B, *event_shape]."""
        return batch["data"]

    def decode(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Samples [B, *event_shape] made for `cond` as data; what evaluators and media see."""
        return x

    def data_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of one sample's data, of samples of this shape."""
        return tuple(event_shape)
