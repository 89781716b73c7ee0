"""Runs that were evaluated, read from their folders, and whether they were measured alike."""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distillkit
from distillkit.errors import UsageError, one_line, pasted
from distillkit.files import read_json, read_yaml
from distillkit.report.numbers import number, pretty, row_of

# of a protocol, what another run may have otherwise: its teacher, and the machine
OWN = ("kappa", "teacher", "few_step_solvers", "device", "torch_threads", "too_few")
AGAIN = ("num_samples", "seed", "distillkit")  # what `evaluate` can mend
SAME_FLOOR = 0.01  # relative difference of real data's headline that machines may make


@dataclass(frozen=True)
class Run:
    """A run that was evaluated.

    Attributes:
        name: of its folder, as it is shown.
        folder: of the run, or of a student that came without one.
        config: config.yaml, empty if there is none.
        evaluation: evaluation.json.
        seconds: of training; None if not known.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    evaluation: dict[str, Any]
    seconds: float | None = None

    @property
    def protocol(self) -> dict[str, Any]:
        return self.evaluation["protocol"]

    @property
    def row(self) -> dict[str, Any]:
        """The row of what the run left: of its student, or of a teacher."""
        return row_of(self.evaluation["rows"], "student") or row_of(self.evaluation["rows"], "best")

    @property
    def seed(self) -> int | None:
        found = self.config.get("seed_everything")
        return found if isinstance(found, int) and not isinstance(found, bool) else None

    @property
    def teacher(self) -> tuple[str, str, str] | None:
        """Id, hash and guidance scale of the teacher whose rows stand beside the student."""
        found = self.protocol.get("teacher")
        if not isinstance(found, dict) or row_of(self.evaluation["rows"], "student") is None:
            return None
        return tuple(
            one_line(str(value), 80) for value in (found.get("id"), found.get("hash"), self.protocol.get("kappa"))
        )


# ---- folders


def runs_in(place: Path) -> list[Path]:
    """The run folders that a path stands for: a run, that of a student, all in a folder of runs.

    Raises:
        UsageError: there is none.
    """
    if not place.is_dir():
        raise UsageError(f"there is no folder {place}: give folders of runs or of a sweep")
    if _is_run(place):
        return [place]
    if any((place / f"{kind}.yaml").is_file() for kind in ("student", "teacher")):
        return [place.parent if _is_run(place.parent) else place]
    found = sorted((path for path in place.iterdir() if path.is_dir() and _is_run(path)), key=_in_order)
    if not found:
        raise UsageError(f"{place} holds no run: give folders of runs or of a sweep")
    return found


def _is_run(place: Path) -> bool:
    try:
        return any((place / name).is_file() for name in ("evaluation.json", "config.yaml"))
    except PermissionError:
        return True  # which `read` says of it


def _in_order(path: Path) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]


def read(folder: Path, name: str) -> Run:
    """The run in a folder.

    Raises:
        OSError: its files cannot be read.
        ValueError: it was not evaluated, or its files are damaged.
    """
    places = (place / "evaluation.json" for place in (folder, folder / "student", folder / "teacher"))
    file = next((file for file in places if file.is_file()), None)
    if file is None:
        raise ValueError("it has no evaluation.json")
    evaluation = read_json(file)
    if isinstance(evaluation, dict) and "impossible" in evaluation:
        raise ValueError(one_line(str(evaluation["impossible"])))
    if not _is_whole(evaluation):
        raise ValueError(f"{file.name} is damaged")
    config = folder / "config.yaml"
    asked = read_yaml(config) if config.is_file() else {}
    return Run(name, folder, asked, evaluation, _seconds(folder / "metrics.csv"))


def _is_whole(evaluation: Any) -> bool:
    """Whether it has all that is read of it, and a row of what the run left."""
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("headline"), str):
        return False
    rows, better = evaluation.get("rows"), evaluation.get("better")
    if not isinstance(rows, list) or not isinstance(better, dict) or not isinstance(evaluation.get("protocol"), dict):
        return False
    sound = all(map(_is_row, rows)) and all(isinstance(way, str) for way in better.values())
    sound = sound and all(map(str.isprintable, (evaluation["headline"], *better)))
    return sound and any(row_of(rows, which) for which in ("student", "best"))


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not isinstance(row.get("metrics"), dict):
        return False
    numbers = [row.get(key) for key in ("steps", "network_passes", "ms_per_sample")]
    return all(map(str.isprintable, (row["name"], *row["metrics"]))) and all(
        value is None or isinstance(value, int | float) for value in [*numbers, *row["metrics"].values()]
    )


def _seconds(file: Path) -> float | None:
    """The wall time of training, from metrics.csv."""
    if not file.is_file():
        return None
    with file.open(newline="", encoding="utf-8", errors="replace") as opened:
        try:
            found = [finite(_parsed(row.get("seconds"))) for row in csv.DictReader(opened)]
        except csv.Error:
            return None
    return max((seconds for seconds in found if seconds is not None), default=None)


def _parsed(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def finite(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


# ---- protocols


def refuse_unlike(runs: Sequence[Run]) -> None:
    """Refuse runs that were not measured alike.

    The protocol must be the same but for `OWN`, and so must be the metrics. Held-out data are the
    same if the headline of real data is. Where there are none, the teacher must be the same.

    Raises:
        UsageError: it names what differs, and the runs of each value.
    """
    if differences := _differences(runs):
        told = "; ".join(f"{key} is {_by_value(found)}" for key, found in list(differences.items())[:3])
        more = f"; {len(differences) - 3} more settings differ" if len(differences) > 3 else ""
        raise UsageError(f"these runs were not measured alike: {told}{more}; {_mend(runs, differences)}")
    floors = {run.name: _floor(run) for run in runs}
    known = [floor for floor in floors.values() if floor is not None]
    if known and (len(known) < len(runs) or max(known) - min(known) > SAME_FLOOR * max(map(abs, known))):
        shown = {name: "missing" if floor is None else number(floor) for name, floor in floors.items()}
        headline = pretty(runs[0].evaluation["headline"])
        raise UsageError(
            f"these runs were not measured beside the same held-out data: {headline} of real data is "
            f"{_by_value(shown)}; compare runs on the same data"
        )
    teachers = {run.name: " ".join(run.teacher[:2]) for run in runs if run.teacher}
    if not known and len({*teachers.values()}) > 1:
        raise UsageError(
            f"without real data runs are measured beside their teacher's samples, and the teacher is "
            f"{_by_value(teachers)}; compare students of one teacher"
        )


def _differences(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """By setting, the values of the runs if they do not agree; another domain says all."""
    facts = {}
    for run in runs:
        own = {key: value for key, value in run.protocol.items() if key not in OWN}
        facts[run.name] = _flat(own | {key: run.evaluation[key] for key in ("headline", "better")})
    found = {}
    for key in dict.fromkeys(key for flat in facts.values() for key in flat):
        values = {name: flat.get(key, "not recorded") for name, flat in facts.items()}
        if len({*values.values()}) > 1:
            found[key] = values
    return {"the domain": found["evaluator.domain"]} if "evaluator.domain" in found else found


def _flat(node: Mapping[str, Any], before: str = "") -> dict[str, str]:
    found = {}
    for key, value in node.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def _by_value(values: Mapping[str, str]) -> str:
    """The values, each with the runs that have it: 500 in c and 2000 in a, b."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(value, []).append(name)
    return " and ".join(f"{one_line(value, 40)} in {listed(of)}" for value, of in names.items())


def listed(names: Sequence[str], most: int = 4) -> str:
    """At most so many of the names, and how many more there are."""
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def _mend(runs: Sequence[Run], differences: Mapping[str, Any]) -> str:
    """What to do about runs that were measured otherwise."""
    told = [run.protocol.get(key) for run in runs for key in ("num_samples", "seed")]
    if not {*differences} <= {*AGAIN} or not all(type(value) is int for value in told):
        return "compare those that were"
    ways = [tuple(str(run.protocol.get(key)) for key in AGAIN) for run in runs]
    now = [way for way in ways if way[2] == distillkit.__version__] or ways
    samples, seed, _ = way = max(now, key=now.count)
    odd = [run.folder for run, other in zip(runs, ways, strict=True) if other != way]
    commands = [pasted("evaluate", folder, "--num-samples", samples, "--seed", seed) for folder in odd]
    return f"measure the others anew: {' && '.join(commands)}"


def _floor(run: Run) -> float | None:
    """The headline of real data."""
    real = row_of(run.evaluation["rows"], "real")
    return finite(real["metrics"].get(run.evaluation["headline"])) if real else None
