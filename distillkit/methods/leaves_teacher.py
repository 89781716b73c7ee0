"""The base of methods whose product is a teacher: a slow model that the next run starts from."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from distillkit import cache, checks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.guidance import drop_condition, null_condition
from distillkit.methods.base import Distiller
from distillkit.methods.from_data import FromData
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
        with cache.using(None):  # in the next validation it is another teacher
            return self.product().generate(num, cond, seed)


class DataDistiller(FromData, TeacherDistiller):
    """The new teacher's denoiser is fitted to data; there is no teacher before it.

    Args:
        denoiser, event_shape, classes, context, codec, continuation, student: as in `FromData`.
        solver, steps: those with which the new teacher samples best; kept in its folder. None is
            the kind's own solver.
        drop: share of samples trained without their condition, so that guidance is possible.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        event_shape: list[int],
        classes: dict[str, int] | None = None,
        context: list[str] | None = None,
        solver: str | None = None,
        steps: int = 18,
        drop: float = 0.1,
        **kwargs,
    ):
        super().__init__(denoiser, event_shape, classes, context, **kwargs)
        checks.whole(1, 10_000, steps=steps)
        checks.within("[0, 1)", "a share of 1 would never see its condition", drop=drop)
        self.drop = drop
        self.surroundings = {
            "event_shape": self.event_shape,
            "classes": self.classes,
            "context": self.context,
            "codec": self.codec,
            "continuation": self.continuation,
        }
        kind = self.teacher_class
        self.best = {"solver": solver or kind.best["solver"], "steps": steps}
        if self.best["solver"] not in kind.solvers:
            raise ValueError(f"there is no solver {solver!r}; there are {', '.join(kind.solvers)}")

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "drop": self.drop}

    def dropped(self, batch: dict[str, Tensor]) -> Cond:
        """The batch's condition; for a share `drop` of the samples its unconditional one."""
        cond, network = self.condition(batch), getattr(self.student, "network", None)
        if not (self.drop and (self.classes or hasattr(network, "null"))):
            return cond
        null = null_condition(cond, self.classes, network)
        return drop_condition(cond, null, self.rand(len(next(iter(batch.values()))), "drop") < self.drop)
