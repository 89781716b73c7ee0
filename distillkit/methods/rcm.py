"""rCM, continuous-time consistency regularised by a score (arXiv 2510.08431)."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.dmd import DMD
from distillkit.methods.scm import TangentConsistency
from distillkit.teachers.base import Teacher


class RCM(TangentConsistency, DMD):
    """The consistency loss of sCM and the distribution matching of DMD, in one step of the student.

    Consistency alone covers the data but blurs details, DMD alone sharpens but drops modes. The
    student's samples for DMD and for the fake score come from a backward simulation: n steps, n
    going round 1 to `max_steps`, from noise and then at random levels of `student_times`, each
    below the one before.

    Args:
        teacher: the frozen teacher.
        consistency_weight, dmd_weight: weights of the two terms.
        max_steps: the largest number of steps of the backward simulation.
        student, fake_score: settings of the two roles' optimisers. DMD's term begins with the first
            step of the fake score, `fake_score.start`.

    Raises:
        ValueError: a value is out of range.
    """

    allows = frozenset({"start"})  # its consistency learns a map from noise

    def __init__(
        self,
        teacher: Teacher,
        consistency_weight: float = 1.0,
        dmd_weight: float = 1.0,
        max_steps: int = 4,
        student: Adam = Adam(lr=1e-5, betas=(0.0, 0.999), clip=1.0),
        fake_score: Adam = Adam(lr=1e-5, betas=(0.0, 0.999), clip=10.0, updates=4, start=1000),
        **kwargs,
    ):
        checks.within(WEIGHTS, consistency_weight=consistency_weight, dmd_weight=dmd_weight)
        checks.whole(1, 1000, max_steps=max_steps)
        super().__init__(
            teacher,
            student=student,
            fake_score=fake_score,
            matched="last",
            **kwargs,
        )
        self.ask(gan=self.gan)
        self.consistency_weight, self.dmd_weight, self.max_steps = consistency_weight, dmd_weight, max_steps
        self.add_student(student, self.student)

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        loss = self.consistency_weight * self.consistency(batch)
        if self.global_step >= self.settings["fake_score"].start:
            loss = loss + self.dmd_weight * super().student_loss(batch)
        return loss

    def generate(self, shape: tuple[int, ...], cond: Cond, purpose: str, step: int, noise_scale: float = 1.0) -> Tensor:
        """The student's samples after the backward simulation, with gradient in its last step."""
        process, times = self.teacher.process, self.simulated_times(shape[0], purpose)
        x_0 = None
        for i, t in enumerate(times):
            eps = noise_scale * self.randn(shape, f"{purpose} noise {i}")
            x_t = self.start(process, eps, t, cond) if i == 0 else process.add_noise(x_0, eps, t)
            with torch.set_grad_enabled(torch.is_grad_enabled() and i == len(times) - 1):
                x_0 = self.student(x_t.detach(), t, cond)
        return x_0

    def simulated_times(self, num: int, purpose: str) -> list[Tensor]:
        """The times of a simulation, [num] each: the largest, then draws or the last if lower.

        Their number goes round 1 to `max_steps` with the steps of the role that asks.
        """
        role = self.turn(self.global_step)
        steps = self.updates_before(role, self.global_step) % self.max_steps + 1
        times = [self.step_times[0].to(self.device, torch.float32).expand(num)]
        for i in range(1, steps):
            drawn = self.draw_times(self.student_times, num, f"{purpose} t {i}")
            times.append(torch.minimum(drawn, times[-1]))
        return times
