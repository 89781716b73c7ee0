"""Runs broken on purpose, and healthy ones: whether each cause is named, and nothing else is.

    python benchmarks/broken.py --out runs/broken [--only toy-dmd] [--seeds 0 1 2]
    python benchmarks/broken.py --out runs/broken --table

Runs go one after the other in this process. Each adds a line to OUT/results.jsonl; one that has
its line is not repeated. The tables are made from these lines with the diagnosis as it is now.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from distillkit.watch.causes import CAUSES
from distillkit.watch.during import diagnose, lawful

BARE = ["vars.callbacks.finish.num_samples=0", "vars.callbacks.finish.pictures=false"]
TEACHER = "{out}/teachers/"  # where the words of a run find a teacher that another run has left


class Run(NamedTuple):
    """A run.

    Args:
        words: of the command line.
        steps: its length; it is validated four times.
        cause: what must be named; None means silence.
    """

    words: str
    steps: int
    cause: str | None = None


TOY = "domain=toy data.batch_size=128"
DIGITS = "domain=image data.batch_size=16"  # small batches: a lasting fault shows early
TOKENS = "domain=discrete data.batch_size=8"
PROTEIN = "domain=protein data.batch_size=4 vars.callbacks.watch.samples=16"
VIDEO = "domain=video data.batch_size=4 vars.callbacks.watch.samples=16"
RUNS: dict[str, Run] = {
    "toy-dmd": Run("domain=toy method=dmd", 800),
    "toy-dmd-lag": Run("domain=toy method=dmd model.fake_score.lr=1e-6", 400, "lagging_fake_score"),
    "toy-dmd-student-rate": Run(f"{TOY} method=dmd model.student.lr=0.1", 60, "high_rate"),
    "toy-consistency-rate": Run(f"{TOY} method=consistency model.student.lr=0.5", 60, "high_rate"),
    "toy-labelled-overguided": Run(f"{TOY} method=dmd teacher=labelled model.kappa=30", 20, "over_guided"),
    "toy-dmd-fake-rate": Run(f"{TOY} method=dmd model.fake_score.lr=0.05", 60, "high_rate"),
    "toy-pretrain-rate": Run(f"{TOY} method=pretrain model.student.lr=0.5", 60, "diverged_role"),
    "toy-pretrain": Run(f"{TOY} method=pretrain", 100),
    "toy-sid": Run(f"{TOY} method=sid", 100),
    "toy-sid-lag": Run(f"{TOY} method=sid model.fake_score.lr=1e-6", 60, "lagging_fake_score"),
    "toy-mixture-dmd": Run(f"{TOY} method=dmd teacher=mixture", 100),
    "toy-mixture-dmd-lag": Run(f"{TOY} method=dmd teacher=mixture model.fake_score.lr=1e-6", 60, "lagging_fake_score"),
    "toy-consistency": Run(f"{TOY} method=consistency", 100),
    "toy-labelled-dmd": Run(f"{TOY} method=dmd teacher=labelled", 100),
    "toy-labelled-guided": Run(f"{TOY} method=dmd teacher=labelled model.kappa=2", 60),
    "toy-dmd-ema": Run(f"{TOY} method=dmd model.ema_halflife=1e8 model.ema_rampup=1000", 80, "long_ema"),
    "toy-lsd": Run(f"{TOY} method=lsd", 20),
    "toy-dmd-steps4": Run(f"{TOY} method=dmd model.num_steps=4", 80),
    "toy-short-teacher": Run(f"{TOY} method=pretrain vars.callbacks.watch.samples=0", 8),
    "toy-unconverged": Run(
        f"{TOY} method=dmd teacher=folder teacher.path={TEACHER}toy-short-teacher", 20, "unconverged_teacher"
    ),
    "digits-dmd": Run(f"{DIGITS} method=dmd", 60),
    "digits-dmd-lag": Run(
        f"{DIGITS} method=dmd model.fake_score.lr=1e-7 model.student.lr=2e-3", 20, "lagging_fake_score"
    ),
    "digits-dmd-student-rate": Run(f"{DIGITS} method=dmd model.student.lr=0.05", 20, "high_rate"),
    "digits-pretrain-rate": Run(f"{DIGITS} method=pretrain model.student.lr=0.3", 20, "high_rate"),
    "digits-consistency": Run(f"{DIGITS} method=consistency", 20),
    "digits-consistency-rate": Run(f"{DIGITS} method=consistency model.student.lr=0.1", 20, "high_rate"),
    "discrete-pretrain": Run(f"{TOKENS} method=pretrain", 16),
    "discrete-pretrain-rate": Run(f"{TOKENS} method=pretrain model.student.lr=0.5", 16, "high_rate"),
    "protein-dmd": Run(f"{PROTEIN} method=dmd", 12),
    "protein-dmd-lag": Run(
        f"{PROTEIN} method=dmd model.fake_score.lr=1e-7 model.student.lr=3e-3", 12, "lagging_fake_score"
    ),
    "protein-consistency": Run(f"{PROTEIN} method=consistency", 12),
    "video-dmd": Run(f"{VIDEO} method=dmd", 12),
    "video-dmd-lag": Run(
        f"{VIDEO} method=dmd model.fake_score.lr=1e-7 model.student.lr=3e-3", 12, "lagging_fake_score"
    ),
    "video-consistency": Run(f"{VIDEO} method=consistency", 12),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Break runs on purpose, and see whether the cause is named.")
    parser.add_argument("--out", type=Path, default=Path("runs/broken"), help="where results go (default runs/broken)")
    parser.add_argument("--only", nargs="+", help="beginnings of the names of runs (default all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default 0")
    parser.add_argument("--table", action="store_true", help="run nothing, print the tables")
    args = parser.parse_args(argv)
    file = args.out / "results.jsonl"
    done = {(record["name"], record["seed"]) for record in read(file)}
    for seed in [] if args.table else args.seeds:
        for name, run in RUNS.items():
            if (name, seed) not in done and (not args.only or name.startswith(tuple(args.only))):
                record = make(name, run, seed, args.out)
                with file.open("a") as opened:
                    opened.write(json.dumps(record) + "\n")
                print(f"{name}, seed {seed}: {record['seconds']:.0f} s, {named(record)}", flush=True)
    print(tables(read(file)))
    return 0


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def make(name: str, run: Run, seed: int, out: Path) -> dict[str, Any]:
    """Makes the run in this process; returns its record."""
    from distillkit.callbacks.watch import Watch
    from distillkit.cli import front

    seen: list[tuple[Any, Any]] = []
    begin = Watch.on_train_start

    def on_train_start(self: Any, trainer: Any, model: Any) -> None:
        begin(self, trainer, model)
        seen.append((self, model))

    every = max(1, run.steps // 4)
    words = [word.replace(TEACHER, f"{out}/teachers/") for word in run.words.split()]
    words += [f"trainer.max_steps={run.steps}", f"trainer.val_check_interval={every}", f"seed_everything={seed}", *BARE]
    folder, said, started = out / f"{name}-{seed}", io.StringIO(), time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    Watch.on_train_start = on_train_start
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            code = front.main(["fit", *words, "--out", str(folder)])
        if code == 130:
            raise SystemExit(code)
    finally:
        Watch.on_train_start = begin
    watch, model = seen[-1] if seen else (SimpleNamespace(history=[], found={}), None)
    for kind in ("teacher", "student"):
        if (folder / kind).is_dir():
            (out / f"{kind}s").mkdir(exist_ok=True)
            shutil.copytree(folder / kind, out / f"{kind}s" / name, dirs_exist_ok=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {
        "name": name,
        "seed": seed,
        "words": words,
        "cause": run.cause,
        "code": code,
        "seconds": time.perf_counter() - started,
        "before": [finding.name for finding in watch.found.values() if not finding.step],
        "history": watch.history,
        "model": traits(model),
        "said": said.getvalue()[-2000:],
    }


def traits(model: Any) -> dict[str, Any]:
    """What the diagnosis asks a method besides facts."""
    return {} if model is None else {"roles": [*model.roles], "proof": lawful(model)}


def named(record: dict[str, Any]) -> list[str]:
    """The causes that are named in the run, by the diagnosis as it is now."""
    found = dict.fromkeys(record["before"])
    for end in range(1, len(record["history"]) + 1):
        found |= dict.fromkeys(
            f.name for f in diagnose(record["history"][:end], SimpleNamespace(**{"proof": True} | record["model"]))
        )
    return [*found]


def tables(records: list[dict[str, Any]]) -> str:
    """Provoked x named, and the last facts of every run."""
    lines = ["", "| provoked | runs | named |", "| --- | ---: | --- |"]
    for cause in (None, *CAUSES):
        own = [record for record in records if record["cause"] == cause]
        counts: dict[str, int] = {}
        for record in own:
            for name in named(record) or ["nothing"]:
                counts[name] = counts.get(name, 0) + 1
        if own:
            said = ", ".join(f"{name} {count}" for name, count in counts.items())
            lines.append(f"| {cause or 'healthy'} | {len(own)} | {said} |")
    lines += ["", "| run | seed | cause | named | facts at each validation |", "| --- | ---: | --- | --- | --- |"]
    for record in records:
        facts = "; ".join(
            f"{key} " + " ".join(f"{facts.get(key, float('nan')):.3g}" for facts in record["history"])
            for key in (record["history"] or [{}])[-1]
        )
        lines.append(
            f"| {record['name']} | {record['seed']} | {record['cause']} | {', '.join(named(record))} | {facts} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
