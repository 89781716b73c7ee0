"""LSD and LSD+, learnable sampler distillation (arXiv 2509.19962), for discrete diffusion."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.discrete.denoiser import DiscreteDenoiser, Guided
from distillkit.discrete.elbo import cheapest_times, step_costs
from distillkit.discrete.jump import jump_your_steps
from distillkit.discrete.learned import LearnedSampler
from distillkit.discrete.matching import match_powers, regress_scales
from distillkit.discrete.noise import Draws, fresh
from distillkit.discrete.teacher import DiscreteTeacher
from distillkit.methods.base import Adam
from distillkit.methods.sampler import SamplerDistiller, first_times
from distillkit.progress import progress

TIMES_SEED = 8765


class LSDTokens(SamplerDistiller):
    """Learn a power or a scale of the score for each step of a discrete diffusion sampler.

    Each optimiser step computes the optimal numbers in closed form, and these solutions are
    averaged over the steps. `mean_match` finds, one step of the sampler after the other, the power
    of the score with which the model is as sure of the student's states as of the teacher's.
    `score_l2` is the paper's own regression of scores (eq. 6), which finds scales; it is here for
    comparison.

    With `learn_times` (LSD+) the times come first. The candidates are even times, squared times,
    those that minimise the evidence bound of the student's run (by dynamic programming over `fine`
    times) and those of Jump-Your-Steps. The candidate with which the plain sampler is best by the
    domain's metrics wins, but even times unless another is a tenth better. Then powers are matched
    on these times.

    Args:
        teacher: the frozen teacher.
        num_steps: number of network evaluations of the student; None means six, or the number of
            `times`.
        times: the initial times, largest first; None means the teacher's own grid.
        learn_times: whether the times are learned as well (LSD+).
        objective: `mean_match` or `score_l2`, see above.
        rule: the plain sampler that is adjusted.
        couple: of `score_l2`, whether teacher and student unmask positions at the same hitting
            times; the paper does not say.
        ratio: of `score_l2`, number of steps of the teacher for each of the student's.
        fine: of `learn_times`, number of times among which the evidence bound chooses.
    """

    requires = frozenset({"log_probs"})
    enough = 1  # a step solves for its numbers
    renamed = {
        "student": "of tokens the numbers are solved for, without an optimiser's settings",
        "ema_halflife": "of tokens the solutions are averaged already",
        "schedule": "of tokens the n-th step has size 1 / n",
        "warmup": "of tokens the n-th step has size 1 / n",
        "optimizer": "of tokens the numbers are solved for, without moments",
    }

    def __init__(
        self,
        teacher: DiscreteTeacher,
        num_steps: int | None = None,
        times: list[float] | None = None,
        learn_times: bool = False,
        objective: Literal["mean_match", "score_l2"] = "mean_match",
        rule: Literal["tweedie", "euler", "tau_leap"] = "tweedie",
        couple: bool = True,
        ratio: int = 16,
        fine: int = 64,
        **kwargs,
    ):
        checks.whole(1, ratio=ratio)
        checks.whole(2, 10_000, fine=fine)
        times = first_times(num_steps, times, teacher.grid)
        sampler = LearnedSampler(teacher.process, times, rule, learn_times)
        super().__init__(
            teacher, sampler, Adam(), ema_halflife=0, schedule="constant", warmup=0, optimizer="adamw", **kwargs
        )
        self.objective, self.couple, self.ratio = objective, couple, ratio
        self.learn_times, self.fine = learn_times, fine

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Half the squared distance from the solution of this batch."""
        _, x_0, cond = self.paired(batch)
        if self.learn_times and self.global_step == 0 and self._micro == 0:
            self.choose_times()
        return self.distance_from_solution(x_0, cond)

    def denoiser(self) -> DiscreteDenoiser:
        """The teacher's denoiser, guided."""
        own = self.teacher.denoiser
        return own if self.kappa == 1 else Guided(own, self.teacher.null_condition, self.kappa)

    def draws(self, num: int, purpose: str, shared: bool = False) -> Draws:
        """Noise of all calls for `num` sequences, see `generator`."""
        seed = self.generator(purpose, shared).initial_seed()
        return fresh(seed, num, self.teacher.event_shape[0], self.device)

    def distance_from_solution(self, x_0: Tensor, cond: Cond) -> Tensor:
        """Half the squared distance of the learned numbers from the solution for x_0 [B, d].

        x_0 are clean samples.
        """
        noise = self.draws(len(x_0), "student")
        if self.objective == "mean_match":
            powers = match_powers(self.denoiser(), self.student, x_0, noise, cond)
            return (self.student.log_power - powers.log()).square().sum() / 2
        teacher_noise = self.draws(len(x_0), "teacher")
        scale = regress_scales(
            self.denoiser(), self.student, self.ratio, noise, teacher_noise, self.couple, cond
        ).clamp_min(1e-3)
        return (self.student.log_scale - scale.log().to(self.student.log_scale)).square().sum() / 2

    # Means of solutions

    def optimizer_options(self) -> list[dict[str, Any]]:
        return [{"lr": 1.0}]

    def configure_optimizers(self) -> dict[str, Any]:
        """The n-th gradient step has size 1 / n: each number is the mean of its solutions."""
        groups = [{"params": self.student.parameters(), **options} for options in self.optimizer_options()]
        optimizer = torch.optim.SGD(groups, fused=True)  # fused: it reads `found_inf`
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clips nothing, and counts the solutions for their mean: a bad one was skipped."""
        super().configure_gradient_clipping(optimizer, 0.0)
        num = self.global_step + 1
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                parameter.grad *= num / (num - self.bad_steps[0, 1]).clamp_min(1)

    # Times

    @torch.no_grad()
    def choose_times(self) -> None:
        """Set the student's times to the best of the candidates."""
        enough = max(32, min(256, 16_384 // self.teacher.event_shape[0]))  # of long sequences a few tell as much
        _, x_0, cond = self.pairs.draw(torch.arange(min(enough, self.pairs.num)), self.device)
        candidates, measured = self.candidates(x_0, cond), {}
        with progress("comparing times", len(candidates)) as comparing:
            for name, times in candidates.items():
                self.student.times.move_to(times)
                measured[name] = self.measure(TIMES_SEED)
                comparing.advance()
        self.verdict["times"] = self.best_of(measured, "even", margin=0.1)
        self.student.times.move_to(candidates[self.verdict["times"]])

    def candidates(self, x_0: Tensor, cond: Cond) -> dict[str, Tensor]:
        """Times by name, from clean samples x_0 [B, d] of the teacher."""
        num = self.num_steps
        noise = self.draws(len(x_0), "times", shared=True)(0)
        fine = self.teacher.grid(max(self.fine, 2 * num))
        costs = step_costs(self.denoiser(), x_0, fine.to(self.device), noise, cond)
        even = self.teacher.grid(num)
        return {
            "even": even,
            "squared": even**2,
            "bound": cheapest_times(costs, fine, num),
            "jumps": jump_your_steps(self.denoiser(), x_0, num, noise, cond),
        }
