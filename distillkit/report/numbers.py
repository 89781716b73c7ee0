"""Numbers and rows of evaluation.json as words."""

import math
from typing import Any

from distillkit.evaluation.rows import BEST, REAL

BETTER = ("lower", "higher", "target")
ACRONYMS = ("dists", "fad", "fid", "fvd", "gmsd", "hf", "iou", "jsd", "kid", "lpips", "mmd", "nll", "psnr", "ssim")


def row_of(rows: list[dict[str, Any]], which: str) -> dict[str, Any] | None:
    """The row of a model, by one of five words.

    - student, real, before: by kind.
    - best: the teacher at its best, or with the most passes.
    - same: the teacher with the fewest passes, the student's.
    """
    if which in ("student", "real", "before"):
        return next((row for row in rows if kind_of(row) == which), None)
    teachers = sorted((row for row in rows if kind_of(row) == "teacher"), key=cost_of)
    if not teachers or (which == "same" and len(teachers) == 1):
        return None
    return next((row for row in teachers if row["name"] == BEST), teachers[-1]) if which == "best" else teachers[0]


def kind_of(row: dict[str, Any]) -> str:
    return {"student": "student", REAL: "real"}.get(row["name"], row.get("kind", "teacher"))


def cost_of(row: dict[str, Any]) -> float:
    return row.get("network_passes") or row.get("steps") or 0


def metric_of(row: dict[str, Any] | None, name: str | None) -> float | None:
    """The metric of a row as a finite number, or None."""
    value = (row or {}).get("metrics", {}).get(name)
    return float(value) if value is not None and math.isfinite(value) else None


def noise(row: dict[str, Any] | None, name: str | None) -> float:
    """What noise may do to the difference of a row's metric from the student's; 0 if not known."""
    return (row or {}).get("margins_to_student", {}).get(name) or 0.0


def loss_of(row: dict[str, Any] | None, name: str, better: str | None, real: dict[str, Any] | None) -> float | None:
    """The metric turned so that lower is better; None if it is missing or has no direction."""
    value, target = metric_of(row, name), metric_of(real, name)
    if value is None or better not in BETTER or (better == "target" and target is None):
        return None
    return {"lower": value, "higher": -value, "target": abs(value - (target or 0.0))}[better]


def speedup(row: dict[str, Any], reference: dict[str, Any]) -> float | None:
    mine, theirs = row.get("ms_per_sample"), reference.get("ms_per_sample")
    return theirs / mine if mine and theirs else None


def passes(row: dict[str, Any]) -> str:
    count = cost_of(row)
    own = " of a network of its own" if row.get("network") else ""
    return f"{number(count)} {'' if own else 'network '}pass{'es' if count != 1 else ''}{own}"


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


def listed(parts: list[str]) -> str:
    """The parts as one text: a, b and c."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))
