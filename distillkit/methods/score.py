"""What score distillation methods share: a few-step student, a fake score that follows it, a teacher that both start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.sampling import few_step
from distillkit.diffusion.times import Times
from distillkit.losses.reduce import Normalise
from distillkit.methods.base import Adam, Distiller
from distillkit.student import Student
from distillkit.teachers.base import Teacher


class ScoreDistiller(Distiller):
    """Base of methods whose student gradient compares the teacher's score with a score of the student's own samples.

    Args:
        teacher: the frozen teacher.
        network: network of the student and of the fake score; None copies the teacher's, weights included.
        num_steps: network calls of the student.
        times: the student's times, largest first, in the process's units; None spreads `num_steps` of them over the
            process's own grid, from `t_init` down.
        t_init: the largest time; None means the process's `t_max`.
        renoise: between steps, re-noise with fresh noise (true) or keep the noise the student implies (false).
        kappa: guidance scale of the teacher, 1 = none.
        normalise: the student's loss is divided by the mean of |x_g - teacher's x_0|, of each `sample` or the whole `batch`.
        student_times, fake_times: noise levels at which the student is judged and the fake score is trained.
        student, fake_score: optimisers of the two roles.
    """

    requires = frozenset({"denoiser"})

    def __init__(
        self,
        teacher: Teacher,
        student_times: Times,
        fake_times: Times,
        student: Adam,
        fake_score: Adam,
        kappa: float = 1.0,
        normalise: Normalise = "sample",
        network: nn.Module | None = None,
        num_steps: int = 1,
        times: list[float] | None = None,
        t_init: float | None = None,
        renoise: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.teacher, self.kappa, self.normalise = teacher, kappa, normalise
        process = teacher.process
        if times is None:
            if num_steps < 1:
                raise ValueError(f"num_steps must be at least 1, got {num_steps}")
            if t_init is not None and not process.t_min < t_init <= process.t_max:
                raise ValueError(f"t_init must lie in ({process.t_min}, {process.t_max}], got {t_init}")
            times = process.grid(num_steps + 1, t_init)[:-1].tolist()
        elif (
            not times or not times[-1] > 0 or not times[0] <= process.t_max or sorted(set(times), reverse=True) != times
        ):
            raise ValueError(f"times must fall and lie in (0, {process.t_max}], got {times}")
        self.step_times = torch.tensor(times, dtype=torch.float64)  # no buffer, which half precision would round
        self.num_steps, self.renoise = len(times), renoise
        self.student_times, self.fake_times = student_times, fake_times
        self.make_roles(student, fake_score, network)
        self.keep_ema()

    def make_roles(self, student: Adam, fake_score: Adam, network: nn.Module | None) -> None:
        """The fake score's turn comes first, so that it has seen the student before it steers it."""
        self.add_role("fake_score", fake_score, fake_score=self.teacher.new_denoiser(network))
        self.add_role("student", student, student=self.teacher.new_denoiser(network))

    # Conditions

    def condition(self, batch: dict[str, Tensor]) -> Cond:
        return self.teacher.condition(batch)

    def null(self, cond: Cond) -> Cond:
        return self.teacher.null_condition(cond)

    # The student

    def rollout(self, batch: dict[str, Tensor], purpose: str) -> tuple[Tensor, Cond]:
        """Samples of one step of the student, chosen at random for the whole batch and all ranks; gradient in that step only.

        Over training this is the uniform mixture over the outputs of all steps (arXiv 2505.12674); the steps before run as
        they do at inference (backward simulation, arXiv 2405.14867).
        """
        cond = self.condition(batch)
        shape = (len(next(iter(batch.values()))), *self.teacher.event_shape)
        stop = self.randint(self.num_steps, f"{purpose} stop")
        x_g, _ = few_step(
            lambda x, t: self.student(x, t, cond),
            self.teacher.process,
            self.step_times,
            lambda i: self.randn(shape, f"{purpose} noise {i}"),
            self.renoise,
            stop,
        )
        return x_g, cond

    def diffuse(self, x_0: Tensor, times: Times, purpose: str) -> tuple[Tensor, Tensor]:
        """`(x_t, t)` at levels drawn from `times`; gradient flows through x_0."""
        process = self.teacher.process
        t = times(self.rand(len(x_0), f"{purpose} t"), process)
        return process.add_noise(x_0, self.randn(x_0.shape, f"{purpose} eps"), t), t

    # What a run leaves

    def as_student(self) -> Student:
        teacher = self.teacher
        return Student(self.best_student, self.step_times.tolist(), teacher.event_shape, teacher.classes, self.renoise)

    def sample(self, cond: Cond, num: int, seed: int) -> Tensor:
        return self.as_student().sample(num, cond, seed)

    def export(self, folder: Path, **facts: Any) -> None:
        teacher = {"id": self.teacher.id, "hash": self.teacher.fingerprint()}
        self.as_student().save(folder, method=type(self).__name__, kappa=self.kappa, teacher=teacher, **facts)

    def check(self, data) -> None:
        if tuple(data.event_shape) != self.teacher.event_shape:
            raise ValueError(
                f"the data have shape {tuple(data.event_shape)}, the teacher makes {self.teacher.event_shape}: "
                f"choose a teacher trained on these data (fit method=pretrain makes one)"
            )
        for name, num in self.teacher.classes.items():
            if data.classes.get(name) != num:
                raise ValueError(
                    f"the teacher knows {num} classes of {name!r}, the data {data.classes.get(name, 'none')}: "
                    f"they do not belong together"
                )
