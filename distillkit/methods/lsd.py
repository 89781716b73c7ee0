"""LSD and LSD+, learnable sampler distillation (arXiv 2509.19962), as a learned solver of a Gaussian process."""

from __future__ import annotations

from torch import Tensor

from distillkit.diffusion.learned import LearnedSolver
from distillkit.losses.reduce import mean
from distillkit.methods.base import Adam
from distillkit.methods.sampler import SamplerDistiller, first_times
from distillkit.teachers.base import Teacher


class LSD(SamplerDistiller):
    """Learn the coefficients of a multistep solver, so that its samples are the teacher's from the same noise.

    They follow the gradient through the whole run (LD3, arXiv 2405.15506; S4S, arXiv 2502.17423).
    The teacher's network is called as it is.

    Args:
        teacher: the frozen teacher.
        num_steps: network calls of the student; None means six, or as many as there are times.
        times: where they start, largest first; None means the teacher's own grid.
        learn_times: whether the times follow the same gradient (LSD+).
        student: optimiser.
    """

    requires = frozenset({"denoiser"})
    renamed = dict.fromkeys(
        ("objective", "rule", "couple", "ratio", "fine"),
        "objective, rule, couple, ratio and fine are of samplers of tokens, leave them out",
    )

    def __init__(
        self,
        teacher: Teacher,
        num_steps: int | None = None,
        times: list[float] | None = None,
        learn_times: bool = False,
        student: Adam = Adam(lr=2e-2, clip=1.0),
        **kwargs,
    ):
        if "log_probs" in teacher.provides:
            raise ValueError(
                f"the sampler of tokens is learned by distillkit.methods.lsd_tokens.LSDTokens, LSD takes no "
                f"{type(teacher).__name__}"
            )
        times = first_times(num_steps, times, lambda num: teacher.grid(num + 1)[:-1])
        super().__init__(teacher, LearnedSolver(teacher.process, times, learn_times), student, **kwargs)

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """`E |student(z) - teacher(z)|^2`."""
        noise, y, cond = self.paired(batch)
        x = self.teacher.solve(noise, cond, self.student, self.student.times(), self.kappa)
        return mean((x - y).square(), cond.get("mask"))
