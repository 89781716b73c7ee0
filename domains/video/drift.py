"""Measures whether long videos stay good: every clip of a student's continuation by itself.

python -m domains.video.drift RUN [RUN ...] --clips 5 --out drift

The first student's teacher is measured too. Writes drift.json, curves (drift.png), and the first
videos, moving.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from distillkit import devices
from distillkit.diffusion.denoiser import Cond
from distillkit.errors import Arguments, UsageError, exit_code, number
from distillkit.files import write_atomic, write_text
from distillkit.rollouts import rolled_out
from distillkit.students.provenance import allow, load, made_with, set_up
from domains.video import media
from domains.video.continuation import LastFrames

SHOWN = ("frechet", "frame_frechet", "class_agreement", "motion_agreement", "motion")
SEED = 1234
PICTURED, COLUMNS = 8, 6


def drift(evaluator: Any, video: Tensor, cond: Cond, frames: int) -> dict[str, list[float]]:
    """Metrics of each clip of long videos, from the first to the last.

    Args:
        evaluator: of clips of `frames` frames.
        video: [N, C, T + (clips - 1) (T - given), H, W], as `rolled_out` makes it.
        cond: its conditions, with `first` [N, C, given, H, W].
        frames: T.
    """
    given = cond["first"].shape[2]
    classes = {name: value for name, value in cond.items() if name != "first"}
    starts = range(0, video.shape[2] - given, frames - given)
    found = [evaluator(video[:, :, start : start + frames], classes) for start in starts]
    return {name: [metrics[name] for metrics in found] for name in found[0]}


def draw(curves: dict[str, dict[str, list[float]]]) -> Figure:
    """A panel for each metric in SHOWN, a line for each model."""
    names = [name for name in SHOWN if name in next(iter(curves.values()))]
    figure = Figure(figsize=(3.2 * len(names), 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for model, metrics in curves.items():
            axes.plot(range(1, len(metrics[name]) + 1), metrics[name], marker="o", markersize=3, label=model)
        axes.set(title=name.replace("_", " "), xlabel="clip")
        axes.set_ylim(bottom=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def asked(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = Arguments(prog="domains.video.drift", description="Measure long videos clip by clip.")
    parser.add_argument(
        "students", nargs="+", help="student folders of stage=continuation, or the run folders around them"
    )
    parser.add_argument("-n", type=number(int, 2), default=240, help="videos of each model (default 240)")
    parser.add_argument(
        "--clips", type=number(int, 1), default=5, help="clips in a row (default 5: 64 frames of clips of 16)"
    )
    parser.add_argument(
        "--teacher", action=argparse.BooleanOptionalAction, default=True, help="measure the teacher too"
    )
    parser.add_argument("--out", type=Path, default=Path("drift"), help="a new folder (default drift)")
    devices.add_flag(parser)
    allow(parser)
    args = parser.parse_args(argv)
    if args.out.exists():
        raise UsageError(f"{args.out} exists already; give another place with --out")
    return args


def loaded(args: argparse.Namespace) -> tuple[dict[str, Callable[..., Tensor]], Any]:
    """The models, each a function `(n, cond, seed) -> clips`, and the data of the first student."""
    students = {path: load(path, args.trust).to(args.device) for path in args.students}
    for path, student in students.items():
        if tuple(student.context) != ("first",):
            raise UsageError(f"{path} is not given first frames, so it cannot go on: train one with stage=continuation")
    own = made_with(students[args.students[0]].config, args.students[0], args.trust, "teacher", "data")
    models = {path: student.sample for path, student in students.items()}
    if args.teacher:
        models = {"teacher": own["teacher"].to(args.device).generate} | models
    set_up(own["data"])
    return models, own["data"]


def table(curves: dict[str, dict[str, list[float]]], clips: int) -> Table:
    """Rows of model and metric, columns of some clips; drift.json has all."""
    columns = sorted({round(k) for k in np.geomspace(1, clips, COLUMNS)})
    shown = Table("model", "metric", *(f"clip {k}" for k in columns))
    for model, metrics in curves.items():
        for name in SHOWN:
            if name in metrics:
                shown.add_row(model, name, *(f"{metrics[name][k - 1]:.3g}" for k in columns))
    return shown


def measure(argv: Sequence[str]) -> None:
    args = asked(argv)
    models, data = loaded(args)
    evaluator, cond, curves = data.evaluator(device=args.device), data.conditions(args.n), {}
    for name, sample in models.items():
        video = rolled_out(sample, LastFrames(), cond, args.clips, SEED)
        curves[name] = drift(evaluator, video, cond, data.event_shape[1])
        first = {key: value[:PICTURED] for key, value in cond.items()}
        media.save(video[:PICTURED], first, args.out / str(len(curves) - 1))
    write_text(args.out / "drift.json", json.dumps({"videos": args.n, "seed": SEED, "models": curves}, indent=1))
    figure = draw(curves)
    write_atomic(args.out / "drift.png", lambda path: figure.savefig(path, format="png", dpi=120))
    Console().print(table(curves, args.clips))
    print(f"curves and videos: {args.out}")


def main(argv: Sequence[str]) -> int:
    return exit_code(measure, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
