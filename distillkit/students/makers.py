"""How a role's denoiser is made from the teacher: `make(teacher) -> Denoiser`, trainable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.spec import Recorded
from distillkit.students.base import load_student
from distillkit.students.few_step import FewStepStudent
from distillkit.teachers.base import Teacher


class Maker(Recorded, ABC):
    """Makes the trainable denoiser of a role.

    Attributes:
        sampling: how its denoiser is sampled, where it brings that along: `times`, `renoise`; a method's own settings win.
    """

    sampling: dict[str, Any] = {}

    @abstractmethod
    def make(self, teacher: Teacher) -> Denoiser:
        """A new denoiser on the teacher's process; the parameters to be trained require gradients.

        Raises:
            ValueError: the teacher is of another kind than what is made.
        """


class Copy(Maker):
    """A copy of the teacher's network, weights included."""

    def make(self, teacher):
        return teacher.new_denoiser()


class Fresh(Maker):
    """Another network, untrained, that predicts what the teacher's predicts.

    Args:
        network: the network; each role gets a copy.
    """

    def __init__(self, network: nn.Module):
        self.network = network

    def make(self, teacher):
        return teacher.new_denoiser(self.network)


class FromFolder(Maker):
    """Goes on from a finished student, whose times and renoising hold unless the run says others.

    Args:
        path: its folder, or the run folder around it.
        trust: what that folder may do besides, see `load_student`.
    """

    def __init__(self, path: str, trust: Sequence[str] = ()):
        self.student = load_student(path, tuple(trust))
        if not isinstance(self.student, FewStepStudent):
            raise ValueError(
                f"{path} holds a {type(self.student).__name__}, which has no network of its own to go on from"
            )
        self.sampling = {"times": self.student.times, "renoise": self.student.renoise}

    def make(self, teacher):
        own = self.student
        for what, ours, theirs in (
            ("samples of the shape", own.event_shape, teacher.event_shape),
            ("the classes", own.classes, teacher.classes),
            ("the conditions", own.context, teacher.context),
            ("the process", own.denoiser.process, teacher.process),
        ):
            if ours != theirs:
                raise ValueError(
                    f"the student to go on from has {what} {ours}, the teacher {theirs}: take one of its own"
                )
        return own.denoiser.requires_grad_(True).train()
