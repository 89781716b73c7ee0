"""What a run says about itself: report.html in its folder, and the model card of its student or teacher."""

import base64
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from distillkit.report.curves import curve
from distillkit.files import read_yaml, write_text
from distillkit.report.logger import read_metrics
from distillkit.progress import duration
from distillkit.report.quality import (
    ARROWS,
    CUT,
    REAL,
    cost_of,
    evaluation_table,
    number,
    passes,
    quality_table,
    row_of,
    shortfalls,
    strip,
    verdict,
)

__all__ = ["evaluation_table", "write_card", "write_report"]

SAME_NOISE = ("teacher_best", "student", "teacher_same_steps")  # the student beside both of its comparisons
MODELS = (*SAME_NOISE, "real")


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html from what lies in the run folder; what is missing is left out. Returns its path."""
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
    pictures = {path.stem: path for path in sorted((run_dir / "samples").glob("*.png"))}
    moving = {stem: path for stem in MODELS if (path := run_dir / "samples" / f"{stem}.gif").is_file()}
    along = [stem for stem in pictures if stem not in (*MODELS, "comparison")]
    facts = _facts(config, made, evaluation)
    roles = made.get("roles") or sorted({key.partition("/")[0] for row in rows for key in row if key.endswith("/loss")})
    page = _template("report.html.j2").render(
        facts=facts,
        evaluation=evaluation,
        verdict=verdict(evaluation, made),
        shortfalls=shortfalls(evaluation),
        table=_turned(quality_table(evaluation)),
        strip=strip(evaluation),
        models=[
            _figure(moving.get(stem, pictures[stem]), _caption(stem, evaluation)) for stem in MODELS if stem in pictures
        ],
        same_noise=sum(stem in pictures for stem in SAME_NOISE) > 1,
        comparison=_figure(pictures["comparison"], "Side by side") if "comparison" in pictures else None,
        along=[_figure(pictures[stem], _plain(stem)) for stem in _spread(along, 8)],
        pages=[(_plain(path.stem).capitalize(), _text(path)) for path in sorted((run_dir / "samples").glob("*.html"))],
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


def write_card(
    folder: Path, kind: str, config: dict[str, Any], evaluation: dict[str, Any] | None, command: str | None
) -> None:
    """Write README.md, the model card, into a student or teacher folder.

    Args:
        folder: the folder of the weights; its samples.png is shown if it is there.
        kind: "student" or "teacher".
        config: student.yaml or teacher.yaml as a dict; `license` and `data_license` are quoted from it.
        evaluation: evaluation.json as a dict.
        command: the command that made the weights.
    """
    if kind not in ("student", "teacher"):
        raise ValueError(f'kind must be "student" or "teacher", got {kind!r}.')
    folder, evaluation = Path(folder), evaluation or {}
    facts = _facts({}, config, evaluation)
    card = _template("card.md.j2").render(
        title=_title(kind, facts, config.get("num_steps")),
        name=folder.resolve().name,
        kind=kind,
        facts=facts,
        config=config,
        evaluation=evaluation,
        verdict=verdict(evaluation, config),
        shortfalls=shortfalls(evaluation),
        table=quality_table(evaluation),
        protocol=evaluation.get("protocol", {}),
        picture=(folder / "samples.png").is_file(),
        licenses={of: _either(config, f"{key}license", f"{key}licence") for of, key in _LICENSES.items()},
        command=command,
    )
    write_text(folder / "README.md", card)


_LICENSES = {"These weights": "", "The teacher": "teacher_", "The data": "data_"}


# The pieces of the page


def _facts(config: dict[str, Any], student: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    """domain, method, teacher and version, from where they are known."""
    model, data = config.get("model"), config.get("data")
    teacher = evaluation.get("protocol", {}).get("teacher") or student.get("teacher")
    if isinstance(teacher, dict):
        teacher = teacher.get("id")
    domain = re.match(r"domains\.(\w+)", _path(data) or "")
    return {
        "domain": student.get("domain") or (domain[1] if domain else None),
        "method": (_path(model) or student.get("method") or "").rpartition(".")[2] or None,
        "teacher": teacher or (_path(_arguments(model).get("teacher")) or "").rpartition(".")[2] or None,
        "version": student.get("distillkit") or evaluation.get("protocol", {}).get("distillkit"),
    }


def _title(kind: str, facts: dict[str, Any], steps: Any) -> str:
    """image-sid: one-step student of digits."""
    run = "-".join(filter(None, (facts["domain"], (facts["method"] or "").lower())))
    calls = {1: "one-step ", None: ""}.get(steps, f"{steps}-step ") if kind == "student" else ""
    of = f" of {facts['teacher']}" if kind == "student" and facts["teacher"] else ""
    return f"{run}: {calls}{kind}{of}" if run else f"{calls}{kind}{of}".capitalize()


def _turned(table: dict[str, list]) -> dict[str, list]:
    """A quality table with a column per model and a row per number: models are few, numbers many."""
    names, *numbers = table["columns"] or [None]
    heads = [{"text": row["cells"][0]["text"], "kind": row["kind"]} for row in table["rows"]]
    rows = [
        {"label": column["label"], "cells": [{**row["cells"][i], "kind": row["kind"]} for row in table["rows"]]}
        for i, column in enumerate(numbers, start=1)
    ]
    return {"heads": heads, "rows": rows}


def _path(node: Any) -> str | None:
    """The class a config node builds."""
    return (
        node if isinstance(node, str) else _either(node, "class_path", "_target_") if isinstance(node, dict) else None
    )


def _arguments(node: Any) -> dict[str, Any]:
    return (node.get("init_args", node) or {}) if isinstance(node, dict) else {}


def _cost(rows: list[dict[str, float]], config: dict[str, Any], evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """What the run took, as pairs of words."""
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
    batch = _arguments(config.get("data")).get("batch_size")
    if batch:
        cost.append(("Batch size", number(batch)))
    if seconds:
        cost.append(("Wall time", duration(seconds)))
        cost.append(("Steps per second", number(steps / seconds)))
    student, teacher = (row_of(evaluation.get("rows", []), which) for which in ("student", "best"))
    if teacher and cost_of(teacher):
        instead = f", {passes(teacher)} for the teacher" if student else ""
        cost.append(("A sample costs", passes(student or teacher) + instead))
    return cost


def _caption(stem: str, evaluation: dict[str, Any]) -> str:
    """The row that a picture belongs to, and what one of its samples costs."""
    row = row_of(evaluation.get("rows", []), {"teacher_best": "best", "teacher_same_steps": "same"}.get(stem, stem))
    if row is None:
        return {"real": REAL}.get(stem, stem.replace("_", " ")).capitalize()
    cut = row.get("metrics", {}).get("outside", 0.0)
    costs = f", {passes(row)}" if cost_of(row) else ""
    return row["name"].capitalize() + costs + (f", {cut:.1%} of its values cut to the range" if cut >= CUT else "")


def _figure(path: Path, caption: str) -> dict[str, Any]:
    with Image.open(path) as image:
        width = image.width
    uri = f"data:image/{path.suffix[1:]};base64," + base64.b64encode(path.read_bytes()).decode()
    return {"uri": uri, "caption": caption, "small": width < 480, "kind": "student" if path.stem == "student" else ""}


def _plain(stem: str) -> str:
    """step_000500 -> step 500."""
    return re.sub(r"\b0+(?=\d)", "", stem.replace("_", " "))


def _spread(items: list, most: int) -> list:
    """At most so many of them, evenly chosen, first and last included."""
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


def _either(config: dict[str, Any], *keys: str) -> Any:
    return next((config[key] for key in keys if config.get(key)), None)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _yaml(path: Path) -> dict[str, Any]:
    return read_yaml(path) if path.is_file() else {}


def _dump(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True) if value else ""


def markdown(text: Any) -> str:
    """Text in one line that Markdown shows as it stands: no HTML, link, picture, emphasis or end of a table's cell in it."""
    line = re.sub(r"([\\`*_{}\[\]<>#!|~&@])", r"\\\1", " ".join(str(text).split()))
    return re.sub(r":(?=\S)|(?<=\bwww)\.", r"\\\g<0>", line)  # addresses become links by themselves


def _template(name: str) -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"words": markdown, "code": lambda text: " ".join(str(text).replace("`", "'").split())}
    return environment.get_template(name)
