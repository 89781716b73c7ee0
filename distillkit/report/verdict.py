"""What the numbers of evaluation.json mean: the sentences over the table."""

from typing import Any

from distillkit.evaluation.rows import BASELINE, BLIND, EARLIER
from distillkit.report.numbers import (
    cost_of,
    kind_of,
    listed,
    metric_of,
    noise,
    number,
    passes,
    pretty,
    row_of,
    speedup,
    times,
)
from distillkit.report.warned import warned_of

FAR = 3.0  # times the floor of real data: a model beyond is far from them, unless training or steps paid
CUT = 0.05  # share of a model's values outside the data's range above which it is reported
WRECK = 0.1  # of the range's width: a model whose values lie so far outside on average is far from data
NOTHING = 1e-6  # of a model's value: a floor that is only the rounding of 0
NAMED = 4  # metrics that a sentence names at most


def verdict(evaluation: dict[str, Any], made: dict[str, Any] | None = None, warned: tuple[dict, ...] = ()) -> str:
    """One sentence on the cost and quality of the student beside its teacher and real data.

    The teacher, if there was one, is shown at its best and at the student's cost, the student also
    as it was before training where that was something else. Further sentences name failures.

    Args:
        evaluation: evaluation.json.
        made: student.yaml or teacher.yaml, with the number of skipped steps.
        warned: see `read_warnings`.
    """
    compared = Comparison(evaluation)
    said = (compared.sentence(), *compared.failures()) if compared.sentence() else ()
    return " ".join(filter(None, (*said, _skips(made or {}), warned_of(warned))))


class Comparison:
    """The rows of evaluation.json that its sentences are about, and what follows from them."""

    def __init__(self, evaluation: dict[str, Any]):
        self.evaluation, self.rows = evaluation, evaluation.get("rows", [])
        self.headline, self.better = evaluation.get("headline"), evaluation.get("better", {})
        self.student, self.best, self.same, self.before, self.real = (
            row_of(self.rows, which) for which in ("student", "best", "same", "before", "real")
        )
        self.network, self.few = (self.student or {}).get("network"), self.same
        if self.network == BLIND:
            self.same = None  # a sample of its is no step of the teacher's, and costs something else
        self.far = {id(row): self._far(row) for row in (self.student, self.best) if row}

    def value(self, row: dict[str, Any] | None) -> float | None:
        return metric_of(row, self.headline)

    @property
    def rivals(self) -> list[tuple[dict[str, Any], str, str, str]]:
        """What the student must beat: row, name, and what follows where it is worse or equal.

        It began as its untrained self, which for a copy is its teacher at as many steps. A network
        of its own costs something else than its teacher's.
        """
        teacher, failed = "its teacher at the same cost", ": the training has failed"
        found = []
        if self.before:
            found.append((self.before, "before training", failed, ": nothing is learned yet"))
        if self.same and not self.network:
            began = ("", "") if self.before else (failed, ": nothing is distilled yet")
            found.append((self.same, teacher, *began))
        known = [rival for rival in found if self.value(rival[0]) is not None]
        return known if self.value(self.student) is not None else []

    @property
    def failed(self) -> bool:
        """Whether the student is no better than what it began as, up to noise."""
        return any(not self.ahead(row) for row, *_ in self.rivals)

    def ahead(self, row: dict[str, Any]) -> bool:
        """Whether the student's headline is better than a row's, beyond noise."""
        return self.value(row) - self.value(self.student) > noise(row, self.headline)

    def sentence(self) -> str:
        name = pretty(self.headline or "")
        s, t, r = (self.value(row) for row in (self.student, self.best, self.real))
        floor = f"; real data scores {number(r)}" if r is not None else ""
        if (s if self.student else t) is None:
            return ""
        if not self.best:
            return f"{name} {self.measured()} with {passes(self.student)}, without a teacher{floor}."
        if t is None:
            return ""
        if not self.student:
            u = self.value(self.same)
            cheap = f" and {number(u)} with {passes(self.same)}" if u is not None else ""
            return f"{name} {number(t)} with {passes(self.best)}{guided(self.best)}{cheap}{floor}."
        beside = [f"the teacher's {number(t)}{self.remark()}"]
        beside += [f"{number(self.value(row))} for the {row['name']}" for row in self.others()]
        beside += [f"{number(r)} for real data"] if r is not None else []
        cost = f"{passes(self.student)} instead of {number(cost_of(self.best))}"
        cost += " of the teacher's" if self.network else ""
        return f"{cost}: {name} {self.measured()} against {listed(beside)}{self.speed()}."

    def measured(self) -> str:
        """The student's headline, with what noise may do to it."""
        apart = self.student.get("margins", {}).get(self.headline)
        return number(self.value(self.student)) + (f" ± {number(apart)}" if apart else "")

    def others(self) -> list[dict[str, Any]]:
        """The teacher at the student's cost and the student before training, if measured."""
        return [row for row in (self.same, self.before) if self.value(row) is not None]

    def remark(self) -> str:
        """How the teacher was guided, and how the student's headline compares, in brackets."""
        s, t = self.value(self.student), self.value(self.best)
        said = [guided(self.best).strip(" ()")]
        if not self.failed and not any(self.far.values()):
            apart = noise(self.best, self.headline)
            if abs(s - t) <= apart and apart:
                said.append(f"no different within noise, ± {number(apart)}")
            elif t:
                said.append(times(s / t))
        return f" ({'; '.join(filter(None, said))})" if any(said) else ""

    def speed(self) -> str:
        """How much faster the student is, unless that is no merit."""
        if self.failed or (any(self.far.values()) and not self.rivals):
            return ""
        said, ratio = "", speedup(self.student, self.best)
        if ratio:
            said = f"; {times(ratio)} faster per sample" if ratio >= 1 else f"; {times(1 / ratio)} slower per sample"
        return said + (f"; {times(plays)} real time" if (plays := self.student.get("real_time")) else "")

    def failures(self) -> list[str]:
        """Sentences that keep a comparison from being read as a success, or as measured at once."""
        protocol = self.evaluation.get("protocol", {})
        said = [self._beside(), *self._beaten(), *self._unworthy(), *self._far_away(), self._outside()]
        if timed := [row["name"] for row in self.rows if row.get("timed") == EARLIER]:
            said.append(
                f"Timed in an earlier run on the same kind of machine, which kept the samples: {listed(timed)}."
            )
        for name, classes in protocol.get("left_out", {}).items():
            numbers = ", ".join(map(str, classes[:8])) + (" ..." if len(classes) > 8 else "")
            said.append(f"Without held-out data, so not measured: {name} {numbers}.")
        if few := protocol.get("too_few"):
            names = listed([pretty(name) for name in few])
            said.append(f"Too few samples or held-out data for {names}: not measured.")
        return [each for each in said if each]

    def _beside(self) -> str:
        """The metric that compares a sample with what it should be, one by one."""
        name = self.evaluation.get("beside")
        s, t, b = (metric_of(row, name) for row in (self.student, self.best, self.before))
        if s is None or t is None:
            return ""
        began = f" and {number(b)} before training" if b is not None else ""
        return f"Sample by sample: {pretty(name)} {number(s)} against the teacher's {number(t)}{began}."

    def _beaten(self) -> list[str]:
        """Rivals that the student does not beat."""
        said = []
        for row, name, worse, equal in self.rivals:
            s, u = self.value(self.student), self.value(row)
            if s > 1.1 * u and s - u > noise(row, self.headline):
                by = f"{times(s / u)} worse" if u > 0 else "worse"
                said.append(f"The student is {by} than {name}{worse}.")
            elif not self.ahead(row):
                within = ", within noise," if s < u else ""
                said.append(f"The student is no better{within} than {name}{equal}.")
        return said

    def _unworthy(self) -> list[str]:
        """Baselines that are as good."""
        ours, model = self.value(self.student or self.best), "student" if self.student else "teacher"
        return [
            f"The {model} is no better than {row['name']} ({number(theirs)}), which needs no model."
            for row in self.rows
            if kind_of(row) == BASELINE and ours is not None and (theirs := self.value(row)) is not None
            if theirs - ours <= (noise(row, self.headline) if self.student else 0)
        ]

    def _far_away(self) -> list[str]:
        """Who is far from real data, and by which metrics."""
        ours, theirs = (self.far.get(id(row), []) for row in (self.student, self.best))
        both = [name for name in ours if name in theirs]
        said = []
        if both:
            said.append(
                f"Student and teacher are both far from real data: {self._named(both, self.student, self.best)}."
            )
        if only := [name for name in ours if name not in both]:
            said.append(f"The student is far from real data: {self._named(only, self.student)}.")
        if only := [name for name in theirs if name not in both]:
            itself = "The teacher itself is" if not both else "The teacher is also"
            said.append(f"{itself} far from real data: {self._named(only, self.best)}.")
        return said

    def _named(self, names: list[str], *rows: dict[str, Any]) -> str:
        """Metrics of rows against those of real data."""
        of = [f"{pretty(n)} {listed([number(metric_of(row, n)) for row in rows])}" for n in names[:NAMED]]
        told = [f"{text} against {number(metric_of(self.real, n))}" for text, n in zip(of, names, strict=False)]
        return ", ".join(told) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

    def _outside(self) -> str:
        """How many values were cut before they were measured, and how far they lay."""
        row = self.student or self.best
        share, by = metric_of(row, "outside"), metric_of(row, "outside_by")
        if share is None or share < CUT:
            return ""
        of = "student's" if self.student else "teacher's"
        far = f", on average by {number(by)} of its width" if by is not None else ""
        return f"{share:.1%} of the {of} values lie outside the range of the data{far}; they were cut before measuring."

    def _far(self, row: dict[str, Any]) -> list[str]:
        """The metrics by which a model is far from real data, and so no measure and no success.

        - The headline, above `FAR` times the floor, if neither the teacher's many steps nor the
          training went half of the way to it.
        - One that should be high, below half of real data's.
        - `outside_by`, if all values together lie `WRECK` widths of the range outside of it.
        """
        began = (self.before or self.same) if row is self.student else self.few
        found = []
        for name in dict.fromkeys((self.headline, *self.better)):
            ours, start, floor = (metric_of(each, name) for each in (row, began, self.real))
            if ours is None or floor is None or floor <= NOTHING * abs(ours):
                continue
            away = name == self.headline and ours > FAR * floor
            away = away and (start is None or ours - floor > (start - floor) / 2)
            if away or (self.better.get(name) == "higher" and ours < floor / 2):
                found.append(name)
        share, by = (metric_of(row, name) or 0.0 for name in ("outside", "outside_by"))
        return found + (
            ["outside_by"] if share * by >= WRECK and metric_of(self.real, "outside_by") is not None else []
        )


def guided(row: dict[str, Any] | None) -> str:
    """How a teacher was guided, in brackets; empty for one that knows no guidance."""
    kappa = (row or {}).get("kappa")
    return "" if kappa is None else " (unguided)" if kappa == 1 else f" (guided, kappa {kappa:g})"


def _skips(made: dict[str, Any]) -> str:
    """A sentence on the skipped steps, from the yaml of a student or teacher."""
    told, parts = made.get("skipped"), []
    for role, counts in told.items() if isinstance(told, dict) else ():
        skipped, steps = (counts.get(key) if isinstance(counts, dict) else None for key in ("skipped", "steps"))
        if isinstance(skipped, int) and isinstance(steps, int) and skipped:
            parts.append(f"{number(skipped)} of {number(steps)} steps of the {str(role).replace('_', ' ')}")
    return f"Skipped were {listed(parts)}, whose gradients were NaN or infinite." if parts else ""
