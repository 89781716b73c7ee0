"""Quality of students: every method at every number of steps through the command line, in a table.

    python benchmarks/quality.py --out runs/quality [--methods sid dmd] [--num-steps 1 4]
        [--steps 4000] [WORD ...]
    python benchmarks/quality.py --out runs/quality --dry

Words (`experiment=NAME`, `data.batch_size=128` ...) go to every run as they are. Finished runs in
the folder are not repeated. The output is Markdown; OUT/quality.json has the same numbers with
their protocol.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillkit.evaluation.rows import BEST, REAL
from distillkit.files import write_text
from distillkit.report.numbers import number, pretty
from distillkit.report.quality import ARROWS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train and evaluate students, and print one table.")
    parser.add_argument("words", nargs="*", help="words for every run, such as experiment=NAME")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quality"), help="where the runs go (default runs/quality)"
    )
    parser.add_argument("--domain", default="image", help="default image")
    parser.add_argument("--methods", nargs="+", default=["sid", "dmd"], help="default sid dmd")
    parser.add_argument("--num-steps", nargs="+", type=int, default=[1, 4], help="steps of the students (default 1 4)")
    parser.add_argument("--steps", type=int, help="trainer.max_steps of every run (default: the recipe's)")
    parser.add_argument("--dry", action="store_true", help="print the commands and stop")
    args = parser.parse_args(argv)

    runs: dict[str, dict[str, Any]] = {}
    for num_steps in args.num_steps:
        for method in args.methods:
            folder = args.out / f"{args.domain}-{method}-{num_steps}"
            words = [
                f"domain={args.domain}",
                f"method={method}",
                f"model.num_steps={num_steps}",
                "model.times=null",
                *args.words,
            ]
            words += [f"trainer.max_steps={args.steps}"] if args.steps else []
            command = ["python", "-m", "distillkit", "fit", *words, "--out", str(folder)]
            print(f"$ {shlex.join(command)}", flush=True)
            if not args.dry:
                runs[folder.name] = run(command, folder) | {"method": method, "num_steps": num_steps}
    if args.dry:
        return 0
    write_text(args.out / "quality.json", json.dumps(runs, indent=1))
    print("\n" + table(list(runs.values())))
    return 0


def run(command: list[str], folder: Path) -> dict[str, Any]:
    """Train unless it is done already; returns the command, its seconds and its evaluation."""
    facts, evaluation = folder / "benchmark.json", folder / "evaluation.json"
    if not facts.is_file():
        start = time.perf_counter()
        subprocess.run([sys.executable, *command[1:]], check=True)
        seconds = time.perf_counter() - start
        write_text(facts, json.dumps({"command": shlex.join(command), "wall_seconds": seconds}))
    done = json.loads(facts.read_text())
    if done["command"] != shlex.join(command):
        raise SystemExit(f"{folder} was made by another command ({done['command']}): choose another --out")
    return done | {"evaluation": json.loads(evaluation.read_text())}


def table(runs: list[dict[str, Any]]) -> str:
    """The Markdown table: students and teacher at each number of steps, then the references."""
    protocols = [{**run["evaluation"]["protocol"], "torch_threads": None} for run in runs]
    if any(protocol != protocols[0] for protocol in protocols):
        raise SystemExit("the runs were evaluated under different protocols, so they do not belong in one table")
    better = runs[0]["evaluation"]["better"]
    names = [name for name in ("frechet", "class_agreement") if name in better] or list(better)
    heads = ["", "steps", "passes", *(f"{pretty(name)} {ARROWS[better[name]]}" for name in names)]
    heads += ["ms per sample", "trained in"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" + " ---: |" * (len(heads) - 1)]
    for title, row, seconds in rows(runs):
        cells = [title, number(row.get("steps")), number(row.get("network_passes"))]
        cells += [number(row["metrics"].get(name)) for name in names]
        cells += [number(row.get("ms_per_sample")), f"{seconds:.0f} s" if seconds else "–"]
        lines.append("| " + " | ".join(cells) + " |")
    protocol = protocols[0]
    teacher = protocol["teacher"]
    note = f"{protocol['num_samples']} samples of each, seed {protocol['seed']}, kappa {protocol['kappa']:g}; "
    note += f"the teacher at its best is {teacher['solver']} with {teacher['steps']} steps, at fewer steps the best of "
    note += f"{', '.join(protocol['few_step_solvers'])}; distillkit {protocol['distillkit']}."
    return "\n".join([*lines, "", note])


def rows(runs: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], float | None]]:
    """Yields (title, row of evaluation.json, seconds of training)."""
    for num_steps in sorted({run["num_steps"] for run in runs}):
        same = [run for run in runs if run["num_steps"] == num_steps]
        for run in same:
            yield f"student, {run['method']}", row(run, "student"), run["wall_seconds"]
        kin = next(r for r in same[0]["evaluation"]["rows"] if r["name"] not in ("student", BEST, REAL))
        yield f"teacher, {kin['solver']}", kin, None
    yield BEST, row(runs[0], BEST), None
    yield REAL, row(runs[0], REAL), None


def row(run: dict[str, Any], name: str) -> dict[str, Any]:
    return next(r for r in run["evaluation"]["rows"] if r["name"] == name)


if __name__ == "__main__":
    sys.exit(main())
