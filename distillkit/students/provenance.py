"""Loading a student folder for a command, with the teacher and the data that it was made with."""

from __future__ import annotations

import inspect
from argparse import Action, ArgumentTypeError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from distillkit.errors import Arguments, UsageError
from distillkit.spec import PATHS, Bounded, from_spec, trusted_class
from distillkit.students.base import Student, load_student
from distillkit.teachers.base import BaseTeacher

MOST_DATA = 2**35  # numbers that may be computed for the data that a folder names


def allow(parser: Arguments) -> None:
    """Add the flag that gives a folder additional permissions."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="NAME",
        help="a package whose classes the folder may name, which then runs its code; or a path (with a /) outside of the "
        "folder that it may read, such as its teacher or data (repeatable)",
    )


class Pipeline(Action):
    """`--pipeline DIR`: the place of a student's pipeline, which the folder may read then."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.pipeline, namespace.trust = str(values), [*namespace.trust, str(values.resolve())]


def allow_pipeline(parser: Arguments) -> None:
    """Add the flag that says where the student's pipeline is."""
    parser.add_argument(
        "--pipeline",
        type=place,
        action=Pipeline,
        metavar="DIR",
        help="of a student that was made from a pipeline: where the pipeline is, which may then be read",
    )


class Data(Action):
    """`--data NAME=PATH`: the place of what the data read, which the folder may read then."""

    def __call__(self, parser, namespace, values, option_string=None):
        name, given, text = values.partition("=")
        if not given or name not in PATHS:
            parser.error(f"argument --data: must be NAME=PATH, such as path=DIR, got {values!r}")
        try:
            path = str(place(text).expanduser().resolve())
        except ArgumentTypeError as error:
            parser.error(f"argument --data: {name} {error}")
        namespace.data, namespace.trust = namespace.data | {name: path}, [*namespace.trust, path]


def allow_places(parser: Arguments) -> None:
    """Add the flag that says where the data find what they read."""
    parser.add_argument(
        "--data",
        default={},
        action=Data,
        metavar="NAME=PATH",
        help="where the data find a folder or a file that they are made of or measured with, in place of what the student "
        "says, such as path=DIR (repeatable)",
    )


def placed(config: Mapping[str, Any], places: Mapping[str, str], trust: Sequence[str]) -> dict[str, Any]:
    """The content of a folder's yaml, with these arguments of its data.

    Raises:
        UsageError: its data take no such argument.
    """
    run = config.get("run") or {}
    data = run.get("data")
    if not places or not isinstance(data, dict) or "class_path" not in data:
        return dict(config)
    try:
        kind = trusted_class(data["class_path"], tuple(trust), object)
        inspect.signature(kind).bind_partial(**places)
    except ValueError as error:
        raise UsageError(f"the student's data cannot be built: {error}") from error
    except TypeError:
        known = [name for name in inspect.signature(kind).parameters if name in PATHS]
        raise UsageError(
            f"--data {' '.join(places)} is not what {kind.__name__} reads: there are {', '.join(known) or 'no such names'}"
        ) from None
    return {**config, "run": {**run, "data": {**data, "init_args": {**(data.get("init_args") or {}), **places}}}}


def place(text: str) -> Path:
    """The argparse type of a path; an empty one (an unset variable) would be this folder."""
    if not text:
        raise ArgumentTypeError("is empty: give a file or a folder, . for this one")
    return Path(text)


def load(path: str, trust: Sequence[str], pipeline: str | None = None) -> Student:
    """`load_student` with its errors as UsageError."""
    try:
        return load_student(path, tuple(trust), pipeline=pipeline)
    except ValueError as error:
        raise UsageError(str(error)) from error


def made_with(config: Mapping[str, Any], path: str | Path, trust: Sequence[str], *wanted: str) -> dict[str, Any]:
    """The teacher and the data that a folder says its student or teacher was made with.

    Args:
        config: the content of the folder's yaml.
        path: its folder as typed, in which it may read.
        trust: additional permissions, see `distillkit.spec.from_spec`.
        wanted: `teacher`, `data` or both.

    Raises:
        UsageError: the folder does not name them, or they cannot be built or are not permitted;
            the cause is `Outside` where the folder may not read them.
    """
    recorded = config.get("run") or {}
    lacking = [name for name in wanted if name not in recorded]
    if lacking:
        raise UsageError(
            f"{path} does not say which {' and '.join(lacking)} it was made with (a `run:` in its yaml): "
            "give the run folder that `fit` made"
        )
    try:
        found = from_spec({name: recorded[name] for name in wanted}, tuple(trust), Path(path))
    except ValueError as error:
        raise UsageError(f"the student's {' and '.join(wanted)} cannot be built: {error}") from error
    for name in wanted:
        if not isinstance(found[name], _kind(name)):
            raise UsageError(f"the student's {name} cannot be {repr(recorded[name])[:80]}")
    return found


def _kind(name: str) -> type:
    """The class of `teacher` or of `data`, which imports Lightning; `export` needs neither."""
    if name == "teacher":
        return BaseTeacher
    from distillkit.data import DistillData

    return DistillData


def asked(student: Student, data: Any, num: int) -> dict[str, Tensor]:
    """The conditions of `num` held-out samples of a student folder's data.

    Raises:
        UsageError: the student takes other conditions.
    """
    try:
        return student.checked_condition(num, data.conditions(num))
    except ValueError as error:
        raise UsageError(f"the student cannot be asked what its data say: {error}") from error


def set_up(data: Any) -> None:
    """Read or make the data that a student folder names."""
    try:
        with Bounded(MOST_DATA):
            data.setup()
    except Exception as error:  # a folder's data can be wrong in every way
        said = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UsageError(f"the student's data cannot be read: {said}{error}") from error
