"""The numbers of evaluation.json in words: a table and a sentence for report, card and terminal."""

import math
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from distillkit.evaluation.rows import BASELINE, BEST, EARLIER, REAL

ARROWS = {"lower": "↓", "higher": "↑", "target": "→ real"}
ACRONYMS = ("dists", "fad", "fid", "fvd", "gmsd", "hf", "iou", "jsd", "kid", "lpips", "mmd", "nll", "psnr", "ssim")
FAR = 3.0  # times the floor of real data: a teacher beyond is far, if its many steps do not pay
CUT = 0.05  # share of a student's values outside the data's range above which it is reported


def quality_table(evaluation: dict[str, Any]) -> dict[str, list]:
    """The table's columns with `label`, its rows with `kind` and `cells` (`text`, `best`).

    `best` marks the best of student and teachers in a column. Baselines come after them, real data,
    the floor, last; both take no part.
    """
    rows, better = evaluation.get("rows", []), evaluation.get("better", {})
    headline = evaluation.get("headline")
    names = dict.fromkeys(key for row in rows for key in row.get("metrics", {}))
    names = sorted(names, key=lambda name: name != headline)  # stable: the headline first, the others as they came
    best_teacher, real = row_of(rows, "best"), row_of(rows, "real")
    columns = [{"label": "", "metric": None}]
    numbers = [[row["name"]] for row in rows]
    for label, key in (("steps", "steps"), ("passes", "network_passes"), ("ms per sample", "ms_per_sample")):
        if any(row.get(key) is not None for row in rows):
            columns.append({"label": label, "metric": None})
            for line, row in zip(numbers, rows, strict=True):
                line.append(number(row.get(key)))
    if best_teacher and any(_speedup(row, best_teacher) for row in rows if row is not best_teacher):
        columns.append({"label": "faster", "metric": None})
        for line, row in zip(numbers, rows, strict=True):
            line.append(times(_speedup(row, best_teacher)))
    if any(row.get("real_time") for row in rows):
        columns.append({"label": "real time", "metric": None})
        for line, row in zip(numbers, rows, strict=True):
            line.append(times(row.get("real_time")))
    for name in names:
        arrow = ARROWS.get(better.get(name), "")
        columns.append({"label": f"{pretty(name)} {arrow}".strip(), "metric": name})
        for line, row in zip(numbers, rows, strict=True):
            line.append(number(row.get("metrics", {}).get(name)))
    winners = {name: _winner(rows, name, better.get(name), real) for name in names}
    table = []
    for line, row in zip(numbers, rows, strict=True):
        best = [winners.get(column["metric"]) is row for column in columns]
        cells = [{"text": text, "best": won} for text, won in zip(line, best, strict=True)]
        table.append({"kind": kind_of(row), "cells": cells})
    return {"columns": columns, "rows": sorted(table, key=lambda row: row["kind"] == "real")}


def verdict(evaluation: dict[str, Any], made: dict[str, Any] | None = None) -> str:
    """One sentence on the cost and quality of the student beside its teacher and real data.

    The teacher, if there was one, is shown at its best and at the student's cost. Further sentences
    name failures.

    Args:
        evaluation: evaluation.json.
        made: student.yaml or teacher.yaml, with the number of skipped steps.
    """
    compared = _comparison(evaluation)
    return " ".join(filter(None, (compared, *(_failures(evaluation) if compared else ()), _skips(made or {}))))


def _comparison(evaluation: dict[str, Any]) -> str:
    name = pretty(evaluation.get("headline") or "")
    student, best, same, real = _four(evaluation)
    s, t, u, r = (_metric(row, evaluation.get("headline")) for row in (student, best, same, real))
    if (s if student else t) is None:
        return ""
    floor = f"; real data scores {number(r)}" if r is not None else ""
    if student and not best:
        return f"{name} {number(s)} with {passes(student)}, without a teacher{floor}."
    if t is None:
        return ""
    if not student:
        cheap = f" and {number(u)} with {passes(same)}" if u is not None else ""
        return f"{name} {number(t)} with {passes(best)}{cheap}{floor}."
    failed = u is not None and not s < u
    praise = t and not failed and not _far(best, evaluation)
    beside = [f"the teacher's {number(t)}" + (f" ({times(s / t)})" if praise else "")]
    beside += [f"{number(u)} for the {same['name']}"] if u is not None else []
    beside += [f"{number(r)} for real data"] if r is not None else []
    text = f"{passes(student)} instead of {passes(best).split()[0]}: {name} {number(s)} against {_listed(beside)}"
    speed = None if failed else _speedup(student, best)
    if speed:
        text += f"; {times(speed)} faster per sample" if speed >= 1 else f"; {times(1 / speed)} slower per sample"
    if not failed and (plays := student.get("real_time")):
        text += f"; {times(plays)} real time"
    return f"{text}."


def _failures(evaluation: dict[str, Any]) -> list[str]:
    """Sentences that keep a comparison from being read as a success, or as measured at once."""
    student, best, same, real = _four(evaluation)
    s, u = (_metric(row, evaluation.get("headline")) for row in (student, same))
    said = []
    if s is not None and u is not None and s > 1.1 * u:
        by = f"{times(s / u)} worse" if u > 0 else "worse"
        said.append(f"The student is {by} than its teacher at the same cost: the training has failed.")
    elif s is not None and u is not None and s >= u:
        said.append("The student is no better than its teacher at the same cost: nothing is distilled yet.")
    for row in evaluation.get("rows", []):
        ours, theirs = (_metric(each, evaluation.get("headline")) for each in (student or best, row))
        if kind_of(row) == BASELINE and ours is not None and theirs is not None and ours >= theirs:
            model = "student" if student else "teacher"
            said.append(f"The {model} is no better than {row['name']} ({number(theirs)}), which needs no model.")
    far = [f"{pretty(m)} {number(_metric(best, m))} against {number(_metric(real, m))}" for m in _far(best, evaluation)]
    if far:
        said.append(f"The teacher itself is far from real data: {', '.join(far)}.")
    if timed := [row["name"] for row in evaluation.get("rows", []) if row.get("timed") == EARLIER]:
        said.append(f"Timed in an earlier run on the same kind of machine, which kept the samples: {_listed(timed)}.")
    for name, classes in evaluation.get("protocol", {}).get("left_out", {}).items():
        numbers = ", ".join(map(str, classes[:8])) + (" ..." if len(classes) > 8 else "")
        said.append(f"Without held-out data, so not measured: {name} {numbers}.")
    if few := evaluation.get("protocol", {}).get("too_few"):
        said.append(f"Too few samples or held-out data for {_listed([pretty(name) for name in few])}: not measured.")
    cut = _metric(student or best, "outside")
    if cut is not None and cut >= CUT:
        of = "student's" if student else "teacher's"
        said.append(f"{cut:.1%} of the {of} values lie outside the range of the data; they were cut before measuring.")
    return said


def _far(row: dict[str, Any] | None, evaluation: dict[str, Any]) -> list[str]:
    """The metrics by which a teacher is far from real data, and so no measure of its student.

    The headline is one if it is above `FAR` times the floor and the many steps do not go half of
    the way from the few. A metric that should be high is one if it is below half of real data's.
    """
    headline, better = evaluation.get("headline"), evaluation.get("better", {})
    _, _, same, real = _four(evaluation)
    found = []
    for name in dict.fromkeys((headline, *better)):
        ours, few, floor = (_metric(each, name) for each in (row, same, real))
        if ours is None or floor is None or floor <= 0:
            continue
        away = name == headline and ours > FAR * floor and (few is None or ours - floor > (few - floor) / 2)
        if away or (better.get(name) == "higher" and ours < floor / 2):
            found.append(name)
    return found


def _skips(made: dict[str, Any]) -> str:
    """A sentence on the skipped steps, from the yaml of a student or teacher."""
    told, parts = made.get("skipped"), []
    for role, counts in told.items() if isinstance(told, dict) else ():
        skipped, steps = (counts.get(key) if isinstance(counts, dict) else None for key in ("skipped", "steps"))
        if isinstance(skipped, int) and isinstance(steps, int) and skipped:
            parts.append(f"{number(skipped)} of {number(steps)} steps of the {str(role).replace('_', ' ')}")
    return f"Skipped were {_listed(parts)}, whose gradients were NaN or infinite." if parts else ""


def _listed(parts: list[str]) -> str:
    """The parts as one text: a, b and c."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def _four(evaluation: dict[str, Any]) -> tuple[dict[str, Any] | None, ...]:
    return tuple(row_of(evaluation.get("rows", []), which) for which in ("student", "best", "same", "real"))


def shortfalls(evaluation: dict[str, Any]) -> list[str]:
    """The metrics in which the student is more than a tenth worse than its teacher at its best."""
    student, best, _, real = _four(evaluation)
    found = []
    for name, better in evaluation.get("better", {}).items():
        ours, theirs = (_loss(row, name, better, real) for row in (student, best))
        if ours is not None and theirs is not None and ours - theirs > 0.1 * abs(theirs):
            target = f" (real data {number(_metric(real, name))})" if better == "target" else ""
            text = f"{number(_metric(student, name))} against {number(_metric(best, name))}"
            found.append(f"{pretty(name)} {text}{target}")
    return found


def row_of(rows: list[dict[str, Any]], which: str) -> dict[str, Any] | None:
    """The row of a model, by one of four words.

    - student, real: by kind.
    - best: the teacher at its best, or with the most passes.
    - same: the teacher with the fewest passes, the student's.
    """
    if which in ("student", "real"):
        return next((row for row in rows if kind_of(row) == which), None)
    teachers = sorted((row for row in rows if kind_of(row) == "teacher"), key=cost_of)
    if not teachers or (which == "same" and len(teachers) == 1):
        return None
    return next((row for row in teachers if row["name"] == BEST), teachers[-1]) if which == "best" else teachers[0]


def kind_of(row: dict[str, Any]) -> str:
    return {"student": "student", REAL: "real"}.get(row["name"], row.get("kind", "teacher"))


def cost_of(row: dict[str, Any]) -> float:
    return row.get("network_passes") or row.get("steps") or 0


def passes(row: dict[str, Any]) -> str:
    count = cost_of(row)
    return f"{number(count)} network pass{'es' if count != 1 else ''}"


def _metric(row: dict[str, Any] | None, name: str | None) -> float | None:
    """The metric of a row as a finite number, or None."""
    value = (row or {}).get("metrics", {}).get(name)
    return float(value) if value is not None and math.isfinite(value) else None


def _loss(row: dict[str, Any] | None, name: str, better: str | None, real: dict[str, Any] | None) -> float | None:
    """The metric turned so that lower is better; None if it is missing or has no direction."""
    value, target = _metric(row, name), _metric(real, name)
    if value is None or better not in ARROWS or (better == "target" and target is None):
        return None
    return {"lower": value, "higher": -value, "target": abs(value - (target or 0.0))}[better]


def _winner(rows: list, name: str, better: str | None, real: dict | None) -> dict[str, Any] | None:
    models = [row for row in rows if kind_of(row) not in ("real", BASELINE)]
    rated = [(loss, row) for row in models if (loss := _loss(row, name, better, real)) is not None]
    return min(rated, key=lambda pair: pair[0])[1] if len(rated) > 1 else None


def _speedup(row: dict[str, Any], reference: dict[str, Any]) -> float | None:
    mine, theirs = row.get("ms_per_sample"), reference.get("ms_per_sample")
    return theirs / mine if mine and theirs else None


def strip(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """The headline as dots on an axis, `at` in percent; logarithmic if the values are spread."""
    headline = evaluation.get("headline")
    rows = [row for row in evaluation.get("rows", []) if _metric(row, headline) is not None]
    values = [_metric(row, headline) for row in rows]
    if len(rows) < 2:
        return None
    log = min(values) > 0 and max(values) > 5 * min(values)
    places = np.log(values) if log else np.array(values)
    low, high = places.min() if log else min(0.0, places.min()), places.max()
    dots = [
        {
            "name": row["name"],
            "kind": kind_of(row),
            "text": number(value),
            "at": 100 * (place - low) / ((high - low) or 1),
        }
        for row, value, place in zip(rows, values, places, strict=True)
    ]
    return {"label": pretty(headline), "log": log, "dots": sorted(dots, key=lambda dot: dot["at"])}


def evaluation_table(evaluation: dict[str, Any], made: dict[str, Any] | None = None) -> Table:
    """The table for the terminal, headed by the verdict; a column per model fits 80 columns."""
    table = quality_table(evaluation)
    title = Text(verdict(evaluation, made)) or None
    shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="")
    shown.add_column("")
    for row in table["rows"]:
        style = {"student": "bold", "real": "dim italic"}.get(row["kind"], "")
        shown.add_column(Text(row["cells"][0]["text"]), justify="right", style=style)
    for i, column in enumerate(table["columns"][1:], start=1):
        cells = [row["cells"][i] for row in table["rows"]]
        shown.add_row(Text(column["label"]), *(Text(cell["text"], "green" if cell["best"] else "") for cell in cells))
    return shown


def number(value: Any) -> str:
    """A number with three digits: 0.410, 12.3, 1,234, 3.10e-05."""
    if value is None:
        return "–"
    if isinstance(value, int) or (math.isfinite(value) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×" if ratio < 3 else f"{ratio:,.{0 if ratio >= 10 else 1}f}×"


def pretty(metric: str) -> str:
    """A metric's display name: `frechet` -> Frechet, `mmd` -> MMD, `psnr_y` -> PSNR y."""
    words = " ".join(word.upper() if word in ACRONYMS else word for word in metric.split("_"))
    return words[:1].upper() + words[1:]
