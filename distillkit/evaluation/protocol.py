"""One protocol for every domain: the student, its teacher at its best, the teacher at the student's cost, and real data.

All models sample from the same noise and the same conditions. The protocol (numbers of samples,
seeds, solvers, feature extractor) is written beside the numbers, for two results under different
protocols are not comparable.
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
from distillkit.evaluation.metrics import TooFew
from distillkit.evaluation.rows import BEST, REAL
from distillkit.progress import progress
from distillkit.students.base import Student
from distillkit.teachers.base import Teacher


class Evaluator(Protocol):
    """What a domain offers (`DistillData.evaluator()`)."""

    headline: str  # the metric that sums it up, lower is better
    better: dict[str, str]  # metric to `lower`, `higher` or `target` (near the value of real data)

    def __call__(self, samples: Tensor, cond: Cond) -> dict[str, float]: ...

    def describe(self) -> dict[str, Any]: ...

    def floor(self, num_samples: int) -> dict[str, float]: ...  # what real data get; empty where there are none

    # Optional: how far samples are from a reference made from the same noise under the same
    # condition, one by one. def paired(self, samples: Tensor, reference: Tensor, cond: Cond) ->
    # dict[str, float]: ... Optional, among the metrics: `outside`, where values are cut to the
    # range of the data before they are measured, as a file would keep them: the share that was cut.
    # Optional: metrics too dear for validation and for every candidate, asked once for each model
    # in the table. def thorough(self, samples: Tensor, cond: Cond) -> dict[str, float]: ...
    # Optional: the metrics that are left out, for so many samples, or what is held out, are too
    # few. def too_few(self, num_samples: int) -> list[str]: ...


def timed(make: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What `make` gives and the milliseconds a sample took."""
    start = time.perf_counter()
    samples = make()
    return samples, 1000 * (time.perf_counter() - start) / len(samples)


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
        teacher: the reference, also sampled at the student's number of steps (the best of the
            one-pass solvers counts).
        student: None evaluates a teacher alone, at its best and at one and two steps.
        num_samples: of every model.
        seed: of the noise.
        kappa: guidance of the teacher.

    Raises:
        TooFew: samples or held-out data are too few for the headline.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}")
    evaluator, cond = data.evaluator(), teacher.condition(data.conditions(num_samples))
    left_out, too_few = data.left_out(), getattr(evaluator, "too_few", lambda num: [])(num_samples)
    if evaluator.headline in too_few:
        raise TooFew(f"{evaluator.headline} needs more samples, or held-out data, than there are")
    best, best_times = teacher.best, teacher.grid(teacher.best["steps"])
    paired = getattr(evaluator, "paired", None)
    thorough = getattr(evaluator, "thorough", lambda samples, cond: {})

    def by_teacher(seed: int, solver: str, times: Tensor) -> Tensor:
        return teacher.generate(num_samples, cond, seed, solver, times, kappa)

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
        facts = {"solver": solver, "last_time": float(times[-1]), "times": times.tolist()}
        return row(name, len(times), teacher.network_passes(solver, len(times)), made, reference, **facts)

    fewer = [student.num_steps] if student else [1, 2]
    choices = {k: teacher.few_step_choices(k, student.times if student else ()) for k in fewer}
    rows, models = [], 2 + bool(student) + sum(map(len, choices.values()))
    with progress(f"evaluating {num_samples:,} samples of each model", models) as evaluating:
        # warm-up of both, so that what comes first is not the slowest by order alone
        some = {name: value[:64] for name, value in cond.items()}
        warm = min(num_samples, 64)
        teacher.generate(warm, some, seed, best["solver"], teacher.grid(2), kappa)
        reference, milliseconds = timed(lambda: by_teacher(seed, best["solver"], best_times))
        if student:
            student.sample(warm, some, seed)
            own = student.num_steps
            made = timed(lambda: student.sample(num_samples, cond, seed))
            rows.append(row("student", own, own, made, reference))
            rows[-1]["metrics"] |= thorough(made[0], cond)
            evaluating.advance()
        # the teacher itself is compared with its samples from another noise
        another = by_teacher(seed + 1, best["solver"], best_times) if paired else reference
        rows.append(teacher_row(BEST, best["solver"], best_times, (reference, milliseconds), another))
        rows[-1]["metrics"] |= thorough(reference, cond)
        evaluating.advance()
        for steps in fewer:
            name = f"teacher at {steps} step{'s' * (steps > 1)}"
            candidates, kept = [], reference
            for solver, times in choices[steps]:
                made = timed(lambda solver=solver, times=times: by_teacher(seed, solver, times))
                candidates.append(teacher_row(name, solver, times, made, reference))
                chosen = min(candidates, key=lambda candidate: candidate["metrics"][evaluator.headline])
                kept = made[0] if chosen is candidates[-1] else kept
                evaluating.advance()
            tried = [{key: row[key] for key in ("solver", "times", "metrics")} for row in candidates]
            rows.append({**chosen, "metrics": chosen["metrics"] | thorough(kept, cond), "tried": tried})
        if floor := evaluator.floor(num_samples):
            rows.append({"name": REAL, "metrics": {k: float(v) for k, v in floor.items()}})
        evaluating.advance()
    return {
        "protocol": {
            "num_samples": num_samples,
            "seed": seed,
            "kappa": kappa,
            "teacher": {"id": teacher.id, "hash": teacher.fingerprint(), **best},
            "few_step_solvers": sorted({row["solver"] for known in rows for row in known.get("tried", ())}),
            **({"left_out": left_out} if left_out else {}),
            **({"too_few": too_few} if too_few else {}),
            "evaluator": evaluator.describe(),
            "torch_threads": torch.get_num_threads(),
            "distillkit": distillkit.__version__,
        },
        "headline": evaluator.headline,
        "better": dict(evaluator.better),
        "rows": rows,
    }
