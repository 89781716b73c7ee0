"""YONOS-SR (arXiv 2401.17258): the teacher of an easier observation teaches a harder one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from distillkit import checks
from distillkit.codec import Codec
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.guidance import drop_condition
from distillkit.diffusion.process import expand
from distillkit.diffusion.times import LogNormal, Times
from distillkit.losses.denoising import answer_loss
from distillkit.methods.base import Adam
from distillkit.methods.leaves_teacher import TeacherDistiller
from distillkit.methods.refusals import check_belongs
from distillkit.students.makers import Copy, Maker
from distillkit.teachers.base import Teacher

APART = 0.1  # of the mean sample, what two codecs may differ by


class YONOS(TeacherDistiller):
    """Scale distillation: fit a denoiser that sees y' to one that sees the easier observation y.

    Both see the same datum, noise level and noise:

        E w(t) |D_s(z_t, y') - sg[D_T(z_t, y)]|^2.

    If y' is made from y, the minimiser is `E[x | z_t, y']` as of training on data (tower rule). The
    target's variance is lower by `Var(x | z_t, y)`. So the gain is less noise in the gradient, not
    a better optimum. An observation y' that is made from x by itself has another minimiser.

    Where samples are what data add to their observation, the two denoisers live in two spaces; the
    codec's `rebase` goes from one to the other.

    With several easier observations the run is cut into as many stages of equal length: the teacher
    of the first stage is `teacher`, of each later one the student's average at its start, and each
    stage goes one observation further. The optimiser goes on.

    Args:
        teacher: the frozen teacher, of the easiest observation.
        codec: between data and samples of the new teacher, with its own scale; None means the
            teacher's own.
        student_maker: makes the new denoiser; None copies the teacher's.
        times: noise levels; None means EDM's lognormal.
        drop: share of samples trained without their classes, in [0, 1), so that the new teacher can
            be guided.
        student: settings of the new denoiser's optimiser.

    Raises:
        ValueError: a value is out of range, or the new denoiser is conditioned on further values.
    """

    requires = frozenset({"denoiser", "data", "tower"})
    teacher_class = Teacher

    def __init__(
        self,
        teacher: Teacher,
        codec: Codec | None = None,
        student_maker: Maker | None = None,
        times: Times | None = None,
        drop: float = 0.1,
        student: Adam = Adam(lr=1e-4),
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.within("[0, 1)", "a share of 1 would never see its condition", drop=drop)
        self.teacher, self.codec, self.times, self.drop = teacher, codec or teacher.codec, times or LogNormal(), drop
        shared = ("event_shape", "classes", "context", "start", "continuation")
        self.surroundings = {**{name: getattr(teacher, name) for name in shared}, "codec": self.codec}
        self.best = teacher.best
        self.easier: list[dict[str, str]] = []  # the data's, see `DistillData`
        made = (student_maker or Copy()).make(teacher)
        if made.told:
            raise ValueError(
                f"a teacher is not told {', '.join(made.told)}, as the student to go on from is: take another"
            )
        self.add_role("student", student, student=made)
        self.keep_ema()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if len(self.easier) > 1 and self.target is None:
            self.keep_target(0.0)  # the teacher of later stages

    def on_train_start(self) -> None:
        super().on_train_start()
        if len(self.easier) > 1 and self.trainer.estimated_stepping_batches == math.inf:
            raise ValueError("several stages need to know the end of the run: give trainer.max_steps")

    def stage(self, step: int) -> int:
        """The stage of optimiser step `step`, from 0."""
        if len(self.easier) < 2:
            return 0
        return min(step * len(self.easier) // int(self.trainer.estimated_stepping_batches), len(self.easier) - 1)

    def update_target(self, role: str) -> None:
        """Makes the student's average the teacher of the stage that begins after this step."""
        if self.stage(self.global_step + 1) != self.stage(self.global_step):
            self.target.load_state_dict(self.best_student.state_dict())

    def observed(self, batch: dict[str, Tensor], level: int) -> dict[str, Tensor]:
        """The batch with the observation of this level, from 0, in the place of its own.

        The level above the last easier one is the batch's own observation.
        """
        names = self.easier[level] if level < len(self.easier) else {}
        return {**batch, **{name: batch[key] for name, key in names.items()}}

    def shown(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.observed(batch, 0)

    def condition(self, batch: dict[str, Tensor]) -> Cond:
        return self.teacher.condition(batch)

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        stage, process = self.stage(self.global_step), self.student.process
        x_0, teacher = self.codec.encode(batch), self.target if stage else self.teacher.denoiser
        easy, hard = (self.observed(batch, level) for level in (stage, stage + 1))
        if stage + 1 < len(self.easier):
            x_0 = self.codec.rebase(x_0, 1.0, batch, hard)
        easy, hard = (self.dropped(self.condition(observed)) for observed in (easy, hard))
        t = self.times(self.rand(len(x_0), "t"), process)
        x_t = process.add_noise(x_0, self.randn(x_0.shape, "eps"), t)
        with torch.no_grad():
            x_easy = self.codec.rebase(x_t, expand(process.alpha(t), x_t), hard, easy)
            answer = self.codec.rebase(teacher(x_easy, t, easy), 1.0, easy, hard)
        return answer_loss(self.student, x_t, t, answer, hard)

    def dropped(self, cond: Cond) -> Cond:
        """The condition, without its classes for a share `drop` of the samples."""
        if not (self.teacher.classes and self.drop):
            return cond
        null, num = self.teacher.null_condition(cond), len(next(iter(cond.values())))
        return drop_condition(cond, null, self.rand(num, "drop") < self.drop)

    def check(self, data) -> None:
        check_belongs(self.teacher, data)
        self.easier = list(data.easier)
        batch = data.val[torch.arange(1)]
        easy, hard = self.observed(batch, 0), batch
        for whose, codec, observed, keys in (
            ("teacher's", self.teacher.codec, easy, self.easier[0].values()),
            ("new", self.codec, hard, self.easier[0]),
        ):
            cond = self.condition(observed)
            made, event = codec.shape(1, self.teacher.event_shape, cond), self.teacher.event_shape
            if made != (expected := Codec().shape(1, data.event_shape if codec.free else event, cond)):
                raise ValueError(
                    f"the {whose} codec makes samples of shape {list(made[1:])} from {' and '.join(keys)}, here they have "
                    f"{list(expected[1:])}: the teacher's observation is the easiest one, the new codec's that of the data"
                )
        theirs, ours = self.teacher.codec.encode(easy), self.codec.rebase(self.codec.encode(hard), 1.0, hard, easy)
        if theirs.shape != ours.shape or not (ours - theirs).abs().mean() <= APART * theirs.abs().mean():
            raise ValueError(
                f"the teacher's codec ({type(self.teacher.codec).__name__}) and the new one ({type(self.codec).__name__}) "
                f"differ by more than the observation: give model.codec the teacher's other settings"
            )

    def facts(self) -> dict[str, Any]:
        return {
            **super().facts(),
            "teacher": {"id": self.teacher.id, "hash": self.teacher_hash()},
            "stages": len(self.easier),
        }
