"""`optimize`: the noise whose samples have what is asked for (DITTO, DITTO-2)."""

from __future__ import annotations

import json
import math
import re
from argparse import ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import distillkit
from distillkit import devices
from distillkit.cli import catalogue, config, prompts
from distillkit.cli.products import MOST_SEED, chosen, conditions, new_path, write_samples
from distillkit.control import routes
from distillkit.control.control import Asked, Control
from distillkit.control.noise import LR, STEPS, Found, NoiseOptimizer
from distillkit.control.routes import Route
from distillkit.errors import Arguments, Failure, UsageError, did_you_mean, number
from distillkit.evaluation.pictures import labelled, overlay, save_files, save_picture
from distillkit.files import read_yaml, write_text
from distillkit.progress import calls, duration
from distillkit.report import numbers
from distillkit.students.provenance import allow, allow_pipeline, allow_places, load, made_with, placed, set_up
from distillkit.teachers.base import CONFIG
from distillkit.teachers.saved import SavedTeacher

Cond = dict[str, Tensor]  # conditions by name, [n, ...] each

CHUNK = 16  # samples that are optimised at once
MOST_SHOWN = 8  # samples in the table and in the picture of curves
LOST = 2.0  # times the error of one step, from which the sampler's is told
STAGES = ("before", "surrogate", "decoded", "heard")  # of what errors are told


def optimize(argv: Sequence[str]) -> int:
    """`optimize STUDENT --control NAME=TARGET --out DIR`: samples, their noise, errors, curves."""
    args = _arguments(argv)
    out = new_path(args.out or Path(args.student) / f"optimized-{args.seed}")
    model, route, data, cond = _model(args)
    set_up(data)
    controls, weights = _controls(args.control, Asked(route.event_shape, route.codec, data, model, cond, args.n))

    def seen(rows: slice) -> Cond:
        """The conditions of some rows as the network sees them."""
        own = {name: value[rows].to(args.device) for name, value in cond.items()}
        return dict(route.codec.conditions(own, route.event_shape))

    noise = route.noise(args.n, cond, args.seed)
    optimizer = NoiseOptimizer(route, [*controls.values()], args.steps, args.lr, args.project, args.tolerance, weights)
    with calls("finding the noise", route.denoiser, args.n * route.calls * (args.steps + 1)) as counter:
        found = _found(optimizer, noise, seen, args.device)
    before, after = (route.decode(z, cond) for z in (noise, found.noise))
    if not after.isfinite().all():
        raise Failure("the model's samples are NaN or infinite, so there is nothing to ask of them: train it anew")

    def decoded(rows: slice) -> Tensor:
        return route.codec.decode(after[rows].to(args.device), seen(rows))

    samples = devices.in_chunks(decoded, args.n, CHUNK)
    errors = _errors(route, controls, (before, found.noise, after, samples), seen, args.device)
    report = _report(args, route, controls, weights, found, errors, cond, counter.done)
    write_samples(out / "samples.npz", samples, {"noise": found.noise, **cond})
    write_text(out / "control.json", json.dumps(report, indent=1, allow_nan=False))
    Console().print(_table(report))
    for sentence in _remarks(report, found):
        print(sentence)
    print(f"{args.n} samples in {out / 'samples.npz'}, errors in {out / 'control.json'}")
    media = data.media
    save_picture(out / "samples.png", media.picture(samples, cond))
    print(f"picture: {out / 'samples.png'}")
    if strips := _curves(controls, after, seen, args.device):
        save_picture(out / "control.png", labelled(strips))
        print(f"target and achieved: {out / 'control.png'}")
    for path in save_files(media, samples, cond, out, args.n):
        print(f"file: {path}")
    return 0


def _arguments(argv: Sequence[str]) -> Namespace:
    """The arguments of `optimize`."""
    parser = Arguments(
        prog="distillkit optimize",
        description="Find the noise whose samples have what is asked for (DITTO-2, and DITTO with --through teacher).",
    )
    parser.add_argument("student", help="a student folder, or the run folder around it; or a teacher folder")
    parser.add_argument(
        "--control",
        action="append",
        required=True,
        metavar="NAME[=TARGET]",
        help="what samples should be, such as intensity=ramp:-40:-10; an unknown name lists those of the student's data "
        "(repeatable: losses are added, each times its weight, such as 0.5 in 0.5*intensity=-30)",
    )
    parser.add_argument("-n", type=number(int, 1), default=4, help="how many samples (default 4)")
    parser.add_argument("--seed", type=number(int, 0, MOST_SEED), default=0, help="of the noise (default 0)")
    parser.add_argument("--steps", type=number(int, 0), default=STEPS, help=f"steps of Adam (default {STEPS})")
    parser.add_argument("--lr", type=number(float, 1e-9), default=LR, help=f"learning rate of Adam (default {LR})")
    parser.add_argument(
        "--project",
        action=BooleanOptionalAction,
        default=True,
        help="keep each noise at the norm of Gaussian noise, the root of its size (default: yes)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="a sample whose loss is not above it is done (default 0)"
    )
    parser.add_argument(
        "--through",
        choices=("student", "step", "teacher"),
        help="the gradient's way: all steps of the student; one step in place of them (DITTO-2); or 20 steps of its teacher, "
        "which makes the samples too (default: student; teacher of a teacher folder)",
    )
    parser.add_argument(
        "--decode-steps", type=number(int, 1, 1000), help="steps that make the student's samples (default: its own)"
    )
    parser.add_argument("--out", type=Path, help="folder for what is made (default: optimized-SEED beside the student)")
    parser.add_argument(
        "--cond",
        action="append",
        default=[],
        metavar="NAME=CLASS",
        help="one class for all samples, by its number or its name, such as label=3 or timbre=saw (default: classes in turn)",
    )
    parser.add_argument(
        "--kappa",
        type=number(float, 0),
        help="guidance scale, of a teacher (default: the student's, else 1) or of a student that was told it (default: its "
        "middle)",
    )
    prompts.add_flags(parser)
    devices.add_flag(parser)
    allow(parser)
    allow_pipeline(parser)
    allow_places(parser)
    args = parser.parse_args(argv)
    args.input = None
    prompts.check(args)
    if not math.isfinite(args.tolerance):
        raise UsageError(f"--tolerance must be a finite number, got {args.tolerance}")
    return args


# ---- what it is done with


def _model(args: Namespace) -> tuple[Any, Route, Any, Cond]:
    """The model, the way through it, its data and the conditions of its samples."""
    try:
        if (Path(args.student) / CONFIG).is_file():
            return _of_teacher_folder(args)
        student = load(args.student, args.trust, args.pipeline).to(args.device)
        if args.through == "teacher":
            return _of_students_teacher(student, args)
        args.through = args.through or "student"
        route = routes.of_student(student, args.decode_steps, args.through == "step")
        data = _made(student.config, args, "data")["data"]
        if texts := prompts.asked(args):
            prompts.give(student, texts, args)
        cond = student.checked_condition(args.n, _conditions(student, data, args), args.kappa)
        return student, route, data, cond
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def _conditions(student: Any, data: Any, args: Namespace) -> Cond:
    if student.context and not student.examples:
        set_up(data)
    return conditions(student, data, args)


def _of_students_teacher(student: Any, args: Namespace) -> tuple[Any, Route, Any, Cond]:
    _refuse_flags_of_students(args)
    own = _made(student.config, args, "teacher", "data")
    teacher = own["teacher"].to(args.device)
    kappa = float(student.config.get("kappa", 1.0)) if args.kappa is None else args.kappa
    cond = {name: _conditions(student, own["data"], args)[name] for name in (*teacher.classes, *teacher.context)}
    return teacher, routes.of_teacher(teacher, kappa), own["data"], cond


def _of_teacher_folder(args: Namespace) -> tuple[Any, Route, Any, Cond]:
    if args.through in ("student", "step"):
        raise UsageError(
            f"{args.student} holds a teacher: leave --through {args.through} out, or give a student's folder"
        )
    args.through = "teacher"
    _refuse_flags_of_students(args)
    teacher = SavedTeacher(str(args.student), args.trust).to(args.device)
    route = routes.of_teacher(teacher, 1.0 if args.kappa is None else args.kappa)
    data = _data_of_teacher(teacher, args)
    cond = teacher.condition(data.conditions(args.n))
    return teacher, route, data, cond | chosen(args, teacher.classes, teacher.context, data.names)


def _data_of_teacher(teacher: Any, args: Namespace) -> Any:
    """The data that a teacher folder was made with, or those of its domain where it is shipped."""
    recorded = read_yaml(Path(args.student) / CONFIG)
    domain = recorded.get("domain")
    if "run" in recorded or domain not in catalogue.groups().get("domain", ()):
        return _made(recorded, args, "data")["data"]
    own = config.hand_over(config.compose([f"domain={domain}", "method=pretrain"])[0], ("data",))
    data = _made({"run": own}, args, "data")["data"]
    set_up(data)
    if (data.classes, tuple(data.context)) != (teacher.classes, tuple(teacher.context)):
        raise UsageError(
            f"{args.student} does not say which data it was made with, and those of domain={domain} are others: give a student "
            f"of it, as `fit domain={domain}` makes one, with --through teacher"
        )
    return data


def _made(recorded: Mapping[str, Any], args: Namespace, *wanted: str) -> dict[str, Any]:
    """What a folder says that it was made with, its data where `--data` says."""
    return made_with(placed(recorded, args.data, args.trust), args.student, args.trust, *wanted)


def _refuse_flags_of_students(args: Namespace) -> None:
    for flag, given in (("--decode-steps", args.decode_steps), ("--prompt", prompts.asked(args))):
        if given:
            raise UsageError(f"{flag} is for samples of a student, and a teacher makes them here: leave it out")


def _controls(typed: Sequence[str], asked: Asked) -> tuple[dict[str, Control], list[float]]:
    """The controls that the command line asks for, by what was typed, and their weights."""
    known, found, weights = asked.data.controls, {}, {}
    for text in typed:
        weights[text], rest = _weight(text)
        name, _, target = rest.partition("=")
        if text in found:
            raise UsageError(f"--control {text} is given twice: say it once, or with its weight, such as 2*{rest}")
        if not known:
            raise UsageError(
                f"--control {text}: nothing can be asked of samples of {type(asked.data).__name__}, whose data module has no "
                f"`controls`"
            )
        if name not in known:
            raise UsageError(
                f"--control {text}: there is no {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}"
            )
        try:
            found[text] = known[name].read(target, asked)
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"--control {text}: {error}") from error
    return found, [*weights.values()]


def _weight(text: str) -> tuple[float, str]:
    """The weight of a control such as `0.5*melody=A4`, 1 if it has none, and what is left."""
    weight, star, rest = text.partition("*")
    if not star or not re.fullmatch(r"[\d.]+(e[+-]?\d+)?", weight):
        return 1.0, text
    try:
        return number(float, 1e-9, 1e9)(weight), rest
    except (ValueError, ArgumentTypeError):
        raise UsageError(f"--control {text}: its weight must be a number from 1e-9 to 1e9, got {weight}") from None


# ---- finding and measuring


def _found(optimizer: NoiseOptimizer, noise: Tensor, seen: Callable[[slice], Cond], device: torch.device) -> Found:
    """The optimiser's result for all noise, some samples at a time."""
    parts: list[Found] = []

    def part(rows: slice) -> Tensor:
        parts.append(optimizer(noise[rows].to(device), seen(rows)))
        return parts[-1].noise

    devices.in_chunks(part, len(noise), CHUNK)
    return Found.joined(parts)


@torch.no_grad()
def _errors(
    route: Route,
    controls: Mapping[str, Control],
    made: tuple[Tensor, Tensor, Tensor, Tensor],
    seen: Callable[[slice], Cond],
    device: torch.device,
) -> Tensor:
    """The error of each sample, control and stage, [n, controls, 4].

    Args:
        route, controls: what made the samples, and for what.
        made: samples of the noise before, noise found, its samples, these as data.
        seen: conditions of rows.
        device: that computes.
    """

    def part(rows: slice) -> Tensor:
        own, (before, z, after, data) = seen(rows), (x[rows].to(device) for x in made)
        surrogate = route(z, own)
        told = [
            (each.error(before, own), each.error(surrogate, own), each.error(after, own), each.heard(data, own))
            for each in controls.values()
        ]
        return torch.stack([torch.stack([error.float() for error in errors], 1) for errors in told], 1)

    return devices.in_chunks(part, len(made[0]), CHUNK)


@torch.no_grad()
def _curves(
    controls: Mapping[str, Control], after: Tensor, seen: Callable[[slice], Cond], device: torch.device
) -> dict[str, Any]:
    """Pictures of target and achieved of the first samples, by their names."""
    strips = {}
    for text, control in controls.items():
        for i in range(min(len(after), MOST_SHOWN)):
            rows = slice(i, i + 1)
            if curves := control.curves(after[rows].to(device), seen(rows)):
                strips[f"{control.name} {i}"] = overlay(curves, control.seconds, text)
    return strips


# ---- what is told


def _report(
    args: Namespace,
    route: Route,
    controls: Mapping[str, Control],
    weights: Sequence[float],
    found: Found,
    errors: Tensor,
    cond: Cond,
    network_calls: int,
) -> dict[str, Any]:
    """The content of control.json."""
    names = [*controls]
    rows = [
        {
            "cond": {name: value[i].item() for name, value in cond.items() if value.ndim == 1},
            "steps": int(found.taken[i]),
            "skipped": int(found.skipped[i]),
            "loss": _plain(found.history[i, : found.taken[i] + 1].tolist()),
            "errors": {
                name: dict(zip(STAGES, _plain(errors[i, k].tolist()), strict=True)) for k, name in enumerate(names)
            },
        }
        for i in range(args.n)
    ]
    mean = errors.mean(0)
    return {
        "distillkit": distillkit.__version__,
        "model": str(args.student),
        "through": args.through,
        "controls": {
            text: {"name": control.name, "unit": control.unit, "weight": weight}
            for (text, control), weight in zip(controls.items(), weights, strict=True)
        },
        "seed": args.seed,
        "steps": args.steps,
        "lr": args.lr,
        "project": args.project,
        "tolerance": args.tolerance,
        "decode_steps": route.decode_steps,
        "device": str(args.device),
        "seconds": round(found.seconds, 3),
        "network_calls": network_calls,
        "mean": {name: dict(zip(STAGES, _plain(mean[k].tolist()), strict=True)) for k, name in enumerate(names)},
        "samples": rows,
    }


def _plain(values: Sequence[float]) -> list[float | None]:
    """Numbers as JSON can hold them; None for those that are not finite."""
    return [value if math.isfinite(value) else None for value in values]


def _table(report: Mapping[str, Any]) -> Table:
    """The errors of the first samples and of their mean."""
    title = f"{numbers.number(report['network_calls'])} samples through the network in {duration(report['seconds'])}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="")
    for heading in ("", "control", *STAGES):
        table.add_column(heading, justify="left" if heading in ("", "control") else "right")
    shown = [(str(i), row["errors"]) for i, row in enumerate(report["samples"][:MOST_SHOWN])]
    for label, errors in [*shown, ("mean", report["mean"])]:
        for text, told in errors.items():
            unit = report["controls"][text]["unit"]
            name = report["controls"][text]["name"] + (f" ({unit})" if unit else "")
            style = "bold" if label == "mean" else ""
            table.add_row(label, name, *(numbers.number(told[stage]) for stage in STAGES), style=style)
    return table


def _remarks(report: Mapping[str, Any], found: Found) -> list[str]:
    """Sentences on what went wrong."""
    said, tried = [], found.taken > 0
    if skipped := int(found.skipped.sum()):
        said.append(f"Left out were {skipped} steps of single samples, whose gradients were NaN or infinite.")
    if stuck := int((tried & (found.loss >= found.history[:, 0])).sum()):
        said.append(
            f"No better noise was found for {stuck} of {len(tried)} samples: give another --lr or more --steps."
        )
    for text, mean in report["mean"].items():
        before, surrogate, decoded = (mean[stage] for stage in STAGES[:3])
        if None not in (before, surrogate, decoded) and decoded > LOST * surrogate and surrogate < before:
            said.append(
                f"{text}: one step gives {numbers.number(surrogate)}, the {report['decode_steps']} steps of the sampler "
                f"{numbers.number(decoded)}, for which one step stands in badly: leave --through step out."
            )
    return said
