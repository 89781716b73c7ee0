"""The verbs on student folders that look at samples: sample, evaluate."""

from __future__ import annotations

import json
import os
import sys
from argparse import SUPPRESS, Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch
from torch import Tensor

from distillkit import cache, devices
from distillkit.cli import prompts
from distillkit.cli.answers import answer
from distillkit.errors import Arguments, Failure, UsageError, moved, number
from distillkit.evaluation.pictures import save_files, save_picture, save_student
from distillkit.files import write_atomic, write_text
from distillkit.rollouts import Continuation, rolled_out
from distillkit.spec import Outside
from distillkit.students.base import CONFIG, Student
from distillkit.students.provenance import allow, allow_pipeline, asked, load, made_with, place, set_up

NAMED = 8  # classes that an error names, at most
NUM_SAMPLES, MOST_SAMPLES = 1000, 10**6  # of an evaluation where nobody says how many, and that a folder may ask for
MOST_SEED = 2**32 - 1  # NumPy's largest


def new_path(path: Path) -> Path:
    """A writable path where nothing exists yet."""
    if os.path.lexists(path):  # a link that leads nowhere too
        raise UsageError(f"{path} exists already; give another place with --out")
    return _writable(path)


def _writable(path: Path) -> Path:
    """A path whose file may be written."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file with --out")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"cannot write to {path}: {there} is no folder that takes it; give another place with --out")
    return path


# ---- sample


def sample(argv: Sequence[str]) -> int:
    """`sample STUDENT -n 64 --seed 1 --out DIR`: samples.npz and a picture, or --input's files."""
    args = _asked_to_sample(argv)
    student = load(args.student, args.trust, args.pipeline).to(args.device)
    if args.input is not None:
        return answer(student, args, new_path(args.out or Path(args.student) / f"samples-{args.seed}"))
    out = new_path(args.out or Path(args.student) / f"samples-{args.seed}")
    goes_on = _continuation(student, args) if args.rollouts > 1 else None
    if texts := prompts.asked(args):
        prompts.give(student, texts, args)
    data, no_picture = _data_of(student, args)
    cond = conditions(student, data, args)
    draw = partial(student.sample, kappa=args.kappa)
    try:
        samples = (
            rolled_out(draw, goes_on, cond, args.rollouts, args.seed) if goes_on else draw(args.n, cond, args.seed)
        )
    except ValueError as error:  # a codec that may not be read, a guidance scale that it was not told
        raise UsageError(str(error)) from error
    write_samples(out / "samples.npz", samples, cond)
    try:
        media = data.media if data is not None else prompts.media(student, bool(texts))
    except ValueError as error:
        media, no_picture = None, f"no picture: {error}"
    if texts:
        write_text(out / "prompts.txt", "".join(f"{texts[i]}\n" for i in cond["prompt"].tolist()))
    if no_picture and media is None:
        print(no_picture)
    print(f"{args.n} samples in {out / 'samples.npz'}: array `samples`, shape {tuple(samples.shape)}")
    if media is not None:
        save_picture(out / "samples.png", media.picture(samples, cond))
        print(f"picture: {out / 'samples.png'}")
        files = save_files(media, samples, cond, out, *([args.n] if texts else []))
        for path in files + save_student(media, student, cond, out):
            print(f"file: {path}")
    return 0


def _asked_to_sample(argv: Sequence[str]) -> Namespace:
    """The arguments of `sample`."""
    parser = Arguments(prog="distillkit sample", description="Draw samples from a student folder.")
    parser.add_argument("student", help="a student folder, or the run folder around it")
    parser.add_argument("-n", type=number(int, 1), help="how many (default 64)")
    parser.add_argument("--seed", type=number(int, 0, MOST_SEED), default=0, help="of the noise (default 0)")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for samples.npz and samples.png, or for what is made of --input (default: samples-SEED beside the student)",
    )
    parser.add_argument(
        "--cond",
        action="append",
        default=[],
        metavar="NAME=CLASS",
        help="one class for all samples, by its number or its name, such as label=3 or timbre=saw (default: classes in turn)",
    )
    parser.add_argument(
        "--kappa", type=number(float, 0), help="guidance scale, of a student that was told it (default: its middle)"
    )
    parser.add_argument(
        "--rollouts",
        type=number(int, 1),
        default=1,
        help="of a student that goes on from its own samples: how many in a row, joined to one (default 1)",
    )
    parser.add_argument("--clips", type=moved("--rollouts"), help=SUPPRESS)
    parser.add_argument(
        "--input",
        type=place,
        metavar="PATH",
        help="of a student whose samples are made for what a file holds (photographs): a file, or a folder of them",
    )
    parser.add_argument(
        "--tile",
        type=number(int, 16),
        help="with --input: side of what is made at once, in pixels (default: the whole)",
    )
    parser.add_argument(
        "--overlap", type=number(int, 0), help="with --tile: pixels that neighbouring tiles share (default 64)"
    )
    prompts.add_flags(parser)
    devices.add_flag(parser)
    allow(parser)
    allow_pipeline(parser)
    args = parser.parse_args(argv)
    if args.input is not None and (args.n or args.cond or args.rollouts > 1):
        raise UsageError("--input asks for one sample of each file: leave out -n, --cond and --rollouts")
    if args.tile and not args.input or args.overlap is not None and not args.tile:
        raise UsageError("--tile and --overlap say how the files of --input are cut: give --input PATH and --tile")
    prompts.check(args)
    args.n = args.n or len(prompts.asked(args)) or 64
    if args.overlap is None:
        args.overlap = min(64, (args.tile or 0) // 4)
    return args


def _continuation(student: Student, args: Namespace) -> Continuation:
    """The student's continuation, else its teacher's.

    Folders of earlier versions do not record it.
    """
    found = student.continuation
    if found is None and student.context and "teacher" in (student.config.get("run") or {}):
        found = made_with(student.config, args.student, args.trust, "teacher")["teacher"].continuation
    if found is None:
        raise UsageError(
            f"--rollouts {args.rollouts}: neither this student nor its teacher says what comes after a sample "
            f"(`continuation` in student.yaml), so it cannot go on from its own"
        )
    return found


def _data_of(student: Student, args: Namespace) -> tuple[Any, str]:
    """The data that the student was made with, and why there is no picture.

    The data are None if they cannot be had.
    """
    needed = _from_data(student)
    if not needed and "data" not in (student.config.get("run") or {}):
        return None, ""
    try:
        data = made_with(student.config, args.student, args.trust, "data")["data"]
    except UsageError as error:
        if needed or not isinstance(error.__cause__, Outside):
            raise
        return None, f"no picture: {error.__cause__}"  # its media belong to the data
    if needed:
        set_up(data)
    return data, ""


def _from_data(student: Student) -> bool:
    """Whether its conditions come from held-out data because its folder carries no examples."""
    return bool(student.context) and not student.examples


def conditions(student: Student, data: Any, args: Namespace) -> dict[str, Tensor]:
    """The conditions of the samples."""
    from_data = _from_data(student)
    cond = asked(student, data, args.n) if from_data else student.default_condition(args.n)
    return cond | chosen(args, student.classes, student.context, student.names, from_data)


def chosen(
    args: Namespace,
    classes: Mapping[str, int],
    context: Sequence[str],
    names: Mapping[str, Sequence[str]],
    from_data: bool = True,
) -> dict[str, Tensor]:
    """The conditions that `--cond` gives to all samples of a model with such conditions.

    A class is given by its number, or else by one of its `names`.
    """
    cond = {}
    for item in args.cond:
        name, _, value = item.partition("=")
        if context:
            raise UsageError(
                f"--cond {item} is not possible: what this model is asked about ({', '.join(context)}) comes "
                f"from {'held-out data' if from_data else 'the examples in its folder'}, with its classes"
            )
        if name in cond:
            raise UsageError(f"--cond {item} comes after another class for all samples: give {name} once")
        if name not in classes:
            possible = ", ".join(f"{key}=0..{count - 1}" for key, count in classes.items()) or "none: it has no classes"
            raise UsageError(f"--cond {item} is not possible; this model's conditions are {possible}")
        cond[name] = torch.full((args.n,), class_of(name, value, classes[name], names.get(name, ())))
    return cond


def class_of(condition: str, text: str, num: int, names: Sequence[str]) -> int:
    """The number of the class that a text means.

    Raises:
        UsageError: there is no such class.
    """
    # macOS stores the accents of a folder's name apart, and keyboards type them in one
    text, *names = (normalize("NFC", each) for each in (text, *names))
    if text.isdecimal() and int(text) < num:
        if text in names and list(names).index(text) != int(text):
            called = f"{condition}={text} is class number {text}, which is called {names[int(text)]!r}"
            print(
                f"note: {called}; the one that is called {text!r} is number {list(names).index(text)}", file=sys.stderr
            )
        return int(text)
    if text in names:
        return list(names).index(text)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    called = f", or {', '.join(map(repr, names[:NAMED]))}{more}" if names else ""
    raise UsageError(f"--cond {condition}={text} is not possible; {condition} is a number from 0 to {num - 1}{called}")


def write_samples(file: Path, samples: Tensor, cond: dict[str, Tensor]) -> None:
    """Samples and conditions as arrays of NumPy."""
    import numpy as np

    arrays = {"samples": samples.numpy(), **{name: value.numpy() for name, value in cond.items()}}

    def write(path: Path) -> None:
        with path.open("wb") as opened:
            np.savez_compressed(opened, **arrays)

    write_atomic(file, write)


# ---- evaluate


def evaluate(argv: Sequence[str]) -> int:
    """`evaluate RUN_OR_STUDENT`: one table, and evaluation.json beside the student."""
    from rich.console import Console

    from distillkit.evaluation import protocol
    from distillkit.report.quality import evaluation_table
    from distillkit.report.warned import read_warnings

    parser = Arguments(
        prog="distillkit evaluate",
        description="Measure a student folder against its teacher, if it had one, and real data.",
    )
    parser.add_argument("student", help="a student folder, or the run folder around it")
    parser.add_argument(
        "--num-samples",
        type=number(int, 2),
        help=f"samples of every model (default: as many as the run itself took, else {NUM_SAMPLES})",
    )
    parser.add_argument("--seed", type=number(int, 0, MOST_SEED), default=1234, help="of the noise (default 1234)")
    parser.add_argument("--out", type=Path, help="the file (default: evaluation.json in the folder)")
    parser.add_argument("--no-cache", action="store_true", help="make the teacher's samples anew, and keep none")
    devices.add_flag(parser)
    allow(parser)
    allow_pipeline(parser)
    args = parser.parse_args(argv)
    kept = None if args.no_cache else cache.of_the_user()
    student = load(args.student, args.trust, args.pipeline).to(args.device)
    taught = "teacher" in {**student.config, **(student.config.get("run") or {})}
    with cache.using(kept):  # of a teacher's texts too
        own = made_with(student.config, args.student, args.trust, *(["teacher"] if taught else []), "data")
    teacher, data = _teacher_of(student, own["teacher"]).to(args.device) if taught else None, own["data"]
    set_up(data)
    asked(student, data, 2)
    kappa, num = student.config.get("kappa", 1.0), args.num_samples or _num_samples(student)
    path = _writable(args.out or Path(args.student) / "evaluation.json")
    with cache.using(kept):
        result = protocol.evaluate(data, teacher, student, num, args.seed, kappa)
    write_text(path, json.dumps(result, indent=1))
    folder = Path(args.student)
    run = folder.parent if (folder / CONFIG).is_file() else folder
    Console().print(evaluation_table(result, student.config, read_warnings(run)))
    print(f"evaluation: {path}")
    return 0


def _num_samples(student: Student) -> int:
    """As many samples as the run's own evaluation took, or `NUM_SAMPLES` where it is not known."""
    own = student.config.get("num_samples")
    return own if type(own) is int and 2 <= own <= MOST_SAMPLES else NUM_SAMPLES


def _teacher_of(student: Student, teacher: Any) -> Any:
    """The teacher, if it still is the one that the student was made from."""
    if "decoder" not in student.config:
        student.codec = teacher.codec  # the same one; folders of earlier versions name none
    if teacher.fingerprint() != (student.config.get("teacher") or {}).get("hash"):
        raise Failure(
            "the teacher has changed since this student was made, so it is not the one to compare with: restore it"
        )
    if student.event_shape != teacher.event_shape:
        shapes = f"{list(student.event_shape)} and {list(teacher.event_shape)}"
        raise UsageError(f"the student cannot be compared with its teacher: their samples have the shapes {shapes}")
    return teacher
