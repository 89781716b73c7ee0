"""Feedback: a few-step student climbs a differentiable reward (ReFL, arXiv 2304.05977)."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit import checks
from distillkit.losses.reduce import mean
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.few_step import FewStepDistiller
from distillkit.students.makers import Maker
from distillkit.teachers.base import Teacher


class Feedback(FewStepDistiller):
    """The student's samples climb the data's reward r and are held near those it began with.

        hold mean (x_g - sg[x_b])^2 - mean r(decode(x_g))

    x_b is the sample that the student made of the same noise and conditions when the run began.
    It is the second stage of Hyper-SD (arXiv 2404.13686) and goes on from a finished student,
    `student=folder`. The teacher is never called.

    A sample of N numbers rests where `x_g = x_b + N / (2 hold) grad r`. So a reward with the slope
    g moves every sample by `N g / (2 hold)` and keeps the law's shape.

    The gradient flows through the student's last step alone. In network passes a step costs twice
    those of a sample, and one backwards.

    Args:
        teacher: the frozen teacher, which gives process, conditions and codec.
        student_maker: makes the student that learns; None copies the teacher, whose sampler of
            `num_steps` steps then learns, as in ReFL.
        hold: weight of the distance to the samples that the student began with, in [0, 1000]; 0
            leaves the reward alone, which is then cheated without bound.
        student: settings of the student's optimiser.
        kwargs: as in `FewStepDistiller`; `kappa` stays 1.

    Raises:
        ValueError: a value is out of range, guidance is asked for, or the reward has no gradient.
    """

    requires = FewStepDistiller.requires | {"reward_gradient"}
    proof = {}

    def __init__(
        self,
        teacher: Teacher,
        student_maker: Maker | None = None,
        hold: float = 10.0,
        student: Adam = Adam(lr=1e-5),
        **kwargs,
    ):
        super().__init__(teacher, student_maker, **kwargs)
        checks.within(WEIGHTS, hold=hold)
        if self.guides:
            raise ValueError(f"no teacher is called that kappa={self.kappa} could guide: leave model.kappa at 1")
        self.hold = hold
        self.add_role("student", student, student=self.make_student())
        self.keep_ema()
        self.keep_target(0.0)

    def update_target(self, role: str) -> None:
        """Leaves the target what the student was when the run began."""

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        cond, last = self.condition(batch), self.num_steps - 1
        shape = self.teacher.shape(len(next(iter(batch.values()))), cond)
        x_g = self.generate(shape, cond, "student", last)
        with torch.no_grad():
            x_b = self.generate(shape, cond, "student", last, denoiser=self.target)
        reward = self.reward(x_g, cond, batch)
        if not reward.requires_grad:
            data, codec = type(self.trainer.datamodule).__name__, type(self.teacher.codec).__name__
            raise ValueError(
                f"the reward has no gradient in the samples, so nothing is learnt from it: {data}.reward and "
                f"{codec}.decode must be differentiable"
            )
        self.note("student/reward", reward.mean())
        return self.hold * mean((x_g - x_b).square(), cond.get("mask")) - reward.mean()
