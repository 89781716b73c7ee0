"""Prompts and samples as data for pipelines: batches hold `prompt` int64 [B], its number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distillkit import checks
from distillkit.data import Batch, DistillData, TensorData, column
from distillkit.pipelines.codec import PipelineCodec
from distillkit.pipelines.files import local
from distillkit.pipelines.network import Network
from distillkit.pipelines.prompts import read_prompts
from distillkit.pipelines.teacher import PipelineTeacher

EPOCH = 1000  # draws of an epoch, at least
VALIDATED = 16  # prompts of validation, at most


class PromptData(DistillData):
    """Prompts from a file, and no samples: enough for methods that learn from the teacher alone.

    Args:
        path: file or folder with the prompts, see `read_prompts`.
        pipeline, download: `path` and `download` of the teacher, whose pipeline says which sizes of
            samples are possible.
        size: of a sample, that of the teacher; None is the pipeline's own.
        held_out: number of the last prompts that are not trained on; evaluation and pictures ask
            for them. 0 trains on all and asks for all.
        batch_size: prompts in a batch.

    Attributes:
        teacher: the domain's teacher of pipelines.
        codec: the pipeline's; None if it works on data.
    """

    pictured = 4
    provides = frozenset()
    teacher: type[PipelineTeacher]

    def __init__(
        self,
        path: str,
        pipeline: str | None,
        size: Mapping[str, int | float | None] | None = None,
        held_out: int = 0,
        download: bool = False,
        batch_size: int = 1,
    ):
        super().__init__(batch_size)
        if pipeline is None:
            raise ValueError("prompts need a teacher that reads them: say teacher=diffusers teacher.path=DIR")
        self.prompts = read_prompts(path)
        made = samples_of(self.teacher, pipeline, size, download)
        self.codec, self.event_shape = made.codec, made.shape
        self.classes, self.context = {"prompt": len(self.prompts)}, made.family.context
        self.names = {"prompt": self.prompts}
        num = self.read(path)
        checks.whole(0, held_out=held_out)
        if held_out >= num:
            raise ValueError(f"held_out must leave some of the {num} prompts to train on, got {held_out}")
        self.asked = torch.arange(num - held_out if held_out else 0, num)
        self.trained = torch.arange(num - held_out)

    def read(self, path: str) -> int:
        """Read what goes with the prompts, if anything; returns the number of conditions."""
        return len(self.prompts)

    def part(self, rows: Tensor) -> Any:
        """The conditions of these rows as a data set."""
        return TensorData({"prompt": rows})

    def load(self) -> tuple[Any, Any, Any]:
        drawn = self.trained.repeat(-(-EPOCH // len(self.trained)))
        return self.part(drawn), self.part(self.asked[:VALIDATED]), self.part(self.asked)

    def conditions(self, num: int) -> dict[str, Tensor]:
        rows = torch.arange(num) % len(self.asked)
        return self.part(self.asked[rows])[torch.arange(num)]


class SampleData(DistillData):
    """Base of samples for pipelines: evaluation asks for what held-out samples show, in turn."""

    pictured = 4

    def conditions(self, num: int) -> Batch:
        self.setup()
        rows = torch.arange(num) % len(self.test)
        return {name: column(self.test, name)[rows] for name in self.classes}

    def left_out(self) -> dict[str, list[int]]:
        return {}

    def real(self, num: int) -> Batch:
        self.setup()
        return self.test[torch.arange(num) % len(self.test)]


class Samples(NamedTuple):
    """The samples that a pipeline makes.

    Args:
        family: of the pipeline.
        codec: between data and latents; None if it works on data.
        shape: of a sample as data.
    """

    family: type[Network]
    codec: PipelineCodec | None
    shape: tuple[int, ...]


def samples_of(
    teacher: type[PipelineTeacher],
    pipeline: str,
    size: Mapping[str, int | float | None] | None = None,
    download: bool = False,
) -> Samples:
    """The samples of the pipeline of a teacher.

    Args:
        teacher: the domain's teacher of pipelines.
        pipeline, download: its `path` and `download`.
        size: of a sample; None is the pipeline's own, as a whole or for a side.
    """
    root, size = local(pipeline, download), size or {}
    family = teacher.family(root)
    shape, codec = family.latent_shape(root, size), family.make_codec(root, size)
    return Samples(family, codec, tuple(shape if codec is None else codec.data_shape(shape)))
