"""LSD and LSD+, learnable sampler distillation (arXiv 2509.19962), for tokens and, as a learned solver, for everything else."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.diffusion.learned import LearnedSolver
from distillkit.methods.base import Adam
from distillkit.methods.sampler import SamplerDistiller
from distillkit.teachers.base import Teacher


class LSD(SamplerDistiller):
    """Learn a coefficient for each step of a sampler (LSD).

    A continuous teacher: the coefficients of a multistep solver, fitted by least squares to the ends of the teacher's own
    trajectories from the same noise (LD3, arXiv 2405.15506; S4S, arXiv 2502.17423).

    Args:
        teacher: the frozen teacher.
        num_steps: network calls of the student.
        num_pairs: teacher samples made at the start, with the noise they were made from.
        student: optimiser.
    """

    learn_times = False

    def __init__(
        self,
        teacher: Teacher,
        num_steps: int = 6,
        num_pairs: int = 4096,
        student: Adam = Adam(lr=2e-2, clip=1.0),
        **kwargs,
    ):
        if num_steps < 2:
            raise ValueError(f"a sampler needs at least 2 steps to have something to learn, got num_steps={num_steps}")
        times = teacher.grid(num_steps + 1)[:-1].tolist()
        super().__init__(teacher, LearnedSolver(teacher.process, times, self.learn_times), student, **kwargs)
        self.num_pairs = num_pairs

    # The teacher's trajectories: a function of the seed, so a resumed run makes the same

    def on_fit_start(self) -> None:
        data, num = self.trainer.datamodule.train, self.num_pairs
        cond = self.condition(data[torch.arange(num) % len(data)])
        self._pairs = cond, self.teacher.generate(num, cond, self.seed, kappa=self.kappa).to(self.device)

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """`E |student(z) - teacher(z)|^2`."""
        cond, y = self._pairs
        num = len(next(iter(batch.values())))
        rows = (self.rand(num, "pairs") * self.num_pairs).long()
        cond = {name: value[rows.to(value.device)].to(self.device) for name, value in cond.items()}
        noise = torch.randn(self.teacher.shape(self.num_pairs, self._pairs[0]), generator=torch.Generator().manual_seed(self.seed))
        return (self.run(noise[rows].to(self.device), cond) - y[rows]).square().mean()
