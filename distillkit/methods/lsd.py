"""LSD and LSD+, learnable sampler distillation (arXiv 2509.19962): for tokens and, as a learned solver, for everything else."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.learned import LearnedSolver
from distillkit.discrete.denoiser import DiscreteDenoiser, Guided
from distillkit.discrete.elbo import cheapest_times, step_costs
from distillkit.discrete.jump import jump_your_steps
from distillkit.discrete.learned import LearnedSampler
from distillkit.discrete.matching import match_powers, regress_scales
from distillkit.discrete.noise import Draws, fresh
from distillkit.losses.reduce import mean
from distillkit.methods.base import Adam
from distillkit.methods.few_step import steps_of
from distillkit.methods.sampler import SamplerDistiller
from distillkit.pairs import Pairs
from distillkit.progress import progress
from distillkit.teachers.base import BaseTeacher

Objective = Literal["mean_match", "score_l2"]


class LSD(SamplerDistiller):
    """Learn a coefficient for each step of a sampler (LSD).

    Of a continuous teacher: the coefficients of a multistep solver, by gradient, so that its
        samples are those of the teacher
    from the same noise (LD3, arXiv 2405.15506; S4S, arXiv 2502.17423).

    Of a teacher of tokens each optimiser step solves for the numbers outright, and the solutions
    are averaged over the steps: `mean_match` finds, one step of the sampler after the other, the
    power of the score after which the model is as sure of the student's states as of the teacher's;
    `score_l2` is the paper's own regression of scores (eq. 6), for scales.

    Args:
        teacher: the frozen teacher.
        num_steps: network calls of the student; None means six, or as many as there are times.
        times: where they start, largest first; None means the teacher's own grid.
        num_pairs: samples of the teacher made at the start: what the student's are compared with.
        pairs_path: a folder that keeps them for other runs, see `Pairs`; None makes them anew in
            memory.
        objective: of tokens, see above.
        rule: the plain sampler of tokens that is adjusted.
        couple: of `score_l2`, whether teacher and student unmask positions at the same hitting
            times; the paper does not say.
        ratio: of `score_l2`, steps of the teacher for each of the student's.
        student: optimiser; of no meaning for tokens.
    """

    learn_times = False

    def __init__(
        self,
        teacher: BaseTeacher,
        num_steps: int | None = None,
        times: list[float] | None = None,
        num_pairs: int = 4096,
        pairs_path: str | None = None,
        objective: Objective = "mean_match",
        rule: Literal["tweedie", "euler", "tau_leap"] = "tweedie",
        couple: bool = True,
        ratio: int = 16,
        student: Adam = Adam(lr=2e-2, clip=1.0),
        **kwargs,
    ):
        self.tokens = "log_probs" in teacher.provides
        num_steps = steps_of(num_steps, times, 6)
        checks.whole(1, ratio=ratio)
        grid = teacher.grid(num_steps) if self.tokens else teacher.grid(num_steps + 1)[:-1]
        times = grid.tolist() if times is None else list(times)
        if len(times) < 2:
            raise ValueError(f"a sampler needs at least 2 steps to have something to learn, got {len(times)}")
        if self.tokens:
            kwargs["ema_halflife"] = 0  # solutions are averaged already
            sampler: nn.Module = LearnedSampler(teacher.process, times, rule, self.learn_times)
        else:
            sampler = LearnedSolver(teacher.process, times, self.learn_times)
        super().__init__(teacher, sampler, student, **kwargs)
        self.pairs = Pairs(teacher, num_pairs, pairs_path, kappa=self.kappa)
        self.objective, self.couple, self.ratio = objective, couple, ratio

    def on_fit_start(self) -> None:
        self.pairs.make(self.trainer.datamodule.train, self.seed, self.trainer.strategy)

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """`E |student(z) - teacher(z)|^2`; of tokens half the squared distance from this batch's solution."""
        noise, y, cond = self.pairs.random(len(next(iter(batch.values()))), self.generator("pairs"))
        if self.tokens:
            return self.distance_from_solution(y, cond)
        x = self.teacher.solve(noise, cond, self.student, self.student.times(), self.kappa)
        return mean((x - y).square(), cond.get("mask"))

    # Tokens

    def denoiser(self) -> DiscreteDenoiser:
        own = self.teacher.denoiser
        return own if self.kappa == 1 else Guided(own, self.teacher.null_condition, self.kappa)

    def draws(self, num: int, purpose: str, shared: bool = False) -> Draws:
        """Noise of all calls for `num` sequences, see `generator`."""
        seed = self.generator(purpose, shared).initial_seed()
        return fresh(seed, num, self.teacher.event_shape[0], self.teacher.process.num_states, self.device)

    def distance_from_solution(self, x_0: Tensor, cond: Cond) -> Tensor:
        noise = self.draws(len(x_0), "student")
        if self.objective == "mean_match":
            powers = match_powers(self.denoiser(), self.student, x_0, noise, cond)
            return (self.student.log_power - powers.log()).square().sum() / 2
        teacher_noise = self.draws(len(x_0), "teacher")
        scale = regress_scales(
            self.denoiser(), self.student, self.ratio, noise, teacher_noise, self.couple, cond
        ).clamp_min(1e-3)
        return (self.student.log_scale - scale.log().to(self.student.log_scale)).square().sum() / 2

    def configure_optimizers(self) -> dict[str, Any]:
        """For tokens the n-th gradient step has size 1 / n: each number is the mean of its solutions."""
        if not self.tokens:
            return super().configure_optimizers()
        optimizer = torch.optim.SGD(self.student.parameters(), lr=1.0, fused=True)  # fused: see the base's
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Of tokens nothing is clipped, and the mean is over the solutions that there were: a bad one was skipped."""
        super().configure_gradient_clipping(optimizer, 0.0 if self.tokens else gradient_clip_val)
        num = self.global_step + 1
        for parameter in self.student.parameters() if self.tokens else ():
            if parameter.grad is not None:
                parameter.grad *= num / (num - self.bad_steps[0, 1]).clamp_min(1)


class LSDPlus(LSD):
    """Learn the times of the steps as well (LSD+).

    Of a continuous teacher the times follow the same gradient as the coefficients. Of tokens the
        times come first: even,
    squared, those that minimise the evidence bound of the student's run (by dynamic programming
    over `fine` times) and those of Jump-Your-Steps; the ones with which the plain sampler is best
    by the domain's metrics are taken, even ones unless others are a tenth better. Then powers are
    matched on them.

    Args:
        fine: times among which the evidence bound chooses.
    """

    learn_times = True

    def __init__(self, teacher: BaseTeacher, fine: int = 64, **kwargs):
        super().__init__(teacher, **kwargs)
        checks.whole(2, 10_000, fine=fine)
        self.fine = fine

    def distance_from_solution(self, x_0: Tensor, cond: Cond) -> Tensor:
        if self.global_step == 0 and self._micro == 0:
            self.choose_times()
        return super().distance_from_solution(x_0, cond)

    @torch.no_grad()
    def choose_times(self) -> None:
        """Set the student's times to the best of the candidates."""
        enough = max(32, min(256, 16_384 // self.teacher.event_shape[0]))  # of long sequences a few tell as much
        _, x_0, cond = self.pairs.draw(torch.arange(min(enough, self.pairs.num)), self.device)
        num = self.num_steps
        noise = self.draws(len(x_0), "times", shared=True)(0)
        fine = self.teacher.grid(max(self.fine, 2 * num))
        costs = step_costs(self.denoiser(), x_0, fine.to(self.device), noise, cond)
        even = self.teacher.grid(num)
        candidates = {
            "even": even,
            "squared": even**2,
            "bound": cheapest_times(costs, fine, num),
            "jumps": jump_your_steps(self.denoiser(), x_0, num, noise, cond),
        }
        measured = {}
        with progress("comparing times", len(candidates)) as comparing:
            for name, times in candidates.items():
                self.student.times.move_to(times)
                measured[name] = self.measure(TIMES_SEED)
                comparing.advance()
        self.verdict["times"] = self.best_of(measured, "even", margin=0.1)
        self.student.times.move_to(candidates[self.verdict["times"]])


TIMES_SEED = 8765
