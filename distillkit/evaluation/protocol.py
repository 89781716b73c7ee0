"""One protocol for every domain: the student, its teacher at its best, the teacher at the student's cost, and real data.

All models sample from the same noise and the same conditions. The protocol (numbers of samples, seeds, solvers, feature
extractor) is written beside the numbers, for two results under different protocols are not comparable.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

import distillkit
from distillkit.data import DistillData
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.sampling import network_passes
from distillkit.student import Student
from distillkit.teachers.base import Teacher

FEW_STEP_SOLVERS = ("ddim", "euler", "dpm_solver")  # one pass a step; Heun is unstable below about six steps


class Evaluator(Protocol):
    """What a domain offers (`DistillData.evaluator()`)."""

    headline: str  # the metric that sums it up, lower is better
    better: dict[str, str]  # metric to `lower`, `higher` or `target` (near the value of real data)

    def __call__(self, samples: Tensor, cond: Cond) -> dict[str, float]: ...

    def describe(self) -> dict[str, Any]: ...

    def floor(self, num_samples: int) -> dict[str, float]: ...

    # Optional: how far samples are from a reference made from the same noise under the same condition, one by one.
    # def paired(self, samples: Tensor, reference: Tensor, cond: Cond) -> dict[str, float]: ...


def noise_for(teacher: Teacher, cond: Cond, num: int, seed: int) -> Tensor:
    """The noise a student's first step gets for this seed."""
    return torch.randn(teacher.shape(num, cond), generator=torch.Generator().manual_seed(seed))


def teacher_samples(
    teacher: Teacher, noise: Tensor, cond: Cond, solver: str, kappa: float, times: Tensor, chunk: int = 500
) -> Tensor:
    """`Teacher.sample` in chunks, on the teacher's device, back on the CPU."""
    device = next(teacher.buffers(), next(teacher.parameters(), torch.empty(0))).device
    parts = []
    for rows in torch.arange(len(noise)).split(chunk):
        own = {name: value[rows].to(device) for name, value in cond.items()}
        parts.append(teacher.sample(noise[rows].to(device), own, None, solver, kappa, times=times).cpu())
    return torch.cat(parts)


def timed(make: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What `make` gives and the milliseconds a sample took."""
    start = time.perf_counter()
    samples = make()
    return samples, 1000 * (time.perf_counter() - start) / len(samples)


def few_step_choices(teacher: Teacher, steps: int, student: Student | None = None) -> list[tuple[str, Tensor]]:
    """Simple samplers with `steps` network passes: one-pass solvers on the full grid, one that stops earlier, the student's.

    With few steps the full grid wastes its last one on a level without noise; with one step all choices are the same.
    """
    grids = [teacher.grid(steps), teacher.grid(steps + 1)[:-1]]
    if steps == 1:
        return [("ddim", grids[0])]
    own = torch.tensor(student.times if student else [], dtype=torch.float64)
    if student and not any(torch.allclose(own, grid) for grid in grids):
        grids.append(own)
    return [(solver, times) for solver in FEW_STEP_SOLVERS for times in grids]


def evaluate(
    data: DistillData,
    teacher: Teacher,
    student: Student | None = None,
    num_samples: int = 1000,
    seed: int = 1234,
    kappa: float = 1.0,
) -> dict[str, Any]:
    """The content of evaluation.json.

    Args:
        data: gives the domain's metrics and what the models are asked for.
        teacher: the reference, also sampled at the student's number of steps (the best of the one-pass solvers counts).
        student: None evaluates a teacher alone, at its best and at one and two steps.
        num_samples: of every model.
        seed: of the noise.
        kappa: guidance of the teacher.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}")
    evaluator, cond = data.evaluator(), teacher.condition(data.conditions(num_samples))
    noise = noise_for(teacher, cond, num_samples, seed)

    best, best_times = teacher.best, teacher.grid(teacher.best["steps"])
    paired = getattr(evaluator, "paired", None)

    def by_teacher(noise: Tensor, solver: str, times: Tensor) -> Tensor:
        return teacher_samples(teacher, noise, cond, solver, kappa, times)

    def row(name: str, steps: int, passes: int, made: tuple[Tensor, float], reference: Tensor, **extra: Any):
        samples, milliseconds = made
        metrics = evaluator(samples, cond) | (paired(samples, reference, cond) if paired else {})
        return {
            "name": name,
            "steps": steps,
            "network_passes": passes,
            "ms_per_sample": milliseconds,
            **extra,
            "metrics": {k: float(v) for k, v in metrics.items()},
        }

    def teacher_row(name: str, solver: str, times: Tensor, made: tuple[Tensor, float], reference: Tensor):
        facts = {"solver": solver, "last_time": float(times[-1])}
        return row(name, len(times), network_passes(solver, len(times)), made, reference, **facts)

    # warm-up of both, so that what comes first is not the slowest by order alone
    some = {name: value[:64] for name, value in cond.items()}
    teacher_samples(teacher, noise[:64], some, best["solver"], kappa, teacher.grid(2))
    reference, milliseconds = timed(lambda: by_teacher(noise, best["solver"], best_times))
    rows = []
    if student:
        student.sample(min(num_samples, 64), some, seed)
        own = student.num_steps
        rows.append(row("student", own, own, timed(lambda: student.sample(num_samples, cond, seed)), reference))
    # the teacher itself is compared with its samples from another noise
    other = noise_for(teacher, cond, num_samples, seed + 1) if paired else None
    another = by_teacher(other, best["solver"], best_times) if paired else reference
    rows.append(teacher_row("teacher at its best", best["solver"], best_times, (reference, milliseconds), another))
    for steps in [student.num_steps] if student else [1, 2]:
        name = f"teacher at {steps} step{'s' * (steps > 1)}"
        candidates = []
        for solver, times in few_step_choices(teacher, steps, student):
            made = timed(lambda solver=solver, times=times: by_teacher(noise, solver, times))
            candidates.append(teacher_row(name, solver, times, made, reference))
        rows.append(min(candidates, key=lambda candidate: candidate["metrics"][evaluator.headline]))
    rows.append({"name": "real data", "metrics": {k: float(v) for k, v in evaluator.floor(num_samples).items()}})
    return {
        "protocol": {
            "num_samples": num_samples,
            "seed": seed,
            "kappa": kappa,
            "teacher": {"id": teacher.id, "hash": teacher.fingerprint(), **best},
            "few_step_solvers": list(FEW_STEP_SOLVERS),
            "evaluator": evaluator.describe(),
            "torch_threads": torch.get_num_threads(),
            "distillkit": distillkit.__version__,
        },
        "headline": evaluator.headline,
        "better": dict(evaluator.better),
        "rows": rows,
    }
