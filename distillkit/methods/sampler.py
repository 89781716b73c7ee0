"""What methods share whose student is a sampler of a few dozen numbers: the network stays the teacher's, frozen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.diffusion.denoiser import Cond
from distillkit.methods.base import Adam, Distiller
from distillkit.methods.few_step import check_belongs
from distillkit.sampler_student import SamplerStudent
from distillkit.teachers.base import Teacher


class SamplerDistiller(Distiller):
    """A student that calls the teacher's own network, at times and with coefficients that are learned.

    Its one role, `student`, is an `nn.Module` that `Teacher.generate` takes for a solver and that starts as a plain sampler. At
    the end the learned and the plain sampler draw from the same noise, and the better one by the domain's headline metric is
    kept, so a run never ends worse than it began.

    Args:
        teacher: the frozen teacher.
        sampler: the student.
        student: its optimiser.
        kappa: guidance scale of the teacher, 1 = none.
        guard: samples of the final comparison; 0 keeps what was learned in any case.
    """

    def __init__(
        self, teacher: Teacher, sampler: nn.Module, student: Adam, kappa: float = 1.0, guard: int = 2000, **kwargs
    ):
        super().__init__(**kwargs)
        self.teacher, self.kappa, self.guard = teacher, kappa, guard
        self.add_role("student", student, student=sampler)
        self.keep_ema()
        self.verdict: dict[str, Any] = {}

    @property
    def num_steps(self) -> int:
        return len(self.student.times())

    def condition(self, batch: dict[str, Tensor]) -> Cond:
        return self.teacher.condition(batch)

    def as_student(self) -> SamplerStudent:
        return SamplerStudent(self.teacher, self.best_student, self.kappa)

    def sample(self, cond: Cond, num: int, seed: int) -> Tensor:
        return self.as_student().sample(num, cond, seed)

    def export(self, folder: Path, **facts: Any) -> None:
        self.as_student().save(folder, method=type(self).__name__, **facts, guard=self.verdict)

    def check(self, data) -> None:
        check_belongs(self.teacher, data)

    # The guard

    @torch.no_grad()
    def on_train_end(self) -> None:
        if not self.guard or self.trainer.fast_dev_run:
            return
        evaluator = self.trainer.datamodule.evaluator()
        cond = self.teacher.condition(self.trainer.datamodule.conditions(self.guard))
        learned = {name: parameter.clone() for name, parameter in self.best_student.named_parameters()}
        scores = []
        for plain in (False, True):
            for name, parameter in self.best_student.named_parameters():
                parameter.copy_(torch.zeros_like(parameter) if plain else learned[name])
            samples = self.sample(cond, self.guard, seed=GUARD_SEED)
            scores.append(float(evaluator(samples, cond)[evaluator.headline]))
        kept = scores[0] <= scores[1] and math.isfinite(scores[0])
        if kept:
            for name, parameter in self.best_student.named_parameters():
                parameter.copy_(learned[name])
        self.verdict = {"metric": evaluator.headline, "learned": scores[0], "plain": scores[1], "kept": kept}
        if not kept and self.trainer.is_global_zero:
            print(f"the learned sampler is no better than the plain one ({scores[0]:.4g} against {scores[1]:.4g} in "
                  f"{evaluator.headline}), so the plain one is kept", flush=True)


GUARD_SEED = 4321
