"""One evaluation protocol for every domain: student, teacher at its best and at equal cost, data.

All models sample from the same noise and the same conditions. The protocol (numbers of samples,
seeds, solvers, feature extractor) is written beside the numbers, since results under different
protocols are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import distillkit
from distillkit import cache
from distillkit.data import DistillData
from distillkit.devices import model_name, wait_for
from distillkit.diffusion.denoiser import Cond
from distillkit.evaluation.metrics import TooFew, margin
from distillkit.evaluation.rows import BASELINE, BEFORE, BEST, BLIND, EARLIER, OWN, REAL, UNTRAINED
from distillkit.processes import Crew, cut
from distillkit.progress import progress
from distillkit.students.base import Student
from distillkit.teachers.base import Teacher

FewSteps = dict[int, list[tuple[str, Tensor]]]  # by number of steps, choices of solver and times


class Evaluator(Protocol):
    """The metrics of a domain (`DistillData.evaluator()`)."""

    headline: str  # the main metric, lower is better
    better: dict[str, str]  # metric to `lower`, `higher` or `target` (near the value of real data)
    device: torch.device  # where its networks and features compute; `DistillData.evaluator` sets it

    def __call__(self, samples: Tensor, cond: Cond) -> dict[str, float]: ...

    def describe(self) -> dict[str, Any]: ...

    def floor(self, num_samples: int) -> dict[str, float]: ...  # scores of real data, if there are any

    # Optional members:
    #
    # def paired(self, samples: Tensor, reference: Tensor, cond: Cond) -> dict[str, float]
    #     distances of samples from references with the same noise and condition, one by one
    # as_sets: bool
    #     whether `paired` compares sets instead: then references are of other noise for all models,
    #     for samples of the same noise would be nearer than two draws of one law
    # def thorough(self, samples: Tensor, cond: Cond) -> dict[str, float]
    #     metrics too expensive for validation and candidates, called once for each model
    # def of_student(self, student: Student, cond: Cond) -> dict[str, float]
    #     what the student itself is beside its samples, such as the shape of a scene; for its row
    #     alone, and empty for a student that is nothing else
    # def too_few(self, num_samples: int) -> list[str]
    #     metrics that are left out because samples or held-out data are too few
    # def baselines(self, cond: Cond) -> dict[str, Tensor]
    #     by name, what one gets for the conditions without any model; measured like samples, beside
    #     the models
    #
    # seconds: float
    #     how long a sample plays, if it does; rows then compare it with the time to make one
    #
    # beside: str
    #     a metric that compares a sample with what it should be, one by one, told with the headline
    #
    # Domains whose data have a range measure `samples.out_of_range` before values are cut to it, as
    # a file would keep them. A metric that is a `metrics.Estimate` has a margin in the table.


class Made(NamedTuple):
    """Samples, and the milliseconds that one of them took, here or in an `earlier` run."""

    samples: Tensor
    milliseconds: float
    earlier: bool


def timed(make: Callable[[], Tensor], device: torch.device) -> Made:
    """The samples that `make` gives; those that were kept took as long as when they were made.

    The device has nothing else to do before and nothing left to do after.
    """
    kept = cache.current()
    wait_for(device)
    start, hits = cache.clock(), kept.hits if kept else 0
    samples = make()
    wait_for(device)
    milliseconds = 1000 * (cache.clock() - start) / len(samples)
    return Made(samples, milliseconds, kept is not None and kept.hits > hits)


class Comparison:
    """Rows of models that sample from the same noise and the same conditions.

    Args:
        evaluator: the domain's metrics.
        teacher: the reference; None where there is none, so that the student stands beside data.
        cond: conditions of all samples.
        num_samples: samples of every model.
        seed: seed of the noise.
        kappa: guidance scale of the teacher.
        crew: the processes that make the samples together; None for this one alone.
    """

    def __init__(
        self,
        evaluator: Any,
        teacher: Teacher | None,
        cond: Cond,
        num_samples: int,
        seed: int,
        kappa: float,
        crew: Crew | None = None,
    ):
        self.evaluator, self.teacher, self.cond, self.crew = evaluator, teacher, cond, crew
        self.num_samples, self.seed, self.kappa = num_samples, seed, kappa
        self.paired = getattr(evaluator, "paired", None) if teacher else None
        self._warm = False  # whether the teacher has run, so that its first samples are not the slowest

    def rows(
        self, student: Student | None, few: FewSteps, advance: Callable[[], None], before: Student | None = None
    ) -> list[dict[str, Any]]:
        """The table: student, teacher at its best and at the steps of `few`, baselines, real data.

        The student `before` training comes after the teacher. `advance` is called after each model.
        """
        rows, reference = [], None
        if self.teacher:
            solver, times = self.teacher.best["solver"], self.teacher.grid(self.teacher.best["steps"])
            made = self._by_teacher(solver, times, self.seed)
            # the teacher is compared with its samples from other noise, and as sets all models are
            another = self._by_teacher(solver, times, self.seed + 1).samples if self.paired else made.samples
            reference = another if getattr(self.evaluator, "as_sets", False) else made.samples
        if student:
            self._warm_up(student.sample)
            rows.append(self._student_row("student", student, reference))
            advance()
        if self.teacher:
            row = self._teacher_row(BEST, solver, times, made, another)
            rows.append(self._thorough(row, made.samples))
            advance()
        rows += [self._few_step_row(steps, choices, reference, advance) for steps, choices in few.items()]
        if before:
            rows.append(self._student_row(UNTRAINED, before, reference, kind=BEFORE))
            advance()
        rows += self._baseline_rows(reference)
        if floor := self.evaluator.floor(self.num_samples):
            rows.append({"name": REAL, "metrics": {k: float(v) for k, v in floor.items()}})
        advance()
        return with_margins(rows)

    def protocol(self, rows: list[dict[str, Any]], device: torch.device, **gaps: Any) -> dict[str, Any]:
        """The settings that the rows were made with, and the `gaps` that are not empty."""
        teacher = self.teacher
        about = {"teacher": {"id": teacher.id, "hash": teacher.fingerprint(), **teacher.best}} if teacher else {}
        return {
            "num_samples": self.num_samples,
            "seed": self.seed,
            "kappa": self.kappa,
            **about,
            "few_step_solvers": sorted({row["solver"] for known in rows for row in known.get("tried", ())}),
            **{name: gap for name, gap in gaps.items() if gap},
            "evaluator": self.evaluator.describe(),
            "device": model_name(device),
            "torch_threads": torch.get_num_threads(),
            "distillkit": distillkit.__version__,
        }

    def _warm_up(self, sample: Callable[[int, Cond, int], Tensor]) -> None:
        sample(min(self.num_samples, 64), {name: value[:64] for name, value in self.cond.items()}, self.seed)

    def _by_teacher(self, solver: str, times: Tensor, seed: int) -> Made:
        chunk = cut(self.num_samples, self.teacher.chunk, self.crew.size) if self.crew else self.teacher.chunk
        asked = (self.num_samples, self.cond, seed, solver, times, self.kappa, chunk)
        kept = self.teacher.kept(*asked)  # one look, since other runs keep samples meanwhile
        if not (self._warm or kept):
            with cache.using(None):
                self._warm_up(lambda *some: self.teacher.generate(*some, solver, self.teacher.grid(2), self.kappa))
            self._warm = True
        with nullcontext() if kept else self._sharing("teacher", *asked[2:]):
            return timed(lambda: self.teacher.generate(*asked), self.teacher.device)

    def _sharing(self, *task: Any) -> AbstractContextManager:
        """A context in which other processes help, see `assist` for the task."""
        return self.crew.sharing(task) if self.crew else nullcontext()

    def _row(self, name: str, steps: int, passes: int, made: Made, reference: Tensor, **extra: Any):
        """The row of a model, from its samples."""
        plays = getattr(self.evaluator, "seconds", None)
        return {
            "name": name,
            "steps": steps,
            "network_passes": passes,
            "ms_per_sample": made.milliseconds,
            **({"real_time": 1000 * plays / made.milliseconds} if plays and made.milliseconds else {}),
            **({"timed": EARLIER} if made.earlier else {}),
            **extra,
            "metrics": self._metrics(made.samples, reference),
        }

    def _metrics(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        metrics = self.evaluator(samples, self.cond)
        if self.paired:
            metrics = metrics | self.paired(samples, reference, self.cond)
        return metrics

    def _student_row(self, name: str, student: Student, reference: Tensor, **extra: Any) -> dict[str, Any]:
        with self._sharing(name, self.seed):
            made = timed(lambda: student.sample(self.num_samples, self.cond, self.seed), student.device)
        if getattr(student.network, "blind", False):
            extra["network"] = BLIND
        elif self.teacher and student.differs(self.teacher):
            extra["network"] = OWN
        row = self._row(name, student.num_steps, student.num_steps, made, reference, **extra)
        return self._itself(self._thorough(row, made.samples), student)

    def _baseline_rows(self, reference: Tensor) -> list[dict[str, Any]]:
        """The rows of what the domain gets without a model, if it has such."""
        made = self.evaluator.baselines(self.cond) if hasattr(self.evaluator, "baselines") else {}
        return [
            self._thorough({"name": name, "kind": BASELINE, "metrics": self._metrics(samples, reference)}, samples)
            for name, samples in made.items()
        ]

    def _teacher_row(self, name: str, solver: str, times: Tensor, made: Made, reference: Tensor):
        facts = {"solver": solver, "last_time": float(times[-1]), "times": times.tolist()}
        facts |= {"kappa": self.kappa} if self.teacher.guidable else {}
        passes = self.teacher.network_passes(solver, len(times))
        return self._row(name, len(times), passes, made, reference, **facts)

    def _few_step_row(
        self, steps: int, choices: list[tuple[str, Tensor]], reference: Tensor, advance: Callable[[], None]
    ) -> dict[str, Any]:
        """The row of the solver and times with the best headline, and all that were tried."""
        name, candidates = f"teacher at {steps} step{'s' * (steps > 1)}", []
        for solver, times in choices:
            made = self._by_teacher(solver, times, self.seed)
            candidates.append(self._teacher_row(name, solver, times, made, reference))
            chosen = min(candidates, key=lambda candidate: candidate["metrics"][self.evaluator.headline])
            if chosen is candidates[-1]:
                kept = made.samples
            advance()
        tried = [{key: row[key] for key in ("solver", "times")} | {"metrics": _floats(row)} for row in candidates]
        return {**self._thorough(chosen, kept), "tried": tried}

    def _thorough(self, row: dict[str, Any], samples: Tensor) -> dict[str, Any]:
        """The row with the evaluator's expensive metrics."""
        more = self.evaluator.thorough(samples, self.cond) if hasattr(self.evaluator, "thorough") else {}
        return {**row, "metrics": row["metrics"] | more}

    def _itself(self, row: dict[str, Any], student: Student) -> dict[str, Any]:
        """The row with what the evaluator measures of the student itself."""
        more = self.evaluator.of_student(student, self.cond) if hasattr(self.evaluator, "of_student") else {}
        return {**row, "metrics": row["metrics"] | more}


def with_margins(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with plain numbers, and what noise may do to them.

    - `margins`: half of the 95 % interval of each metric whose scatter is known.
    - `margins_to_student`: that of its difference from the student's, in other rows of models.
    """
    student = next((row["metrics"] for row in rows if row["name"] == "student"), None)
    found = []
    for row in rows:
        measured = row["metrics"]
        margins = {"margins": {name: margin(value) for name, value in measured.items()}}
        if student is not None and measured is not student:
            margins["margins_to_student"] = {n: margin(v, student[n]) for n, v in measured.items() if n in student}
        known = {kind: {n: m for n, m in each.items() if m is not None} for kind, each in margins.items()}
        known = {kind: each for kind, each in known.items() if each and row["name"] != REAL}
        found.append({**row, "metrics": _floats(row), **known})
    return found


def _floats(row: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row["metrics"].items()}


def evaluate(
    data: DistillData,
    teacher: Teacher | None,
    student: Student | None = None,
    num_samples: int = 1000,
    seed: int = 1234,
    kappa: float = 1.0,
    before: Student | None = None,
    crew: Crew | None = None,
) -> dict[str, Any]:
    """Returns the content of evaluation.json.

    Args:
        data: the data, with the domain's metrics and the conditions of the samples.
        teacher: the reference; it also samples with the student's number of steps, where the best
            of the one-pass solvers counts. None leaves the student beside real data alone.
        student: the student; None evaluates a teacher alone, at its best and at one and two steps.
            Metrics are computed on the teacher's device, or on the student's.
        num_samples: samples of every model.
        seed: seed of the noise.
        kappa: guidance scale of the teacher.
        before: the student as it was before training, where that was not its teacher at as many
            steps.
        crew: the processes that make the samples together, the others in `assist`; None for this
            one alone.

    Raises:
        TooFew: samples or held-out data are too few for the headline.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}")
    model = teacher or student
    evaluator, cond = data.evaluator(device=model.device), model.condition(data.conditions(num_samples))
    left_out, too_few = data.left_out(), getattr(evaluator, "too_few", lambda num: [])(num_samples)
    if evaluator.headline in too_few:
        raise TooFew(f"{evaluator.headline} needs more samples, or held-out data, than there are")
    fewer = [student.num_steps] if student else [1, 2]
    own = student.times if student else ()
    few = {steps: teacher.few_step_choices(steps, own) for steps in fewer} if teacher else {}
    table = Comparison(evaluator, teacher, cond, num_samples, seed, kappa, crew)
    models = 1 + bool(teacher) + bool(student) + bool(before) + sum(map(len, few.values()))
    with progress(f"evaluating {num_samples:,} samples of each model", models) as evaluating:
        rows = table.rows(student, few, evaluating.advance, before)
    return {
        "protocol": table.protocol(rows, model.device, left_out=left_out, too_few=too_few),
        "headline": evaluator.headline,
        "better": dict(evaluator.better),
        **({"beside": evaluator.beside} if hasattr(evaluator, "beside") else {}),
        "rows": rows,
    }


def assist(
    crew: Crew,
    data: DistillData,
    models: Callable[[], dict[str, Teacher | Student | None]],
    num_samples: int = 1000,
) -> None:
    """Makes this process's part of the samples of an `evaluate` in the first process of the run.

    Args:
        crew: the processes.
        data, num_samples: as in `evaluate`.
        models: gives the models by the names of their rows, the teacher as `teacher`; asked once.
    """
    known: dict[str, Any] = {}

    def work(task: tuple) -> None:
        name, seed, *how = task
        if not known:
            known.update(models())
            model = known.get("teacher") or known["student"]
            known["cond"] = model.condition(data.conditions(num_samples))
        asked = (num_samples, known["cond"], seed)
        with cache.using(None):
            known[name].generate(*asked, *how) if name == "teacher" else known[name].sample(*asked)

    crew.serve(work)
