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
from distillkit.methods.few_step import KAPPAS
from distillkit.methods.leaves_teacher import TeacherDistiller
from distillkit.methods.refusals import check_belongs, check_guidable, check_sizes
from distillkit.pairs import Pairs, ode_solver
from distillkit.progress import progress
from distillkit.students.makers import Copy, Maker
from distillkit.teachers.base import Teacher
from distillkit.teachers.trajectory import straightness

TRAJECTORIES, PER_PAIR = 256, 1 / 16  # trajectories measured for straightness: at most, and per pair
STEPS = 50  # DDIM steps of that measurement
NEAR = 1e-6  # least distance of tau from 1, where the ratio of noise to signal is infinite


class Reflow(TeacherDistiller):
    """Fit a denoiser to the straight lines between the teacher's noise and its sample.

    A pair's line goes from `x_T`, where sampling starts, to the sample x. In flow coordinates,
    which every process has, it is `(1 - tau / tau_T) x + (tau / tau_T) x_T / (alpha_T + sigma_T)`.
    The loss `E w |D(x_t, t, c) - x|^2` on it is flow matching with the pair's own noise (eq. 1 of
    the paper). The fitted velocity at a point is the mean velocity of the lines through it. Its
    flow keeps the law of x, starts where the teacher's starts, and bends less. On a process that
    ends in pure noise x_t is `alpha x + sigma z`; where signal is left at the end, z is replaced by
    the noise that leads from x to x_T.

    The product is a teacher, to be sampled with a deterministic solver. It denoises the lines and
    not noised data, so its score belongs to no noised law: give `dmd` and `sid` the original
    teacher.

    Args:
        teacher: the frozen teacher.
        student_maker: makes the new denoiser; None copies the teacher's.
        num_pairs, pairs_path, steps: settings of the pairs, see `Pairs`.
        solver: deterministic solver of the pairs; None means the teacher's best, or DDIM if that
            one is stochastic.
        kappa: guidance scale of the pairs, 1 = none. The new teacher has it built in and is sampled
            without guidance.
        times: noise levels; None means uniform in tau.
        drop: share of samples trained without their classes, in [0, 1), so that the new teacher can
            be guided.
        student: settings of the new denoiser's optimiser.

    Raises:
        ValueError: a value is out of range, the teacher cannot be guided, the solver is stochastic,
            or the new denoiser is conditioned on further values.
    """

    requires = frozenset({"denoiser"})
    proof_steps = 1  # with its best settings it passes untrained
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
        grid = teacher.grid(self.best["steps"])  # that of the pairs: the first time of some grids depends on the length
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
        """The needs of the base, and for guidance conditions that have a null."""
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
        """Draws `num` times from t_min to the first time: by `times`, or uniform in tau, [num]."""
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
        check_sizes(self.teacher, data)

    @property
    def trajectories(self) -> int:
        """The number of trajectories measured: so few that this costs less than the pairs did."""
        return min(TRAJECTORIES, max(1, int(PER_PAIR * self.pairs.num)))

    @torch.no_grad()
    def conclude(self) -> bool:
        """Measures the straightness of both teachers' trajectories; decides nothing, so false."""
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
