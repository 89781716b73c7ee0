"""The base of methods whose product is a teacher: a slow model that the next run starts from."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from distillkit import cache, checks
from distillkit.codec import Codec
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.guidance import drop_condition, null_condition
from distillkit.methods.base import Adam, Distiller
from distillkit.methods.few_step import check_tokens
from distillkit.rollouts import Continuation
from distillkit.spec import Recorded
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


class DataDistiller(TeacherDistiller):
    """The new teacher's denoiser is fitted to data; there is no teacher before it.

    Args:
        denoiser: the denoiser to train.
        event_shape: shape of one sample.
        classes: categorical conditions, `{batch key: number of classes}`.
        context: batch keys of further conditions, see `BaseTeacher`.
        codec: the map between data and the space of the diffusion; None means they are the same.
        continuation: how a sample of the new teacher follows another; None means that samples do
            not follow each other.
        solver, steps: those with which the new teacher samples best; kept in its folder. None is
            the kind's own solver.
        drop: share of samples trained without their condition, so that guidance is possible.
        student: optimiser of the network, whose role is called `student` as in every method.
    """

    requires = frozenset({"data"})

    def __init__(
        self,
        denoiser: nn.Module,
        event_shape: list[int],
        classes: dict[str, int] | None = None,
        context: list[str] | None = None,
        solver: str | None = None,
        steps: int = 18,
        drop: float = 0.1,
        student: Adam = Adam(lr=1e-3),
        continuation: Continuation | None = None,
        codec: Codec | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.whole(1, event_shape=event_shape, classes=classes or {})
        checks.whole(1, 10_000, steps=steps)
        checks.within("[0, 1)", "a share of 1 would never see its condition", drop=drop)
        check_made_for(denoiser.network, event_shape)
        self.event_shape, self.classes, self.context = tuple(event_shape), dict(classes or {}), tuple(context or ())
        self.drop = drop
        self.surroundings = {
            "event_shape": self.event_shape,
            "classes": self.classes,
            "context": self.context,
            "codec": codec,
            "continuation": continuation,
        }
        self.codec = codec or Codec()
        kind = self.teacher_class
        self.best = {"solver": solver or kind.best["solver"], "steps": steps}
        if self.best["solver"] not in kind.solvers:
            raise ValueError(f"there is no solver {solver!r}; there are {', '.join(kind.solvers)}")
        self.add_role("student", student, student=denoiser)
        self.keep_ema()

    def condition(self, batch: dict[str, Tensor]) -> Cond:
        return {name: batch[name] for name in (*self.classes, *self.context)}

    def dropped(self, batch: dict[str, Tensor]) -> Cond:
        """The batch's condition, without its classes for a share `drop` of the samples."""
        cond = self.condition(batch)
        if not (self.classes and self.drop):
            return cond
        null = null_condition(cond, self.classes)
        return drop_condition(cond, null, self.rand(len(batch["data"]), "drop") < self.drop)

    def check(self, data) -> None:
        if tuple(data.event_shape) != (made := self.codec.data_shape(self.event_shape)):
            raise ValueError(
                f"the data have shape {tuple(data.event_shape)}, the network expects {made}: set "
                f"vars.event_shape=[{','.join(map(str, data.event_shape))}]"
            )
        check_tokens(self.student.process, data)
        if lacking := sorted(set(self.context) - set(data.context)):
            raise ValueError(f"vars.context says {', '.join(lacking)}, which these data do not have")


def check_made_for(network: nn.Module, event_shape: list[int]) -> None:
    """Refuse a network that was made for samples of another shape."""
    made_for = network.recorded().get("event_shape", event_shape) if isinstance(network, Recorded) else event_shape
    if tuple(made_for) != tuple(event_shape):
        raise ValueError(
            f"the network is made for event_shape {list(made_for)}, the run has {list(event_shape)}: say it once, with "
            f"vars.event_shape"
        )
