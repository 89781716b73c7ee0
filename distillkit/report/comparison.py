"""Runs side by side: which differ in their seeds alone, how far these scatter, which is best.

A group is clearly better than another if both have at least three seeds and their means are farther
apart than twice the pooled standard error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distillkit.errors import UsageError, did_you_mean, one_line
from distillkit.evaluation.rows import BASELINE
from distillkit.report.evaluated import Run, finite, listed, refuse_unlike
from distillkit.report.numbers import cost_of, kind_of, number, pretty, row_of
from distillkit.report.words import differing

ENOUGH = 3  # seeds of each group
APART = 2  # pooled standard errors between the means of two groups


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        words: settings in which they differ from other groups.
        runs: one of each seed.
    """

    words: dict[str, str]
    runs: list[Run]

    @property
    def label(self) -> str:
        """Up to three words, else the runs."""
        words = [f"{key}={one_line(value, 40)}" for key, value in self.words.items()]
        return " ".join(words) if 0 < len(words) <= 3 else listed([run.name for run in self.runs], 3)

    def metric(self, name: str) -> np.ndarray:
        """The metric of each run that has it, NaN and infinite ones too."""
        found = (run.row["metrics"].get(name) for run in self.runs)
        return np.array([value for value in found if isinstance(value, int | float)], dtype=float)

    def mean(self, key: str) -> float | None:
        """The mean of a number of the rows, such as `ms_per_sample`; None if no run has it."""
        return _mean([run.row.get(key) for run in self.runs])

    @property
    def seconds(self) -> float | None:
        """The mean of the wall times of training."""
        return _mean([run.seconds for run in self.runs])


def _mean(values: Sequence[Any]) -> float | None:
    found = [value for value in map(finite, values) if value is not None]
    return float(np.mean(found)) if found else None


def spread(values: np.ndarray) -> tuple[float, float | None]:
    """Mean and standard deviation of values [n], with n - 1 in its denominator; None for n = 1."""
    with np.errstate(invalid="ignore"):  # infinite ones have no deviation
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def standard_error(a: np.ndarray, b: np.ndarray) -> float:
    """The pooled standard error of the difference of the means of a [n] and b [m].

    It is `s sqrt(1/n + 1/m)` with `s^2 = (sum (a - mean a)^2 + sum (b - mean b)^2) / (n + m - 2)`
    (Student's two-sample t test).
    """
    squares = sum(((each - each.mean()) ** 2).sum() for each in (a, b))
    return float(np.sqrt(squares / (len(a) + len(b) - 2) * (1 / len(a) + 1 / len(b))))


def is_clear(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether a [n] is clearly below b [m]."""
    return min(len(a), len(b)) >= ENOUGH and bool(b.mean() - a.mean() > APART * standard_error(a, b))


class SideBySide:
    """Runs that were measured alike, in groups, the best first.

    Args:
        runs: at least one.
        metric: what ranks them, None for the headline.

    Attributes:
        groups: runs of the same words and other seeds.
        metric: the name of what ranks them.
        better: `lower`, `higher` or `target` of each metric that has a direction.
        names: all metrics, `metric` first.
        notes: sentences on what the table cannot show.

    Raises:
        UsageError: the runs were not measured alike, or have no such metric.
    """

    def __init__(self, runs: Sequence[Run], metric: str | None = None):
        refuse_unlike(runs)
        self.better: dict[str, str] = runs[0].evaluation["better"]
        self.metric = metric or runs[0].evaluation["headline"]
        if self.metric not in self.better:
            there = ", ".join(self.better)
            raise UsageError(f"no metric {self.metric!r}{did_you_mean(self.metric, self.better)}; there are: {there}")
        self.runs, repeats = _without_repeats(runs)
        rows = [row for run in self.runs for row in run.evaluation["rows"]]
        names = dict.fromkeys(name for row in rows for name in row["metrics"])
        self.names = sorted(names, key=lambda name: name != self.metric)
        self.real = next((row for row in rows if kind_of(row) == "real"), None)
        self.baselines = list({row["name"]: row for row in reversed(rows) if kind_of(row) == BASELINE}.values())[::-1]
        self.groups = sorted(_grouped(self.runs), key=self._rank)
        self.keys = list(dict.fromkeys(key for group in self.groups for key in group.words))
        self.notes = [*self._notes(), *repeats]

    @property
    def teachers(self) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
        """The rows of each teacher (id, hash, guidance scale), one of each cost, cheapest first.

        Of several at one cost, by other solvers and times, the best is kept.
        """
        found: dict[tuple[str, str, str], dict[float, dict[str, Any]]] = {}
        for run in (run for run in self.runs if run.teacher):
            known = found.setdefault(run.teacher, {})
            for row in (row for row in run.evaluation["rows"] if kind_of(row) == "teacher"):
                known[cost_of(row)] = min(known.get(cost_of(row), row), row, key=self._loss)
        return {teacher: [rows[cost] for cost in sorted(rows)] for teacher, rows in found.items()}

    def called(self, name: str, teacher: tuple[str, str, str]) -> str:
        """The name with that of the teacher, if there are several."""
        return f"{name} ({teacher[0]}, kappa {teacher[2]})" if len(self.teachers) > 1 else name

    @property
    def references(self) -> list[tuple[str, dict[str, Any]]]:
        """What the groups stand beside: each teacher at its best, baselines, real data."""
        best = [(teacher, row_of(rows, "best")) for teacher, rows in self.teachers.items()]
        others = [*self.baselines, *filter(None, [self.real])]
        return [(self.called(row["name"], teacher), row) for teacher, row in best if row] + [
            (row["name"], row) for row in others
        ]

    @property
    def one_machine(self) -> bool:
        """Whether all times were measured on the same kind of machine."""
        return len({self._machine(run) for run in self.runs}) == 1

    @staticmethod
    def _machine(run: Run) -> tuple[str, str]:
        return tuple(one_line(str(run.protocol.get(key)), 80) for key in ("device", "torch_threads"))

    def turned(self, values: np.ndarray, metric: str) -> np.ndarray:
        """A metric turned so that lower is better; with a target the distance from real data."""
        better = self.better.get(metric)
        if better == "target":
            target = finite(self.real["metrics"].get(metric)) if self.real else None
            return np.abs(values - (np.nan if target is None else target))
        return -values if better == "higher" else values

    def winner(self, metric: str) -> Group | None:
        """The group that is clearly better than every other one, if there is such."""
        if metric not in self.better:
            return None
        rated = self._rated(metric)
        if len(rated) < 2:
            return None
        (best, first), *others = rated
        return best if all(is_clear(first, losses) for _, losses in others) else None

    def _rated(self, metric: str) -> list[tuple[Group, np.ndarray]]:
        """The groups with their losses, those of NaN or infinite ones left out, the best first."""
        rated = [(group, self.turned(group.metric(metric), metric)) for group in self.groups]
        rated = [(group, losses) for group, losses in rated if len(losses) and np.isfinite(losses).all()]
        return sorted(rated, key=lambda pair: pair[1].mean())

    def conclusion(self) -> str:
        """What can be said of the best group; empty if there are no two to compare."""
        rated, name = self._rated(self.metric), pretty(self.metric)
        if len(rated) < 2:
            return ""
        (best, a), (second, b) = rated[:2]
        first, other = (f"number {self.number_of(each)}, {self.text(each, self.metric)}," for each in (best, second))
        gap = number(float(b.mean() - a.mean()))
        if few := [str(self.number_of(group)) for group, losses in rated if len(losses) < ENOUGH]:
            of = "" if len(few) == len(rated) else f", and there are fewer of number {listed(few)}"
            return (
                f"No clear winner in {name}: that takes {ENOUGH} seeds of each (seed_everything=0,1,2 -m){of}. "
                f"In front is {first} {gap} ahead of {other.rstrip(',')}."
            )
        beside = f"{first} is {gap} ahead of {other}"
        scatter = f"{APART} standard errors are {number(APART * standard_error(a, b))}"
        if self.winner(self.metric) is best:
            return f"A clear winner in {name}: {beside} and {scatter}."
        if is_clear(a, b):
            return f"No clear winner in {name}: {beside} but another one scatters too far to be told from it."
        return f"No clear winner in {name}: {beside} but {scatter}."

    def number_of(self, group: Group) -> int:
        """Its place in the table, from 1."""
        return self.groups.index(group) + 1

    def text(self, group: Group, metric: str) -> str:
        """The metric with its standard deviation over the seeds: 0.0412 ± 0.0031."""
        values = group.metric(metric)
        if not len(values):
            return number(None)
        mean, std = spread(values)
        return number(mean) + (f" ± {number(std)}" if std is not None else "")

    def _loss(self, row: dict[str, Any]) -> float:
        value = finite(row["metrics"].get(self.metric))
        return np.inf if value is None else float(self.turned(np.array(value), self.metric))

    def _rank(self, group: Group) -> float:
        losses = self.turned(group.metric(self.metric), self.metric)
        return float(losses.mean()) if len(losses) and np.isfinite(losses).all() else np.inf

    def _notes(self) -> list[str]:
        notes = []
        if len({run.teacher[:2] for run in self.runs if run.teacher}) > 1:
            notes.append(
                "The runs have several teachers: what is measured against a teacher's samples is against each run's own."
            )
        if not self.one_machine:
            machines = dict.fromkeys(
                f"{device} with {threads} threads" for device, threads in map(self._machine, self.runs)
            )
            notes.append(f"Times are of different machines and not to be compared: {listed([*machines])}.")
        if lost := [str(self.number_of(group)) for group in self.groups if self._rank(group) == np.inf]:
            notes.append(f"Not ranked: number {listed(lost)}, without a finite {pretty(self.metric)}.")
        return notes


def _without_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """One run of each seed and setting, and a note for each that is left out."""
    kept: dict[Any, Run] = {}
    notes = []
    for run, words in zip(runs, _words(runs), strict=True):
        key = run.name if run.seed is None else (run.seed, tuple(words.items()))
        if key in kept:
            notes.append(f"{run.name} repeats {kept[key].name}, seed and all, so it is left out.")
        kept.setdefault(key, run)
    return [*kept.values()], notes


def _grouped(runs: Sequence[Run]) -> list[Group]:
    groups: dict[Any, Group] = {}
    for run, words in zip(runs, _words(runs), strict=True):
        key = tuple(words.items()) if run.config else run.name
        groups.setdefault(key, Group(words, [])).runs.append(run)
    return [Group(group.words, sorted(group.runs, key=lambda run: run.seed or 0)) for group in groups.values()]


def _words(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The words of each run; none of one without a config.yaml, which tells nothing of it."""
    words = iter(differing([run.config for run in runs if run.config]))
    return [next(words) if run.config else {} for run in runs]
