"""The numbers of evaluation.json as a table, for report, card and terminal."""

from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from distillkit.evaluation.rows import BASELINE, BEFORE
from distillkit.report.numbers import kind_of, loss_of, metric_of, number, pretty, row_of, speedup, times
from distillkit.report.shortfalls import behind
from distillkit.report.verdict import verdict

ARROWS = {"lower": "↓", "higher": "↑", "target": "→ real"}


def quality_table(evaluation: dict[str, Any]) -> dict[str, list]:
    """The table's columns with `label`, its rows with `kind` and `cells` (`text`, `best`).

    `best` marks the best of student and teachers in a column. The untrained student and baselines
    come after them, real data, the floor, last; these take no part.
    """
    rows, better = evaluation.get("rows", []), evaluation.get("better", {})
    headline = evaluation.get("headline")
    names = dict.fromkeys(key for row in rows for key in row.get("metrics", {}))
    names = sorted(names, key=lambda name: name != headline)  # stable: the headline first, the others as they came
    best_teacher, real = row_of(rows, "best"), row_of(rows, "real")
    columns = [{"label": "", "metric": None}]
    numbers = [[row["name"]] for row in rows]
    for label, key in (
        ("steps", "steps"),
        ("passes", "network_passes"),
        ("kappa", "kappa"),
        ("ms per sample", "ms_per_sample"),
    ):
        if any(row.get(key) is not None for row in rows):
            columns.append({"label": label, "metric": None})
            for line, row in zip(numbers, rows, strict=True):
                line.append(number(row.get(key)))
    if best_teacher and any(speedup(row, best_teacher) for row in rows if row is not best_teacher):
        columns.append({"label": "faster", "metric": None})
        for line, row in zip(numbers, rows, strict=True):
            line.append(times(speedup(row, best_teacher)))
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


def _winner(rows: list, name: str, better: str | None, real: dict | None) -> dict[str, Any] | None:
    models = [row for row in rows if kind_of(row) not in ("real", BASELINE, BEFORE)]
    rated = [(loss, row) for row in models if (loss := loss_of(row, name, better, real)) is not None]
    return min(rated, key=lambda pair: pair[0])[1] if len(rated) > 1 else None


def strip(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """The headline as dots on an axis, `at` in percent; logarithmic if the values are spread."""
    headline = evaluation.get("headline")
    rows = [row for row in evaluation.get("rows", []) if metric_of(row, headline) is not None]
    values = [metric_of(row, headline) for row in rows]
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


def evaluation_table(
    evaluation: dict[str, Any], made: dict[str, Any] | None = None, warned: tuple[dict[str, Any], ...] = ()
) -> Table:
    """The table for the terminal, headed by the sentences; a column per model fits 80 columns.

    The arguments are those of `verdict`.
    """
    table = quality_table(evaluation)
    title = Text("\n".join(filter(None, (verdict(evaluation, made, warned), behind(evaluation))))) or None
    shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="")
    shown.add_column("")
    for row in table["rows"]:
        style = {"student": "bold", "real": "dim italic"}.get(row["kind"], "")
        shown.add_column(Text(row["cells"][0]["text"]), justify="right", style=style)
    for i, column in enumerate(table["columns"][1:], start=1):
        cells = [row["cells"][i] for row in table["rows"]]
        shown.add_row(Text(column["label"]), *(Text(cell["text"], "green" if cell["best"] else "") for cell in cells))
    return shown
