"""The report of a run on one page: report.html in its folder."""

import json
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup
from PIL import Image

from distillkit.evaluation.rows import REAL
from distillkit.files import read_yaml, write_text
from distillkit.progress import duration
from distillkit.report.card import arguments_of, facts_of, template
from distillkit.report.curves import curve
from distillkit.report.logger import read_metrics
from distillkit.report.numbers import cost_of, metric_of, number, passes, row_of
from distillkit.report.quality import ARROWS, quality_table, strip
from distillkit.report.shortfalls import behind
from distillkit.report.sounds import players, uri
from distillkit.report.verdict import CUT, verdict
from distillkit.report.warned import read_warnings

SAME_NOISE = ("teacher_best", "student", "teacher_same_steps")  # the student and its comparisons
MODELS = (*SAME_NOISE, "real")
ALONG = {"progress": "In training: the same samples at the start, at validations and of the teacher or the data"}


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html from the files of the run folder and return its path.

    Missing files are left out of the page.
    """
    run_dir = Path(run_dir)
    rows = read_metrics(run_dir / "metrics.csv")
    evaluation = json.loads(_text(run_dir / "evaluation.json") or "{}")
    config_text = _text(run_dir / "config.yaml")
    config = _yaml(run_dir / "config.yaml")
    kind = "teacher" if (run_dir / "teacher" / "teacher.yaml").is_file() else "student"
    made = _yaml(run_dir / kind / f"{kind}.yaml")
    if not rows and not evaluation and not config_text and not made:
        raise ValueError(
            f"{run_dir} holds no metrics.csv, evaluation.json, config.yaml, student or teacher to report on; give the "
            f"folder of a run."
        )
    warned = read_warnings(run_dir)
    roles = made.get("roles") or sorted({key.partition("/")[0] for row in rows for key in row if key.endswith("/loss")})
    page = template("report.html.j2").render(
        **_samples(run_dir / "samples", evaluation),
        facts=facts_of(config, made, evaluation),
        evaluation=evaluation,
        verdict=verdict(evaluation, made, warned),
        behind=behind(evaluation),
        warned=warned,
        table=_turned(quality_table(evaluation)),
        strip=strip(evaluation),
        losses=_panels(rows, lambda key: key.endswith("/loss") and not key.startswith("val/"), {}),
        validation=_panels(rows, lambda key: key.startswith("val/"), evaluation.get("better", {})),
        chased=len(roles) > 1,
        is_student=kind == "student",
        cost=_cost(rows, config, evaluation),
        config=config_text,
        kind=kind,
        made=_text(run_dir / kind / f"{kind}.yaml"),
        protocol=_dump(evaluation.get("protocol")),
    )
    write_text(run_dir / "report.html", page)
    return run_dir / "report.html"


# The pieces of the page


def _samples(folder: Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Figures and pages of the samples, by their names in the template."""
    pictures = {path.stem: path for path in sorted(folder.glob("*.png")) if _is_picture(path)}
    moving = {stem: path for stem in MODELS if _is_picture(path := folder / f"{stem}.gif")}
    shown = [stem for stem in MODELS if stem in pictures]
    along = [stem for stem in pictures if stem not in (*MODELS, "comparison")]
    return {
        "models": [_figure(moving.get(stem, pictures[stem]), _caption(stem, evaluation)) for stem in shown],
        "same_noise": sum(stem in pictures for stem in SAME_NOISE) > 1,
        "heard": _heard(folder, evaluation),
        "comparison": _figure(pictures["comparison"], "Side by side") if "comparison" in pictures else None,
        "along": [_figure(pictures[stem], ALONG.get(stem, _plain(stem))) for stem in _spread(along, 8)],
        "pages": [(_plain(path.stem).capitalize(), _text(path)) for path in sorted(folder.glob("*.html"))],
    }


def _heard(folder: Path, evaluation: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The sounds of the models, a list for each noise."""
    rows = players([folder / stem for stem in MODELS], folder.parent)
    for sound in (sound for row in rows for sound in row):
        sound["caption"] = f"{_caption(sound['folder'], evaluation)}: {_plain(sound['name'])}"
        sound["kind"] = "student" if sound["folder"] == "student" else ""
    return rows


def _turned(table: dict[str, list]) -> dict[str, list]:
    """A quality table with a column per model and a row per number: models are few."""
    names, *numbers = table["columns"] or [None]
    heads = [{"text": row["cells"][0]["text"], "kind": row["kind"]} for row in table["rows"]]
    rows = [
        {"label": column["label"], "cells": [{**row["cells"][i], "kind": row["kind"]} for row in table["rows"]]}
        for i, column in enumerate(numbers, start=1)
    ]
    return {"heads": heads, "rows": rows}


def _cost(rows: list[dict[str, float]], config: dict[str, Any], evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """The costs of the run as pairs of words."""
    cost = []
    steps = rows[-1]["step"] + 1 if rows else None
    planned = (config.get("trainer") or {}).get("max_steps")
    seconds = max((row.get("seconds", 0.0) for row in rows), default=0.0)
    if steps:
        # The last step is logged only if it falls on the logging interval.
        every = (config.get("trainer") or {}).get("log_every_n_steps") or 1
        known = isinstance(planned, int) and planned > 0
        over = known and steps > planned - every
        cut = f"{steps:,} of {planned:,} planned" if known else f"{steps:,}"
        cost.append(("Optimiser steps", f"{planned:,}" if over else cut))
    batch = arguments_of(config.get("data")).get("batch_size")
    if batch:
        cost.append(("Batch size", number(batch)))
    if seconds:
        cost.append(("Wall time", duration(seconds)))
        cost.append(("Steps per second", number(steps / seconds)))
    student, teacher = (row_of(evaluation.get("rows", []), which) for which in ("student", "best"))
    if (student or teacher) and cost_of(student or teacher):
        instead = f", {passes(teacher)} for the teacher" if student and teacher else ""
        cost.append(("A sample costs", passes(student or teacher) + instead))
    return cost


def _caption(stem: str, evaluation: dict[str, Any]) -> str:
    """The row's name and the cost of one of its samples."""
    row = row_of(evaluation.get("rows", []), {"teacher_best": "best", "teacher_same_steps": "same"}.get(stem, stem))
    if row is None:
        return {"real": REAL}.get(stem, stem.replace("_", " ")).capitalize()
    share, by = (metric_of(row, name) or 0.0 for name in ("outside", "outside_by"))
    costs = f", {passes(row)}" if cost_of(row) else ""
    cut = f", {share:.1%} of its values cut to the range" if share >= CUT else ""
    return row["name"].capitalize() + costs + cut + (f", {number(by)} of its width away" if cut and by else "")


def _figure(path: Path, caption: str) -> dict[str, Any]:
    with Image.open(path) as image:
        width = image.width
    kind = "student" if path.stem == "student" else ""
    return {"uri": uri(path, f"image/{path.suffix[1:]}"), "caption": caption, "small": width < 480, "kind": kind}


def _is_picture(path: Path) -> bool:
    with suppress(OSError, SyntaxError), Image.open(path):  # what a broken disk or another program left is not shown
        return True
    return False


def _plain(stem: str) -> str:
    """A file's stem as words: step_000500 -> step 500."""
    return re.sub(r"\b0+(?=\d)", "", stem.replace("_", " "))


def _spread(items: list, most: int) -> list:
    """At most `most` of the items, evenly chosen, first and last included."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _panels(rows: list[dict[str, float]], wanted: Any, better: dict[str, str]) -> list[dict[str, Any]]:
    panels = []
    for key in dict.fromkeys(key for row in rows for key in row if wanted(key)):
        points = [(row["step"], row[key]) for row in rows if key in row]
        finite = [(step, value) for step, value in points if math.isfinite(value)]
        if len(finite) > 1:
            steps, values = np.array(finite, dtype=float).T
            arrow = ARROWS.get(better.get(key.partition("/")[2]), "")
            panels.append(
                {
                    "title": f"{key} {arrow}".strip(),
                    "last": number(values[-1]),
                    "svg": Markup(curve(steps, values, rows[-1]["step"])),
                    "lost": len(points) - len(finite),
                }
            )
    return panels


# Words and files


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _yaml(path: Path) -> dict[str, Any]:
    return read_yaml(path) if path.is_file() else {}


def _dump(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True) if value else ""
