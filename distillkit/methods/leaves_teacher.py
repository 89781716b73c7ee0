"""The base of methods whose product is a teacher: a slow model that the next run starts from."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.methods.base import Distiller
from distillkit.teachers.base import BaseTeacher


class TeacherDistiller(Distiller):
    """A method whose role `student` trains the denoiser of a new teacher.

    Attributes:
        teacher_class: the class of the new teacher.
        surroundings: the arguments of that class besides the denoiser.
        best: the `solver` and `steps` with which the new teacher samples best.
    """

    teacher_class: type[BaseTeacher]
    surroundings: dict[str, Any]
    best: dict[str, Any]

    def product(self) -> BaseTeacher:
        """The new teacher: it holds the EMA, or without one a copy of the student; adapters merged.

        A teacher freezes its denoiser, hence the copy.
        """
        denoiser = copy.deepcopy(self.student) if self.ema is None else self.ema
        denoiser = denoiser.merged() if isinstance(denoiser, Denoiser) else denoiser
        teacher = self.teacher_class(denoiser, **self.surroundings)
        teacher.best = self.best
        return teacher

    def sample(self, cond: Cond, num: int, seed: int) -> Tensor:
        return self.product().generate(num, cond, seed)
