"""Codecs between data and the latents of a pipeline's autoencoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.codec import Codec
from distillkit.pipelines.files import load, print_of, read_json

LATENT = "latent"  # of a batch: samples that were encoded before, see `distillkit.pipelines.encode`


class PipelineCodec(Codec):
    """Data and latents of order one, by the autoencoder of a pipeline.

    The autoencoder works in float32 on the device of what it gets, is read when it is needed first,
    and takes one sample at a time. Latents that a batch holds already (`latent`) are taken as they
    are.

    Args:
        path: the pipeline's directory; if it is missing, only reading data raises an error.
        print: hash of the pipeline, see `print_of`; None takes that of what is there.

    Attributes:
        kinds: classes of the autoencoder in the package diffusers.
        part: its folder.
        reads: whether it encodes data; else samples have to be encoded already.
        levels: the type in which data are kept beside latents, see `distillkit.pipelines.latents`.
    """

    kinds: tuple[str, ...]
    part = "vae"
    reads = True
    levels = torch.uint8

    def __init__(self, path: str, print: str | None = None):
        folder = Path(path).expanduser()
        self.path = path
        self._root = folder.resolve() if folder.is_dir() else None  # now, for what a folder may read is checked before
        self._print, self._recognised = print, False

    def recorded(self):
        own = super().recorded()
        return own if self._root is None and self._print is None else own | {"print": self.print}

    @cached_property
    def print(self) -> str:
        """The hash of the pipeline that this codec was made for."""
        return self._print or print_of(self.root)

    @property
    def root(self) -> Path:
        """The pipeline's directory.

        Raises:
            ValueError: it is not there any more, or another one is there.
        """
        if self._root is None:
            raise ValueError(
                f"there is no directory {self.path}, the pipeline that this student was made from: put it back, or say where "
                f"it is now (--pipeline DIR, load_student(..., pipeline=DIR)), or take samples undecoded, with decode=False"
            )
        if self._print is not None and not self._recognised:
            if print_of(self._root) != self._print:
                raise ValueError(
                    f"{self.path} holds another pipeline than the one that this student was made from, or it has changed: "
                    f"restore that one, or say where it is now with --pipeline DIR"
                )
            self._recognised = True
        return self._root

    @cached_property
    def vae(self) -> Any:
        """The autoencoder, frozen, in eval mode, float32."""
        return load(self.root, self.part, self.kinds, torch.float32).requires_grad_(False).eval()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration of the autoencoder."""
        return read_json(self.root / self.part / "config.json")

    @abstractmethod
    def units(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the autoencoder's own latents, which broadcast to z."""

    def into(self, x: Tensor) -> Tensor:
        """Data of one sample as the autoencoder's own latents, the mean of its posterior."""
        return self.vae.encode(x).latent_dist.mode()

    def out_of(self, z: Tensor) -> Tensor:
        """The autoencoder's own latents of one sample as data."""
        return self.vae.decode(z, return_dict=False)[0]

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The samples `batch["data"]` as latents of order one, or `batch["latent"]` as it is.

        Gradients reach samples that require them; the autoencoder itself is frozen.
        """
        if LATENT in batch:
            return batch[LATENT].float()
        x = batch["data"].float()
        self.vae.to(x.device)
        mean, std = (value.to(x.device) for value in self.units())
        return torch.cat([(self.into(one) - mean) / std for one in x.split(1)])

    @torch.no_grad()
    def decode(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Latents as data; some values may lie beyond [-1, 1]."""
        self.vae.to(x.device)
        mean, std = (value.to(x.device) for value in self.units())
        return torch.cat([self.out_of(one * std + mean) for one in x.float().split(1)])

    @abstractmethod
    def data_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the data of one sample of this shape, from the configuration alone."""
