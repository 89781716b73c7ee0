"""One-step regression on pairs: Rectified Flow (arXiv 2209.03003), InstaFlow (2309.06380)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.losses.dmd import regression_loss
from distillkit.losses.reduce import mean
from distillkit.methods.base import Adam
from distillkit.methods.few_step import FewStepDistiller
from distillkit.pairs import Pairs, ode_solver, own_start
from distillkit.teachers.base import Teacher


class PairDistil(FewStepDistiller):
    """Fit the student's sample to the teacher's from the same noise: `E d(G(z, c), x)` over pairs.

    The minimiser is the teacher's own map from noise z to data x. A network learns it better the
    straighter the teacher's trajectories are, so reflow first.

    Args:
        teacher: the frozen teacher.
        num_pairs, pairs_path, steps: settings of the pairs, see `Pairs`.
        solver: deterministic solver of the pairs; None means the teacher's best, or DDIM if that
            one is stochastic.
        distance: `huber`, pseudo-Huber per sample, or `l2`, the mean square; in the diffused space.
        student: settings of the student's optimiser.

    Raises:
        ValueError: the student has more than one step, or the solver is stochastic.
    """

    allows = frozenset()  # pairs join noise with the samples of the teacher's own start

    def __init__(
        self,
        teacher: Teacher,
        num_pairs: int = 4096,
        pairs_path: str | None = None,
        solver: str | None = None,
        steps: int | None = None,
        distance: Literal["huber", "l2"] = "huber",
        student: Adam = Adam(lr=1e-4),
        **kwargs,
    ):
        super().__init__(teacher, **kwargs)
        if self.num_steps > 1:
            raise ValueError(
                f"pairs join noise and samples in one step and need model.num_steps=1, got {self.num_steps}"
            )
        own_start(self.start, teacher)
        self.distance = distance
        self.pairs = Pairs(teacher, num_pairs, pairs_path, self.kappa, ode_solver(teacher, solver), steps)
        self.add_role("student", student, student=self.make_student())
        self.keep_ema()

    def on_fit_start(self) -> None:
        self.pairs.make(self.trainer.datamodule.train, self.seed, self.trainer.strategy)

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.regress(*self.paired(batch))

    def paired(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Cond]:
        """As many random pairs as the batch has samples.

        Returns:
            The student's samples with gradient and the teacher's from the same noise, in the space
            of the diffusion [B, ...], and their conditions.
        """
        z, x, cond = self.pairs.random(len(next(iter(batch.values()))), self.generator("pairs"))
        return self.jump(z, cond), x, cond

    def jump(self, z: Tensor, cond: Cond) -> Tensor:
        """The student's samples from unit noise z [B, ...], in the space of the diffusion."""
        t = self.step_times[0]  # the student's level; the noise is the pair's in any case
        return self.student(self.teacher.start(self.teacher.process, z, t, cond), t, cond)

    def regress(self, x_g: Tensor, x: Tensor, cond: Cond) -> Tensor:
        """The `distance` of the student's samples to the teacher's (a scalar)."""
        if self.distance == "l2":
            return mean((x_g - x).square(), cond.get("mask"))
        return regression_loss(x_g, x, cond.get("mask"))

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "pairs": self.pairs.facts()}
