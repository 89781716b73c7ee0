"""What score distillation methods share: a few-step student, a fake score that follows it, a teacher that both start from."""

from __future__ import annotations

from torch import nn

from distillkit.diffusion.times import Times
from distillkit.losses.reduce import Normalise
from distillkit.methods.base import Adam
from distillkit.methods.few_step import FewStepDistiller
from distillkit.teachers.base import Teacher


class ScoreDistiller(FewStepDistiller):
    """Base of methods whose student gradient compares the teacher's score with a score of the student's own samples.

    Args:
        teacher: the frozen teacher.
        student_times, fake_times: noise levels at which the student is judged and the fake score is trained.
        student, fake_score: optimisers of the two roles.
        normalise: the student's loss is divided by the mean of |x_g - teacher's x_0|, of each `sample` or the whole `batch`.
        network: network of the student and of the fake score; None copies the teacher's, weights included.
    """

    def __init__(
        self,
        teacher: Teacher,
        student_times: Times,
        fake_times: Times,
        student: Adam,
        fake_score: Adam,
        normalise: Normalise = "sample",
        network: nn.Module | None = None,
        **kwargs,
    ):
        super().__init__(teacher, **kwargs)
        self.student_times, self.fake_times, self.normalise = student_times, fake_times, normalise
        self.make_roles(student, fake_score, network)
        self.keep_ema()

    def make_roles(self, student: Adam, fake_score: Adam, network: nn.Module | None) -> None:
        """The fake score's turn comes first, so that it has seen the student before it steers it."""
        self.add_role("fake_score", fake_score, fake_score=self.teacher.new_denoiser(network))
        self.add_role("student", student, student=self.teacher.new_denoiser(network))
