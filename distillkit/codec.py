"""Codecs between data and the space of the diffusion."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from distillkit.spec import Recorded


class Answering(Protocol):
    """What makes a sample for each file of a user's, see `Codec.answering`."""

    noun: str  # the content of a file, such as "image"
    suffixes: Sequence[str]  # of the files that it reads
    ending: str  # of the files that it writes

    def __call__(self, source: Path, target: Path) -> None:
        """Write the sample made for a file; a ValueError says why there is none."""


class Codec(Recorded):
    """The identity; others (a VAE, a spectrogram, a residual) derive from it.

    Attributes:
        tunable: whether it decodes by a network, `decoder`, that can be trained.
        tuned: the trained network that took its place; a student's folder keeps it.
        in_graph: whether decoding joins the graph of an exported student.
        free: by condition, its axes whose size is free; the size of samples along the same axes is
            a multiple of theirs.
    """

    tunable: bool = False
    tuned: nn.Module | None = None
    in_graph: bool = False
    free: Mapping[str, tuple[int, ...]] = {}

    def check(self, data: Any) -> None:
        """Refuse training data for which this codec is not made.

        Args:
            data: a `distillkit.data.DistillData`.
        """

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The batch's real samples in the space of the diffusion, [B, *event_shape]."""
        return batch["data"]

    def decode(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Samples [B, *event_shape] made for `cond` as data, the input of evaluators and media."""
        return x

    def conditions(self, cond: Mapping[str, Tensor], event_shape: Sequence[int]) -> Mapping[str, Tensor]:
        """Conditions as networks see them: what is costly to encode is encoded here, once.

        Those that are encoded already stay as they are.

        Args:
            cond: of B samples, [B, ...] each.
            event_shape: shape of a sample in the space of the diffusion.
        """
        return cond

    def rebase(self, x: Tensor, alpha: Tensor | float, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Tensor:
        """Samples made for conditions `old` in the space of conditions `new`.

        They differ where what `encode` takes from data depends on the condition. The data are the
        same before and after, as is the noise in them.

        Args:
            x: samples [B, *event_shape], clean or noised.
            alpha: the scale of the signal in x, which broadcasts against it; 1 for clean samples.
            old, new: conditions of the B samples.
        """
        return x

    def decoder(self) -> nn.Module:
        """A trainable copy of the network by which a tunable codec decodes, as it was read."""
        raise ValueError(f"{type(self).__name__} has no decoder with weights")

    def with_decoder(self, decoder: nn.Module) -> Codec:
        """This codec with a trained one in the place of its own; encoding stays as it is."""
        made = copy.copy(self)
        made.tuned = decoder
        return made

    def data_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the data of one sample of this shape."""
        return tuple(event_shape)

    def shape(self, num: int, event_shape: Sequence[int], cond: Mapping[str, Tensor]) -> tuple[int, ...]:
        """The shape of `num` samples for `cond`, whose mask or observation has a size of its own.

        Args:
            num: number of samples.
            event_shape: shape of a sample in training; of a padded set, with its largest size.
            cond: their conditions.
        """
        mask = cond.get("mask")
        return (num, *event_shape) if mask is None else (*mask.shape, *event_shape[mask.ndim - 1 :])

    def answering(
        self, student: nn.Module, seed: int, kappa: float | None, tile: int | None, overlap: int
    ) -> Answering | None:
        """What answers files with files; None where samples are not made for what a file holds.

        Args:
            student: a student of this codec.
            seed, kappa: as in `Student.sample`.
            tile: largest side of what is made at once, None for no limit.
            overlap: what neighbouring tiles share.

        Raises:
            ValueError: the student cannot be asked in this way.
        """
        return None
