"""Reflow (Rectified Flow, arXiv 2209.03003): a new teacher whose trajectories are straighter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distillkit import capabilities, checks
from distillkit.diffusion.denoiser import Cond, eps_from_x0
from distillkit.diffusion.flow import flow_time
from distillkit.diffusion.guidance import drop_condition
from distillkit.diffusion.times import Times
from distillkit.losses.denoising import denoising_loss
from distillkit.methods.base import Adam
from distillkit.methods.few_step import KAPPAS, check_belongs, check_guidable
from distillkit.methods.leaves_teacher import TeacherDistiller
from distillkit.pairs import Pairs, ode_solver
from distillkit.progress import progress
from distillkit.students.makers import Copy, Maker
from distillkit.teachers.base import Teacher
from distillkit.teachers.trajectory import straightness

TRAJECTORIES, PER_PAIR = 256, 1 / 16  # by how many straightness is measured: at most, and for each pair
STEPS = 50  # of DDIM, by which it is measured
NEAR = 1e-6  # of tau to 1, where the ratio of noise to signal would be infinite


class Reflow(TeacherDistiller):
    """Fit a denoiser to the teacher's own pairs of noise and sample, along the straight lines between them.

    A pair's line goes from what sampling starts from, `x_T`, to the sample x. In flow coordinates,
    which every process has, it is `(1 - tau / tau_T) x + (tau / tau_T) x_T / (alpha_T + sigma_T)`,
    and `E w |D(x_t, t, c) - x|^2` on it is flow matching with the pair's own noise (eq. 1 of the
    paper). The fitted velocity is the mean velocity of the lines through a place: its flow keeps
    the law of x, starts where the teacher's starts, and bends less. On a process that ends in pure
    noise x_t is `alpha x + sigma z`; where signal is left at the end, z is replaced by the noise
    that x_T is for x.

    What is left is a teacher, sampled by a solver without draws. It denoises the lines, not noised
        data: its score is that
    of no noised law, so `dmd` and `sid` should have the teacher it was made from.

    Args:
        teacher: the frozen teacher.
        student_maker: makes the new denoiser; None copies the teacher's.
        num_pairs, pairs_path, steps: of the pairs, see `Pairs`.
        solver: of the pairs, without draws; None means the teacher's best, or DDIM where that
            draws.
        kappa: guidance scale of the pairs, 1 = none; the new teacher has it built in and is sampled
            without.
        times: noise levels; None means uniform in tau.
        drop: share of samples trained without their classes, so that the new teacher can be guided.
        student: optimiser of the new denoiser.
    """

    requires = frozenset({"denoiser"})
    proof_steps = 1  # at its best it is right before it is trained
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
        check_guidable(teacher, kappa)
        self.requires = self.needs({"kappa": kappa})
        self.teacher, self.kappa, self.times, self.drop = teacher, kappa, times, drop
        solver = ode_solver(teacher, solver)
        self.pairs = Pairs(teacher, num_pairs, pairs_path, kappa, solver, steps)
        shared = ("event_shape", "classes", "context", "codec", "start", "continuation")
        self.surroundings = {name: getattr(teacher, name) for name in shared}
        self.best = {"solver": solver, "steps": steps or teacher.best["steps"]}
        grid = teacher.grid(self.best["steps"])  # as of the pairs: some grids begin elsewhere if they are short
        self.first = grid[0]
        self.straightness: dict[str, float] = {}
        made = (student_maker or Copy()).make(teacher)
        if made.told:
            raise ValueError(
                f"a teacher is not told {', '.join(made.told)}, as the student to go on from is: take another"
            )
        self.add_role("student", student, student=made)
        self.keep_ema()

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """Guidance needs conditions that have a null."""
        return super().needs(arguments) | capabilities.guidance(arguments)

    def on_fit_start(self) -> None:
        self.pairs.make(self.trainer.datamodule.train, self.seed, self.trainer.strategy)

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        z, x, cond = self.pairs.random(len(next(iter(batch.values()))), self.generator("pairs"))
        process, first = self.teacher.process, self.first
        x_first = self.teacher.start(process, z, first, cond)
        eps = eps_from_x0(x_first, x, process.alpha(first), process.sigma(first))
        if self.teacher.classes and self.drop:
            cond = drop_condition(cond, self.teacher.null_condition(cond), self.rand(len(x), "drop") < self.drop)
        return denoising_loss(self.student, x, self.levels(len(x)), eps, cond)

    def levels(self, num: int) -> Tensor:
        """`num` times from the last level to the first, uniform in tau unless told otherwise."""
        process, u, first = self.teacher.process, self.rand(num, "t"), float(self.first)
        if self.times is not None:
            return self.times(u, process).clamp_max(first)
        low, high = flow_time(process, torch.tensor([process.t_min, first], dtype=torch.float64)).tolist()
        tau = low + (min(high, 1 - NEAR) - low) * u
        return process.from_ratio(tau / (1 - tau)).clamp(process.t_min, first)

    def condition(self, batch: dict[str, Tensor]) -> Cond:
        return self.teacher.condition(batch)

    def check(self, data) -> None:
        check_belongs(self.teacher, data)

    @property
    def trajectories(self) -> int:
        """By how many straightness is measured: so few that it costs less than the pairs did."""
        return min(TRAJECTORIES, max(1, int(PER_PAIR * self.pairs.num)))

    @torch.no_grad()
    def conclude(self) -> bool:
        """Measure how straight both teachers are; nothing is decided."""
        data, num = self.trainer.datamodule, self.trajectories
        cond = {name: value.to(self.device) for name, value in self.teacher.condition(data.conditions(num)).items()}
        noise = self.teacher.noise(num, cond, self.seed).to(self.device)
        teachers = {"before": (self.teacher, self.kappa), "after": (self.product().to(self.device), 1.0)}
        sums, parts = dict.fromkeys(teachers, 0.0), torch.arange(num).split(data.batch_size)
        with progress("measuring how straight trajectories are", 2 * len(parts)) as measuring:
            for name, (teacher, kappa) in teachers.items():
                for rows in parts:
                    own = {key: value[rows] for key, value in cond.items()}
                    sums[name] += len(rows) * float(straightness(teacher, noise[rows], own, STEPS, kappa))
                    measuring.advance()
        self.straightness = {name: total / num for name, total in sums.items()}
        return False

    def facts(self) -> dict[str, Any]:
        return {
            **super().facts(),
            "teacher": {"id": self.teacher.id, "hash": self.teacher_hash()},
            "pairs": self.pairs.facts(),
            "straightness": {**self.straightness, "samples": self.trajectories, "steps": STEPS},
        }
