"""The ways from noise to samples through which noise is optimised: a student's, a teacher's."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distillkit.codec import Codec
from distillkit.devices import in_chunks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.sampling import ODE_SOLVERS
from distillkit.students.base import Student
from distillkit.students.few_step import FewStepStudent
from distillkit.students.sampler import SamplerStudent
from distillkit.teachers.base import BaseTeacher, Teacher

DITTO_STEPS = 20  # of DDIM, in DITTO


class Route(ABC):
    """A way from all its unit noise to samples: with gradients, and as people get them.

    Attributes:
        denoiser: the network that is called.
        calls: its calls for the loss of one sample.
        decode_steps: times of the sampler that makes the samples.
        event_shape, codec: as in `Student`.
    """

    denoiser: nn.Module
    calls: int
    decode_steps: int
    event_shape: tuple[int, ...]
    codec: Codec

    @abstractmethod
    def noise(self, n: int, cond: Cond, seed: int) -> Tensor:
        """The unit noise [n, ...] from which `sample` starts with this seed, on the CPU."""

    @abstractmethod
    def __call__(self, z: Tensor, cond: Cond) -> Tensor:
        """Samples from z [B, ...] in the space of the diffusion, with gradients.

        Args:
            z: unit noise, on the model's device.
            cond: conditions as the network sees them, see `Codec.conditions`.
        """

    @abstractmethod
    def decode(self, z: Tensor, cond: Cond) -> Tensor:
        """The samples [n, ...] that people get from z, in the space of the diffusion, on the CPU.

        Args:
            z, cond: noise and conditions, on the CPU.
        """


class ThroughStudent(Route):
    """Gradients through the student's sampler, or through one step for it, as in DITTO-2.

    The noise is that of all steps, z [B, draws, ...]. DITTO-2 (arXiv 2405.20289) takes the gradient
    of one step from the first noise, `denoiser(start(z), t_1)` or its jump to the datum, in place
    of that of the sampler.

    Args:
        student: the student.
        steps: steps of the sampler; None means the student's own.
        one: whether gradients go through one step.
    """

    def __init__(self, student: FewStepStudent, steps: int | None = None, one: bool = False):
        self.student = student.with_steps(steps or student.num_steps)
        self.way = student.with_steps(1) if one else self.student
        self.denoiser, self.event_shape, self.codec = student.denoiser, student.event_shape, student.codec
        self.calls, self.decode_steps = self.way.num_steps, self.student.num_steps

    def noise(self, n, cond, seed):
        return torch.stack(self.student.noise(n, cond, seed), 1)

    def __call__(self, z, cond):
        draws = z.unbind(1)
        return self.way.solve(draws[0], dict(cond), draws.__getitem__)

    def decode(self, z, cond):
        return self.student.denoised(z.unbind(1), cond, batch_size=256, decode=False)


class ThroughTeacher(Route):
    """DITTO (arXiv 2401.12179): gradients through the whole sampler, which makes the samples too.

    Only the inputs of the network's calls are kept; each call is repeated for its gradient.

    Args:
        teacher: the teacher.
        solver: a deterministic solver by name, or a learned one, at its own times.
        steps: times of a named solver.
        kappa: guidance scale.
        checkpointing: whether calls are repeated; without it they are kept in memory.
    """

    def __init__(
        self,
        teacher: Teacher,
        solver: Any = "ddim",
        steps: int = DITTO_STEPS,
        kappa: float = 1.0,
        checkpointing: bool = True,
    ):
        if isinstance(solver, str) and solver not in ODE_SOLVERS:
            raise ValueError(f"{solver} draws noise at each step: give one of {', '.join(ODE_SOLVERS)}")
        self.teacher, self.solver, self.kappa = teacher, solver, kappa
        self.times = solver.times().detach() if isinstance(solver, nn.Module) else teacher.grid(steps)
        self.denoiser, self.event_shape, self.codec = teacher.denoiser, teacher.event_shape, teacher.codec
        self.calls = teacher.calls_per_sample(solver, self.times, kappa)
        self.decode_steps = len(self.times)
        self.kept = copy.copy(teacher)
        if checkpointing:
            self.kept._modules = {**teacher._modules, "denoiser": Repeated(teacher.denoiser)}

    def noise(self, n, cond, seed):
        return self.teacher.noise(n, cond, seed)

    def __call__(self, z, cond):
        return self.kept.solve(z, cond, self.teacher.solver(self.solver), self.times, self.kappa)

    def decode(self, z, cond):
        def made(rows: slice) -> Tensor:
            own = {name: value[rows].to(self.teacher.device) for name, value in cond.items()}
            return self.teacher.sample(
                z[rows].to(self.teacher.device), own, None, self.solver, self.kappa, times=self.times
            )

        return in_chunks(made, len(z), self.teacher.chunk)


def of_student(student: Student, steps: int | None = None, one: bool = False) -> Route:
    """The way through a student.

    Args:
        student: the student.
        steps: of the sampler that makes the samples; None means the student's own.
        one: whether gradients go through one step for all, see `ThroughStudent`; a learned sampler
            has no such step.

    Raises:
        ValueError: the student's samples have no gradients, or its number of steps is fixed.
    """
    if isinstance(student, FewStepStudent):
        return ThroughStudent(student, steps, one)
    if not isinstance(student, SamplerStudent) or not isinstance(student.teacher, Teacher):
        raise ValueError(
            "this student draws tokens, which have no gradients: noise is optimised for students of continuous diffusion"
        )
    if one:
        raise ValueError("this student is a learned sampler, no step of which makes a sample: leave --through step out")
    if steps not in (None, student.num_steps):
        raise ValueError(f"this student is a sampler of {student.num_steps} learned steps: leave the number out")
    return ThroughTeacher(student.teacher, student.sampler, kappa=student.kappa)


def of_teacher(teacher: BaseTeacher, kappa: float = 1.0) -> Route:
    """The way through a teacher by DITTO's 20 steps of DDIM.

    Raises:
        ValueError: the teacher's samples have no gradients.
    """
    if not isinstance(teacher, Teacher):
        raise ValueError(
            f"{teacher.id} draws tokens, which have no gradients: noise is optimised for teachers of continuous diffusion"
        )
    return ThroughTeacher(teacher, kappa=kappa)


class Repeated(nn.Module):
    """A denoiser whose calls keep their inputs alone, and are repeated for their gradients."""

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.denoiser, self.process = denoiser, denoiser.process
        self.network = getattr(denoiser, "network", None)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return checkpoint(self.denoiser, x_t, t, cond, use_reentrant=False, preserve_rng_state=False)
