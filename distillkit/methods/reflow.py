"""Reflow (Rectified Flow, arXiv 2209.03003): a new teacher whose trajectories are straighter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.flow import flow_time
from distillkit.diffusion.guidance import drop_condition
from distillkit.diffusion.times import Times
from distillkit.losses.denoising import denoising_loss
from distillkit.methods.base import Adam
from distillkit.methods.few_step import KAPPAS, check_belongs, described
from distillkit.methods.leaves_teacher import TeacherDistiller
from distillkit.pairs import Pairs
from distillkit.students.makers import Copy, Maker
from distillkit.teachers.base import Teacher
from distillkit.teachers.trajectory import straightness


class Reflow(TeacherDistiller):
    """Fit a denoiser to the teacher's own pairs of noise and sample, along the lines between them.

    `E w |D(alpha x + sigma z, t, c) - x|^2` over pairs (z, x): flow matching whose noise is the one that the teacher made the
    sample from. In flow coordinates the fitted velocity is `E[z - x | (1 - tau) x + tau z]`, whose trajectories keep the law
    of x and cross less; after a second round one step is nearly exact (section 2 of the paper). What is left is a teacher.

    Args:
        teacher: the frozen teacher.
        student_maker: makes the new denoiser; None copies the teacher's.
        num_pairs, pairs_path, solver, steps: of the pairs, see `Pairs`.
        kappa: guidance scale of the pairs, 1 = none; the new teacher has it built in and is sampled without.
        times: noise levels; None means uniform in tau.
        drop: share of samples trained without their classes, so that the new teacher can be guided.
        student: optimiser of the new denoiser.
    """

    requires = frozenset({"denoiser"})
    teacher_class = Teacher

    def __init__(
        self,
        teacher: Teacher,
        student_maker: Maker | None = None,
        num_pairs: int = 4096,
        pairs_path: str | None = None,
        solver: str | None = None,
        steps: int | None = None,
        kappa: float = 1.0,
        times: Times | None = None,
        drop: float = 0.1,
        student: Adam = Adam(lr=1e-4),
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.within(KAPPAS, kappa=kappa)
        checks.within("[0, 1)", "a share of 1 would never see its condition", drop=drop)
        self.teacher, self.kappa, self.times, self.drop = teacher, kappa, times, drop
        self.pairs = Pairs(teacher, num_pairs, pairs_path, kappa, solver, steps)
        self.surroundings = {
            "event_shape": teacher.event_shape,
            "classes": teacher.classes,
            "context": teacher.context,
            "codec": teacher.codec,
            "start": teacher.start,
        }
        self.best = dict(teacher.best)
        self.straightness: dict[str, float] = {}
        self.add_role("student", student, student=(student_maker or Copy()).make(teacher))
        self.keep_ema()

    def on_fit_start(self) -> None:
        self.pairs.make(self.trainer.datamodule.train, self.seed, self.trainer.strategy)

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        z, x, cond = self.pairs.random(len(next(iter(batch.values()))), self.generator("pairs"))
        if self.teacher.classes and self.drop:
            cond = drop_condition(cond, self.teacher.null_condition(cond), self.rand(len(x), "drop") < self.drop)
        return denoising_loss(self.student, x, self.levels(len(x)), z, cond)

    def levels(self, num: int) -> Tensor:
        """`num` times, uniform in tau between the ends of the process unless told otherwise."""
        process, u = self.teacher.process, self.rand(num, "t")
        if self.times is not None:
            return self.times(u, process)
        low, high = flow_time(process, torch.tensor([process.t_min, process.t_max], dtype=torch.float64)).tolist()
        tau = low + (high - low) * u
        return process.from_ratio(tau / (1 - tau)).clamp(process.t_min, process.t_max)

    def condition(self, batch: dict[str, Tensor]) -> Cond:
        return self.teacher.condition(batch)

    def check(self, data) -> None:
        check_belongs(self.teacher, data)

    @torch.no_grad()
    def conclude(self) -> bool:
        """Measure how straight both teachers are; nothing is decided."""
        cond = self.teacher.condition(self.trainer.datamodule.conditions(SAMPLES))
        cond = {name: value.to(self.device) for name, value in cond.items()}
        noise = self.teacher.noise(SAMPLES, cond, self.seed).to(self.device)
        measured = {"before": (self.teacher, self.kappa), "after": (self.product(), 1.0)}
        self.straightness = {
            name: float(straightness(*who[:1], noise, cond, kappa=who[1])) for name, who in measured.items()
        }
        return False

    def facts(self) -> dict[str, Any]:
        made = {"num": self.pairs.num, "kappa": self.kappa, "solver": self.pairs.solver, "steps": self.pairs.steps}
        return {
            **super().facts(),
            "teacher": described(self.teacher),
            "pairs": made,
            "straightness": self.straightness,
        }


SAMPLES = 256  # trajectories by which straightness is measured
