"""Runs broken on purpose, and healthy ones: whether each cause is named, and nothing else is.

    python benchmarks/broken.py --out runs/broken [--only toy-dmd] [--seeds 0 1 2]
    python benchmarks/broken.py --out runs/broken --only default
    python benchmarks/broken.py --out runs/broken --table [--curves docs/curves]

Runs go one after the other in this process. Each adds a line to OUT/results.jsonl; one that has
its line is not repeated. The tables are made from these lines with the diagnosis as it is now.
The runs `default-DOMAIN-METHOD` and `default-DOMAIN-STAGE-METHOD` are whole default runs without
their evaluation; they take hours and are made only where --only names them. The package diffusers
must be there (the extra of that name).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import shutil
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from distillkit.watch.causes import CAUSES
from distillkit.watch.during import diagnose, lawful

BARE = ["vars.callbacks.finish.num_samples=0", "vars.callbacks.finish.pictures=false"]


class Run(NamedTuple):
    """A run.

    Args:
        words: of the command line; {out} is the folder of results, where `prepare` writes data and
            where `{out}/teachers/NAME` is what the run NAME has left.
        steps: its length, in which it is validated four times; None is the default run.
        cause: what must be named; None means silence.
    """

    words: str
    steps: int | None
    cause: str | None = None


TOY = "domain=toy data.batch_size=128"
DIGITS = "domain=image data.batch_size=16"  # small batches: a lasting fault shows early
FILE = f"{DIGITS} data=npz vars.event_shape=[1,8,8] vars.classes.label=10 data.num_classes=10 data.path={{out}}"
UNSEEN = "vars.callbacks.watch.samples=0 trainer.limit_val_batches=0"  # a run that only leaves a teacher
LEFT = "teacher=folder teacher.path={out}/teachers"
TOKENS = "domain=discrete data.batch_size=8 vars.callbacks.watch.samples=16 trainer.limit_val_batches=1"
PROTEIN = "domain=protein data.batch_size=4 vars.callbacks.watch.samples=16"
VIDEO = "domain=video data.batch_size=4 vars.callbacks.watch.samples=16"
RUNS: dict[str, Run] = {
    # the plane
    "toy-dmd": Run("domain=toy method=dmd", 800),
    "toy-dmd-lag": Run("domain=toy method=dmd model.fake_score.lr=1e-6", 400, "lagging_fake_score"),
    "toy-dmd-student-rate": Run(f"{TOY} method=dmd model.student.lr=0.1", 60, "high_rate"),
    "toy-dmd-fake-rate": Run(f"{TOY} method=dmd model.fake_score.lr=0.05", 60, "high_rate"),
    "toy-dmd-ema": Run(f"{TOY} method=dmd model.ema_halflife=1e8 model.ema_rampup=1000", 80, "long_ema"),
    "toy-dmd-steps4": Run(f"{TOY} method=dmd model.num_steps=4", 200),
    "toy-sid": Run(f"{TOY} method=sid", 100),
    "toy-sid-lag": Run(f"{TOY} method=sid model.fake_score.lr=1e-6", 60, "lagging_fake_score"),
    "toy-mixture-dmd": Run(f"{TOY} method=dmd teacher=mixture", 100),
    "toy-mixture-dmd-lag": Run(f"{TOY} method=dmd teacher=mixture model.fake_score.lr=1e-6", 60, "lagging_fake_score"),
    "toy-consistency": Run(f"{TOY} method=consistency", 100),
    "toy-consistency-rate": Run(f"{TOY} method=consistency model.student.lr=0.5", 60, "high_rate"),
    "toy-labelled-dmd": Run(f"{TOY} method=dmd teacher=labelled", 100),
    "toy-labelled-guided": Run(f"{TOY} method=dmd teacher=labelled model.kappa=2", 60),
    "toy-labelled-overguided": Run(f"{TOY} method=dmd teacher=labelled model.kappa=30", 60, "over_guided"),
    "toy-lsd": Run(f"{TOY} method=lsd", 20),
    "toy-pretrain": Run(f"{TOY} method=pretrain", 100),
    "toy-pretrain-rate": Run(f"{TOY} method=pretrain model.student.lr=0.5", 60, "diverged_role"),
    "toy-pretrain-scale": Run(f"{TOY} method=pretrain model.sigma_data=50", 60, "wrong_scale"),
    # digits
    "digits-dmd": Run(f"{DIGITS} method=dmd", 60),
    "digits-dmd-lag": Run(
        f"{DIGITS} method=dmd model.fake_score.lr=1e-7 model.student.lr=2e-3", 60, "lagging_fake_score"
    ),
    "digits-dmd-student-rate": Run(f"{DIGITS} method=dmd model.student.lr=0.05", 60, "high_rate"),
    "digits-dmd-short": Run(f"{DIGITS} method=dmd", 20, "few_updates"),
    "digits-dmd-guided": Run(f"{DIGITS} method=dmd model.kappa=2", 60),
    "digits-dmd-overguided": Run(f"{DIGITS} method=dmd model.kappa=20", 60, "over_guided"),
    "digits-sid": Run(f"{DIGITS} method=sid", 60),
    "digits-sid-lag": Run(
        f"{DIGITS} method=sid model.fake_score.lr=1e-7 model.student.lr=2e-3", 60, "lagging_fake_score"
    ),
    "digits-pretrain": Run(f"{DIGITS} method=pretrain", 40),
    "digits-pretrain-rate": Run(f"{DIGITS} method=pretrain model.student.lr=0.3", 40, "high_rate"),
    "digits-consistency": Run(f"{DIGITS} method=consistency", 40),
    "digits-consistency-rate": Run(f"{DIGITS} method=consistency model.student.lr=0.3", 40, "high_rate"),
    "digits-negative": Run(f"{FILE}/negative.npz method=dmd", 60, "unlike_data"),
    "digits-dark": Run(f"{FILE}/dark.npz method=dmd", 60, "unlike_data"),
    "digits-nine-classes": Run(f"{FILE}/nine.npz method=pretrain", 40, "unseen_class"),
    "digits-short-teacher": Run(f"{DIGITS} method=pretrain {UNSEEN}", 12),
    "digits-unconverged": Run(f"{DIGITS} method=dmd {LEFT}/digits-short-teacher", 60, "unconverged_teacher"),
    "digits-dropless-teacher": Run(f"{DIGITS} method=pretrain model.drop=0 {UNSEEN}", 12),
    "digits-untrained-null": Run(
        f"{DIGITS} method=dmd {LEFT}/digits-dropless-teacher model.kappa=2", 60, "untrained_null"
    ),
    "digits-shuffled-teacher": Run(f"{FILE}/shuffled.npz data.batch_size=32 method=pretrain {UNSEEN}", 250),
    "digits-ignored-class": Run(f"{DIGITS} method=dmd {LEFT}/digits-shuffled-teacher", 60, "ignored_class"),
    "digits-sixteen-teacher": Run(f"{FILE}/sixteen.npz method=pretrain {UNSEEN}", 800),
    "digits-memorised": Run(f"{FILE}/sixteen.npz method=dmd {LEFT}/digits-sixteen-teacher", 60, "memorised"),
    "digits-no-start": Run(
        f"{DIGITS} data=npz vars.event_shape=[1,8,8] data.path={{out}}/negative.npz teacher=diffusers "
        "teacher.path={out}/zero_snr method=dmd vars.callbacks.watch.unlike=true",
        12,
        "no_start",
    ),
    # tokens
    "discrete-lsd": Run("domain=discrete method=lsd vars.callbacks.watch.samples=16 model.num_pairs=64", None),
    "discrete-pretrain": Run(f"{TOKENS} method=pretrain", 16),
    "discrete-pretrain-rate": Run(f"{TOKENS} method=pretrain model.student.lr=5", 16, "high_rate"),
    "discrete-renamed": Run(f"{TOKENS} method=lsd data.path={{out}}/renamed.txt", 3, "unlike_data"),
    # folds
    "protein-dmd": Run(f"{PROTEIN} method=dmd", 240),
    "protein-dmd-lag": Run(
        f"{PROTEIN} method=dmd model.fake_score.lr=1e-7 model.fake_score.updates=1 model.student.lr=1e-2",
        60,
        "lagging_fake_score",
    ),
    "protein-dmd-student-rate": Run(
        f"{PROTEIN} method=dmd model.fake_score.updates=2 model.student.lr=0.05", 60, "high_rate"
    ),
    "protein-consistency": Run(f"{PROTEIN} method=consistency", 24),
    "protein-consistency-rate": Run(f"{PROTEIN} method=consistency model.student.lr=0.1", 24, "high_rate"),
    # clips
    "video-dmd": Run(f"{VIDEO} method=dmd", 120),
    "video-dmd-lag": Run(
        f"{VIDEO} method=dmd model.fake_score.lr=1e-7 model.fake_score.updates=1 model.student.lr=1e-2",
        60,
        "lagging_fake_score",
    ),
    "video-dmd-student-rate": Run(
        f"{VIDEO} method=dmd model.fake_score.updates=2 model.student.lr=0.05", 60, "high_rate"
    ),
    "video-consistency": Run(f"{VIDEO} method=consistency", 24),
    "video-consistency-rate": Run(f"{VIDEO} method=consistency model.student.lr=0.1", 24, "high_rate"),
}
DEFAULT, CONF = "default", Path(__file__).parents[1] / "conf"
for recipe in sorted((CONF / "recipe").glob("**/*.yaml")):
    domain, *stage, method = recipe.relative_to(CONF / "recipe").with_suffix("").parts
    if not stage or (CONF / "stage" / f"{stage[0]}.yaml").is_file():  # others need a pipeline
        words = [f"domain={domain}", *(f"stage={name}" for name in stage), f"method={method}"]
        RUNS["-".join((DEFAULT, domain, *stage, method))] = Run(" ".join(words), None)
# Curves of docs/read_your_curves.md: a broken run, the healthy one beside it, and what is shown
CURVES: dict[str, tuple[str, tuple[str, ...]]] = {
    "toy-dmd-lag": ("toy-dmd", ("spread", "fake_low", "moved")),
    "digits-dmd-lag": ("digits-dmd", ("shift", "fake_low", "moved")),
    "toy-dmd-student-rate": ("toy-dmd", ("raw", "spread", "shift")),
    "digits-dmd-student-rate": ("digits-dmd", ("shift", "spread", "within")),
    "digits-consistency-rate": ("digits-consistency", ("shift", "spread", "within")),
    "toy-dmd-fake-rate": ("toy-dmd", ("fake_low", "fake_high", "moved")),
    "toy-pretrain-rate": ("toy-pretrain", ("skipped_student", "spread", "shift")),
    "toy-labelled-overguided": ("toy-labelled-guided", ("beyond", "spread", "shift")),
    "toy-dmd-ema": ("toy-dmd", ("raw", "moved", "spread")),
    "digits-unconverged": ("digits-dmd", ("spread", "shift", "moved")),
}


METRICS = 5  # of a validation that are shown, the first
LARGE = 20.0  # values above are drawn by their logarithm


def prepare(out: Path) -> None:
    """Writes what some runs need: digits changed, relabelled or few, text renamed, a pipeline."""
    import numpy as np
    from sklearn.datasets import load_digits

    source = load_digits()
    images = (source.images * 255 / 16).round().astype(np.uint8)
    labels = source.target
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    np.savez(out / "negative.npz", images=255 - images, labels=labels)
    np.savez(out / "dark.npz", images=images // 4, labels=labels)
    np.savez(out / "nine.npz", images=images[labels > 0], labels=labels[labels > 0])
    np.savez(out / "shuffled.npz", images=images, labels=rng.permutation(labels))
    np.savez(out / "sixteen.npz", images=images[:20], labels=labels[:20])  # 16 of them train
    prose = Path(argparse.__file__).read_text()
    letters = "abcdefghijklmnopqrstuvwxyz"
    renamed = prose.lower().translate(str.maketrans(letters, letters[::-1]))
    (out / "renamed.txt").write_text(renamed)
    pipeline(out / "zero_snr")


def pipeline(folder: Path) -> None:
    """Writes a tiny pipeline that predicts noise, though its last level has no signal."""
    import diffusers
    import torch

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    size = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "norm_num_groups": 4}
    unet = diffusers.UNet2DModel(**size, **blocks, layers_per_block=1)
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    diffusers.DDIMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Break runs on purpose, and see whether the cause is named.")
    parser.add_argument("--out", type=Path, default=Path("runs/broken"), help="where results go (default runs/broken)")
    parser.add_argument("--only", nargs="+", help="beginnings of the names of runs (default all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default 0")
    parser.add_argument("--table", action="store_true", help="run nothing, print the tables")
    parser.add_argument("--curves", type=Path, help="folder for pictures of the curves of seed 0")
    args = parser.parse_args(argv)
    for start in args.only or ():
        if not any(name.startswith(start) for name in RUNS):
            parser.error(f"--only: no run's name begins with {start!r}; some are {', '.join([*RUNS][::32])}")
    file = args.out / "results.jsonl"
    if args.table and not file.is_file():
        parser.error(f"--table: {args.out} has no results yet")
    if not args.table:
        prepare(args.out)
    done = {(record["name"], record["seed"]) for record in read(file)}
    for seed in [] if args.table else args.seeds:
        for name, run in RUNS.items():
            asked = name.startswith(tuple(args.only)) if args.only else not name.startswith(DEFAULT)
            if asked and (name, seed) not in done:
                record = make(name, run, seed, args.out)
                with file.open("a") as opened:
                    opened.write(json.dumps(record) + "\n")
                print(f"{name}, seed {seed}: {record['seconds']:.0f} s, {named(record)}", flush=True)
    records = read(file)
    print(tables(records))
    if args.curves:
        draw(records, args.curves)
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

    words = [word.replace("{out}", str(out)) for word in run.words.split()]
    words += [f"seed_everything={seed}", *BARE]
    if run.steps is not None:
        words += [f"trainer.max_steps={run.steps}", f"trainer.val_check_interval={max(1, run.steps // 4)}"]
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
        "val": ends(folder / "metrics.csv"),
        "model": traits(model),
        "said": said.getvalue()[-2000:],
    }


def ends(file: Path) -> dict[str, str]:
    """The last value of every `val/*` in metrics.csv."""
    rows = list(csv.DictReader(file.open())) if file.is_file() else []
    return {key[4:]: value for row in rows for key, value in row.items() if key.startswith("val/") and value}


def traits(model: Any) -> dict[str, Any]:
    """What the diagnosis asks a method besides facts."""
    return {} if model is None else {"roles": [*model.roles], "proof": lawful(model)}


def named(record: dict[str, Any]) -> list[str]:
    """The causes that are named in the run, by the diagnosis as it is now."""
    found = dict.fromkeys(record["before"])
    found |= dict.fromkeys(name for name, cause in CAUSES.items() if f"error: {cause.title} (" in record["said"])
    for end in range(1, len(record["history"]) + 1):
        found |= dict.fromkeys(
            f.name for f in diagnose(record["history"][:end], SimpleNamespace(**{"proof": True} | record["model"]))
        )
    return [*found] or ["failed"] * (record["code"] != 0)


def draw(records: list[dict[str, Any]], folder: Path) -> None:
    """Draws FOLDER/NAME.png for every run of `CURVES`: the healthy run grey, the broken one red."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    known = {record["name"]: record for record in records if record["seed"] == 0}
    for name, (healthy, facts) in CURVES.items():
        figure = Figure(figsize=(6.6, 1.7), layout="constrained", dpi=80)
        for axes, fact in zip(figure.subplots(1, len(facts)), facts, strict=True):
            for run, colour in ((healthy, "0.6"), (name, "tab:red")):
                points = [(point["done"], point[fact]) for point in known[run]["history"] if fact in point]
                axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3)
            if max(point.get(fact, 0.0) for point in known[name]["history"]) > LARGE:
                axes.set_yscale("symlog", linthresh=1.0)
            axes.set_title(fact, fontsize=9)
            axes.set_xlim(-0.03, 1.03)
            axes.tick_params(labelsize=7)
        figure.savefig(folder / f"{name}.png")


def tables(records: list[dict[str, Any]]) -> str:
    """Provoked x named; the range of every fact; the facts of every run."""
    lines = ["", "| provoked | runs | named | others too | missed |", "| --- | ---: | ---: | --- | --- |"]
    causes = (None, *CAUSES)
    for cause in causes:
        own = [record for record in records if record["cause"] == cause]
        said = [named(record) for record in own]
        right = sum(cause in names if cause else not names for names in said)
        others = Counter(name for names in said for name in names if name != cause)
        missed = [record["name"] for record, names in zip(own, said, strict=True) if cause and cause not in names]
        if own:
            also = ", ".join(f"{name} {count}" for name, count in others.items())
            lines.append(f"| {cause or 'healthy'} | {len(own)} | {right} | {also} | {', '.join(missed)} |")
    lines += ["", "After half of the run, smallest and largest:", "", "| fact | runs | range |", "| --- | --- | --- |"]
    for fact in dict.fromkeys(fact for record in records for point in record["history"] for fact in point):
        for cause in causes:
            own = [record["history"] for record in records if record["cause"] == cause]
            values = [point[fact] for history in own for point in history if point["done"] >= 0.5 and fact in point]
            if values:
                lines.append(f"| {fact} | {cause or 'healthy'} | {min(values):.3g} to {max(values):.3g} |")
    lines += ["", "| run | seed | cause | named | facts at each validation |", "| --- | ---: | --- | --- | --- |"]
    for record in records:
        facts = "; ".join(
            f"{key} " + " ".join(f"{facts.get(key, float('nan')):.3g}" for facts in record["history"])
            for key in (record["history"] or [{}])[-1]
        )
        lines.append(
            f"| {record['name']} | {record['seed']} | {record['cause']} | {', '.join(named(record))} | {facts} |"
        )
    return "\n".join([*lines, *validated(records)])


def validated(records: list[dict[str, Any]]) -> list[str]:
    """A table for each domain: what validation said at the end of its default runs."""
    own = [record for record in records if record["name"].startswith(DEFAULT) and record.get("val")]
    lines: list[str] = []
    for domain in dict.fromkeys(record["words"][0].partition("=")[2] for record in own):
        among = [record for record in own if record["words"][0] == f"domain={domain}"]
        keys = [*among[0]["val"]][:METRICS]
        lines += ["", f"| {domain} | seed | {' | '.join(keys)} |", f"| --- | ---: |{' ---: |' * len(keys)}"]
        for record in sorted(among, key=lambda record: (record["name"], record["seed"])):
            name = record["name"].removeprefix(f"{DEFAULT}-{domain}-")
            values = [f"{float(record['val'].get(key, 'nan')):.3g}" for key in keys]
            lines.append(f"| `{name}` | {record['seed']} | {' | '.join(values)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
