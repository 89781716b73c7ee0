"""The student that is a sampler: a few learned numbers for its teacher's network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.diffusion.denoiser import Cond, numbers
from distillkit.files import load_weights
from distillkit.spec import from_spec, named, retold, to_spec
from distillkit.students.base import CONFIG, MOST_STEPS, WEIGHTS, Student, check_origin
from distillkit.teachers.base import BaseTeacher


class SamplerStudent(Student):
    """A student that is a sampler with a few learned numbers; it calls its teacher's network.

    Its folder holds the numbers and names the teacher with its hash; another teacher is refused.

    Args:
        teacher: the frozen teacher.
        sampler: a `LearnedSolver`, or a `LearnedSampler` for discrete diffusion.
        kappa: guidance scale of the teacher; 1 means no guidance.
        config, examples: as in `Student`.
    """

    def __init__(
        self,
        teacher: BaseTeacher,
        sampler: nn.Module,
        kappa: float = 1.0,
        config: dict[str, Any] | None = None,
        examples: Cond | None = None,
    ):
        shape, classes, context = teacher.event_shape, teacher.classes, teacher.context
        super().__init__(shape, classes, context, teacher.codec, config, examples, teacher.continuation)
        self.teacher, self.sampler, self.kappa = teacher, sampler, kappa

    @property
    def times(self) -> list[float]:
        return self.sampler.times().tolist()

    @property
    def weights(self) -> nn.Module:
        return self.sampler

    @property
    def network(self):
        return getattr(self.teacher.denoiser, "network", None)

    @property
    def not_exported(self):
        return "a sampler of few numbers calls its teacher's network and cannot be exported"

    @torch.no_grad()
    def forward(self, noise: Any, cond: Cond | None = None, draw: Callable[[int], Tensor] | None = None) -> Tensor:
        """Map the teacher's start noise to samples, undecoded; `draw` as in `Teacher.sample`."""
        drawn = {} if draw is None else {"draw": draw}
        return self.teacher.sample(noise, cond or {}, None, self.sampler, self.kappa, **drawn)

    def sample(self, n=64, cond=None, seed=0, batch_size=256, decode=True, kappa=None):
        cond = self.checked_condition(n, cond, kappa)
        if not n:
            return torch.empty(0, *(self.codec.data_shape(self.event_shape) if decode else self.event_shape))
        return self.teacher.generate(n, cond, seed, self.sampler, kappa=self.kappa, chunk=batch_size, decode=decode)

    def facts(self):
        own = super().facts()
        for name in ("codec", "continuation"):
            own.pop(name, None)  # the teacher's
        teacher = {"id": self.teacher.id, "hash": self.teacher.fingerprint(), **to_spec(self.teacher)}
        return {
            **own,
            "kappa": self.kappa,
            **self.sampler.facts(),
            "sampler": to_spec(self.sampler),
            "teacher": teacher,
        }

    @classmethod
    def load(cls, folder: Path, home, config, trust, teacher):
        origin, file = config.get("teacher"), folder / CONFIG
        if not isinstance(origin, dict) or "hash" not in origin or "sampler" not in config:
            raise ValueError(f"{file} is damaged: a sampler needs its numbers, and its teacher's name and hash")
        check_origin(config, file)
        if teacher is None:
            try:
                teacher = from_spec({key: origin.get(key) for key in ("class_path", "init_args")}, trust, home)
            except ValueError as error:
                said = f"the teacher {origin.get('id')} that this sampler calls cannot be loaded ({error})"
                raise retold(error, f"{said}: pass it as load_student(path, teacher=...)") from error
        if not isinstance(teacher, BaseTeacher) or teacher.fingerprint() != origin["hash"]:
            raise ValueError(
                f"this sampler was made for the teacher {origin.get('id')} with another hash than the one found: "
                f"its numbers mean nothing elsewhere, so restore that teacher"
            )
        with named(file):
            sampler = from_spec(config["sampler"], trust, home, folder / WEIGHTS)
        if not isinstance(sampler, nn.Module) or not hasattr(sampler, "facts"):
            raise ValueError(f"{file} is damaged: sampler cannot be {repr(config['sampler'])[:80]}")
        load_weights(sampler, folder / WEIGHTS)
        times = sampler.times().tolist()
        if not numbers(times) or len(times) > MOST_STEPS:
            raise ValueError(f"{file} is damaged: times cannot be {repr(times)[:80]}")
        return cls(teacher, sampler, float(config.get("kappa", 1.0)), config)
