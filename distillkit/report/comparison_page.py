"""Runs side by side for the terminal, as compare.csv and as compare.html."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup
from rich import box
from rich.table import Table
from rich.text import Text

from distillkit.files import write_text
from distillkit.progress import duration
from distillkit.report.card import template
from distillkit.report.comparison import SideBySide, spread
from distillkit.report.evaluated import Run, finite
from distillkit.report.numbers import cost_of, kind_of, number, pretty
from distillkit.report.quality import ARROWS

PAGE, CELLS = "compare.html", "compare.csv"
COSTS = ("steps", "network_passes", "ms_per_sample")  # of a row, in compare.csv


def write(table: SideBySide, folder: Path, left_out: Mapping[str, str]) -> None:
    """Write compare.csv and compare.html into a folder.

    Args:
        table: the runs.
        folder: it is made if need be.
        left_out: why runs are not in the table, by name.
    """
    write_text(folder / CELLS, cells(table))
    write_text(folder / PAGE, page(table, left_out))


def console_table(table: SideBySide) -> Table:
    """The table for the terminal: cost, what ranks the groups, and their references."""
    said = Text(table.conclusion()) or None
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=said, title_justify="left", title_style="")
    shown.add_column("", justify="right", style="dim")
    shown.add_column("", overflow="fold")
    winner, label = table.winner(table.metric), _label(table, table.metric)
    for column in ("seeds", "passes", "ms", "trained"):
        shown.add_column(column, justify="right")
    shown.add_column(Text(label), justify="right", no_wrap=True)
    for i, group in enumerate(table.groups, start=1):
        style = "bold green" if group is winner else ""
        text = table.text(group, table.metric) + " *" * (group is winner)
        shown.add_row(str(i), Text(group.label), str(len(group.runs)), *_costs(group), Text(text, style))
    for name, row in table.references:
        passes, milliseconds = number(cost_of(row) or None), number(row.get("ms_per_sample"))
        value = number(finite(row["metrics"].get(table.metric)))
        shown.add_row("", Text(name), "", passes, milliseconds, "", Text(value), style="dim italic")
    return shown


def _costs(group: Any) -> tuple[str, str, str]:
    trained = duration(group.seconds) if group.seconds is not None else number(None)
    return number(_whole(group.mean("network_passes"))), number(group.mean("ms_per_sample")), trained


def _whole(value: float | None) -> float | int | None:
    return int(value) if value is not None and value == int(value) else value


def _label(table: SideBySide, metric: str) -> str:
    return f"{pretty(metric)} {ARROWS.get(table.better.get(metric), '')}".strip()


def cells(table: SideBySide) -> str:
    """compare.csv: a row for each group, teacher, baseline and for real data; means over seeds.

    Columns of words are empty where a group's class has no such key, standard deviations
    (`METRIC_std`) where there is one seed.
    """
    metrics = [column for name in table.names for column in (name, f"{name}_std")]
    head = ["number", "name", "kind", "runs", "seeds", *table.keys]
    lines = [[*head, *COSTS, "trained_seconds", *metrics]]
    for i, group in enumerate(table.groups, start=1):
        runs = [" ".join(run.name for run in group.runs), " ".join(str(run.seed) for run in group.runs)]
        costs = [_whole(group.mean(key)) for key in COSTS]
        values = [each for name in table.names for each in _spread(group.metric(name))]
        words = [group.words.get(key) for key in table.keys]
        lines.append([i, group.label, kind_of(group.runs[0].row), *runs, *words, *costs, group.seconds, *values])
    teachers = [(table.called(row["name"], key), row) for key, rows in table.teachers.items() for row in rows]
    others = [(name, row) for name, row in table.references if kind_of(row) != "teacher"]
    for name, row in [*teachers, *others]:
        values = [each for metric in table.names for each in (finite(row["metrics"].get(metric)), None)]
        costs = [_whole(finite(row.get(key))) for key in COSTS]
        lines.append([None, name, kind_of(row), *[None] * (2 + len(table.keys)), *costs, None, *values])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _spread(values: Any) -> tuple[float | None, float | None]:
    return spread(values) if len(values) else (None, None)


def page(table: SideBySide, left_out: Mapping[str, str]) -> str:
    """compare.html, which needs nothing from outside; arguments as of `write`."""
    metrics = [{"name": name, "label": _label(table, name), "winner": table.winner(name)} for name in table.names]
    groups = [
        {
            "label": group.label,
            "words": group.words,
            "seeds": len(group.runs),
            "costs": _costs(group),
            "cells": [{"text": table.text(group, each["name"]), "best": each["winner"] is group} for each in metrics],
            "runs": [_one(run, table.metric) for run in group.runs],
        }
        for group in table.groups
    ]
    references = [
        {
            "label": name,
            "kind": kind_of(row),
            "costs": (number(cost_of(row) or None), number(row.get("ms_per_sample")), ""),
            "cells": [number(finite(row["metrics"].get(each["name"]))) for each in metrics],
        }
        for name, row in table.references
    ]
    return template("compare.html.j2").render(
        title=f"{len(table.runs)} run{'s' * (len(table.runs) != 1)} side by side",
        conclusion=table.conclusion(),
        notes=table.notes,
        left_out=left_out,
        label=_label(table, table.metric),
        metrics=metrics,
        groups=groups,
        references=references,
        keys=table.keys,
        drawings=_drawings(table),
        protocol=yaml.safe_dump(table.runs[0].protocol, sort_keys=False, allow_unicode=True),
    )


def _one(run: Run, metric: str) -> dict[str, str]:
    seconds = number(None) if run.seconds is None else duration(run.seconds)
    seed = number(None) if run.seed is None else str(run.seed)
    return {"name": run.name, "seed": seed, "value": number(finite(run.row["metrics"].get(metric))), "trained": seconds}


def _drawings(table: SideBySide) -> list[dict[str, Any]]:
    """The metric against passes, and against time if all times were measured on one machine."""
    from distillkit.report.scatter import Dots, Level, Line, scatter

    def value(row: dict[str, Any]) -> float | None:
        return finite(row["metrics"].get(table.metric))

    costs = [("network_passes", "network passes")] + [("ms_per_sample", "ms per sample")] * table.one_machine
    found = []
    for key, name in costs:
        groups = [
            Dots(str(i), cost, values[np.isfinite(values)])
            for i, group in enumerate(table.groups, start=1)
            if (cost := group.mean(key)) is not None and np.isfinite(values := group.metric(table.metric)).any()
        ]
        lines = []
        for teacher, rows in table.teachers.items():
            known = [row for row in rows if finite(row.get(key)) is not None and value(row) is not None]
            if known:
                at = [finite(row[key]) for row in known]
                lines.append(Line(table.called("teacher", teacher), at, [value(row) for row in known]))
        named = [(row["name"], row) for row in (*table.baselines, *filter(None, [table.real]))]
        levels = [Level(text, value(row), row is table.real) for text, row in named if value(row) is not None]
        if groups:
            drawn = scatter(groups, lines, levels, name, pretty(table.metric))
            found.append({"title": f"{pretty(table.metric)} against {name}", "svg": Markup(drawn)})
    return found
