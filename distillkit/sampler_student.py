"""The student that is a sampler: a few learned numbers, and the teacher whose network they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.diffusion.denoiser import Cond, numbers
from distillkit.files import load_weights
from distillkit.spec import from_spec, named, retold, to_spec
from distillkit.student import CONFIG, MOST_STEPS, WEIGHTS, Student, check_origin
from distillkit.teachers.base import Teacher


class SamplerStudent(Student):
    """A student that is a sampler with a few learned numbers; the network it calls is its teacher's, which it brings along.

    Its folder holds the numbers and names the teacher with its hash; another teacher is refused.

    Args:
        teacher: the frozen teacher.
        sampler: a `LearnedSolver`, of tokens a `LearnedSampler`.
        kappa: guidance scale of the teacher, 1 = none.
        config: what its folder says about it.
    """

    def __init__(self, teacher: Teacher, sampler: nn.Module, kappa: float = 1.0, config: dict[str, Any] | None = None):
        times = sampler.times().tolist()
        super().__init__(teacher.denoiser, times, teacher.event_shape, teacher.classes, False, config, teacher.context)
        self.teacher, self.sampler, self.kappa = teacher, sampler, kappa

    @property
    def weights(self) -> nn.Module:
        return self.sampler

    @torch.no_grad()
    def forward(self, noise: Any, cond: Cond | None = None, draw=None) -> Tensor:
        """From what the teacher's own `sample` starts from; a learned sampler needs no further `draw`."""
        return self.teacher.sample(noise, cond or {}, None, self.sampler, self.kappa)

    def sample(self, n: int = 64, cond: Cond | None = None, seed: int = 0, batch_size: int = 256) -> Tensor:
        cond = self.checked_condition(n, cond)
        if not n:
            return torch.empty(0, *self.event_shape)
        return self.teacher.generate(n, cond, seed, self.sampler, kappa=self.kappa, chunk=batch_size)

    def facts(self):
        own = super().facts()
        del own["denoiser"], own["renoise"], own["noise_scale"], own["times"]
        teacher = {"id": self.teacher.id, "hash": self.teacher.fingerprint(), **to_spec(self.teacher)}
        return {
            **own,
            "kappa": self.kappa,
            **self.sampler.facts(),
            "sampler": to_spec(self.sampler),
            "teacher": teacher,
        }


def load_sampler(
    folder: Path, home: Path, config: dict[str, Any], trust: tuple[str, ...], teacher: Teacher | None
) -> Student:
    """A sampler from its folder and the teacher it names, which may lie in `home`; see `load_student`."""
    origin, file = config.get("teacher"), folder / CONFIG
    if not isinstance(origin, dict) or "hash" not in origin:
        raise ValueError(f"{file} is damaged: a sampler needs its teacher's name and hash")
    for key, fine in check_origin(config).items():
        if not fine:
            raise ValueError(f"{file} is damaged: {key} cannot be {repr(config.get(key))[:80]}")
    if teacher is None:
        try:
            teacher = from_spec({key: origin.get(key) for key in ("class_path", "init_args")}, trust, home)
        except ValueError as error:
            said = f"the teacher {origin.get('id')} that this sampler calls cannot be loaded ({error})"
            raise retold(error, f"{said}: pass it as load_student(path, teacher=...)") from error
    if not isinstance(teacher, Teacher) or teacher.fingerprint() != origin["hash"]:
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
    student = SamplerStudent(teacher, sampler, float(config.get("kappa", 1.0)), config)
    return student.requires_grad_(False).eval()
