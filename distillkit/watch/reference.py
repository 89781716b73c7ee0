"""The samples that a run is measured against: the teacher's, the data's, and its own first ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit.devices import in_chunks
from distillkit.diffusion.denoiser import Cond
from distillkit.teachers.base import BaseTeacher

SEED = 4321  # of the noise of all of them; neither training nor evaluation uses it
NUMBERS = 4096  # in all samples of a model, at least FEWEST and at most MOST samples
FEWEST, MOST = 16, 512


def evenly(num: int, of: int) -> Tensor:
    """Indices of `num` of so many samples, evenly apart: files often lie sorted by class."""
    return torch.arange(num) * of // num


class Reference:
    """Samples for the same held-out conditions and from the same noise, decoded, on the CPU.

    Args:
        model: the method, see `methods.base.Distiller`.
        data: its data, set up.
        num: number of samples; None is `FEWEST` to `MOST`, fewer of large samples.

    Attributes:
        batch, cond: the held-out batch and its conditions, on the model's device.
        shown, teacher_cond: the same as the teacher is shown them.
        real: held-out samples with these conditions; None where data have none.
        teacher: the teacher's samples at its best, guided as in training; None without a teacher
            of the contract `BaseTeacher`.
        clean: the same before they are decoded.
        unguided: the same without guidance.
        first: those of the product before the run.
    """

    def __init__(self, model: Any, data: Any, num: int | None = None):
        size = max(1, torch.Size(data.event_shape).numel())
        num = min(num or min(MOST, max(FEWEST, NUMBERS // size)), len(data.val))
        self.num = num
        batch = data.val[evenly(num, len(data.val))]
        self.batch = {name: value.to(model.device) for name, value in batch.items()}
        self.cond: Cond = model.condition(self.batch)
        self.shown = model.shown(self.batch)
        self.teacher_cond: Cond = model.condition(self.shown)
        self.real: Tensor | None = batch.get("data")
        teacher = getattr(model, "teacher", None)
        self.teacher = self.clean = self.unguided = None
        if isinstance(teacher, BaseTeacher):
            kappa = getattr(model, "kappa", 1.0)
            self.clean = teacher.generate(num, self.teacher_cond, SEED, kappa=kappa, decode=False)
            self.teacher = decoded(teacher, self.clean, self.teacher_cond)
            guided = kappa != 1 and teacher.guidable
            self.unguided = teacher.generate(num, self.teacher_cond, SEED, decode=False) if guided else self.clean
        self.first = self.samples(model)

    @torch.no_grad()
    def samples(self, model: Any) -> Tensor:
        """The product's samples as it is now."""
        training = model.training
        model.eval()
        try:
            return model.sample(self.cond, self.num, SEED).cpu()
        finally:
            model.train(training)

    def raw(self, model: Any) -> Tensor:
        """The same of the product without its average."""
        ema, model.ema = model.ema, None
        try:
            return self.samples(model)
        finally:
            model.ema = ema

    @property
    def target(self) -> Tensor | None:
        """The samples that the product's should be like: the teacher's, else the data's."""
        return self.real if self.teacher is None else self.teacher


def decoded(teacher: Any, x: Tensor, cond: Cond) -> Tensor:
    """Samples of the teacher as data, on the CPU."""

    def part(rows: slice) -> Tensor:
        return teacher.codec.decode(x[rows].to(teacher.device), {name: value[rows] for name, value in cond.items()})

    return in_chunks(part, len(x), teacher.chunk)
