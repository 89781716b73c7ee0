"""What methods share that leave a teacher: a slow model for the next run to start from."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.methods.base import Distiller
from distillkit.teachers.base import BaseTeacher


class TeacherDistiller(Distiller):
    """Its role `student` trains the denoiser of a new teacher.

    Attributes:
        teacher_class: the class of that teacher.
        surroundings: what surrounds its denoiser: the other arguments of that class.
        best: solver and steps at which it counts as at its best.
    """

    teacher_class: type[BaseTeacher]
    surroundings: dict[str, Any]
    best: dict[str, Any]

    def product(self) -> BaseTeacher:
        """The averaged denoiser as a teacher, adapters merged; without an average a copy, for a teacher freezes it."""
        denoiser = copy.deepcopy(self.student) if self.ema is None else self.ema
        denoiser = denoiser.merged() if isinstance(denoiser, Denoiser) else denoiser
        teacher = self.teacher_class(denoiser, **self.surroundings)
        teacher.best = self.best
        return teacher

    def sample(self, cond: Cond, num: int, seed: int) -> Tensor:
        return self.product().generate(num, cond, seed)
