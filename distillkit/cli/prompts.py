"""`sample --prompt`: a student of a pipeline is asked for what a text says."""

from __future__ import annotations

from argparse import Namespace
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from distillkit import cache
from distillkit.errors import Arguments, UsageError
from distillkit.students.base import Student
from distillkit.students.few_step import FewStepStudent


def add_flags(parser: Arguments) -> None:
    """Add the flags for texts."""
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="of a student that was made from a pipeline: what to make (repeatable; -n samples take them in turn)",
    )
    parser.add_argument("--prompts", metavar="FILE", help="the same from a file: one a line, or a captions.csv")
    parser.add_argument(
        "--negative", metavar="TEXT", help="what guidance leads away from, of a student that calls its teacher"
    )


def check(args: Namespace) -> None:
    """Refuse flags that do not go together."""
    if args.prompt and args.prompts:
        raise UsageError("--prompt and --prompts both say what to make: give one of them")
    if args.negative is not None and not (args.prompt or args.prompts):
        raise UsageError("--negative says what --prompt is led away from: give --prompt TEXT too")
    if (args.prompt or args.prompts) and (args.cond or args.input):
        raise UsageError("--prompt says what to make: leave out --cond and --input")


def asked(args: Namespace) -> list[str]:
    """The texts that a command asks for."""
    if not args.prompts:
        return [text.strip() for text in args.prompt]
    from distillkit.pipelines.prompts import read_prompts

    try:
        return read_prompts(args.prompts)
    except ValueError as error:
        raise UsageError(str(error)) from error


def give(student: Student, texts: list[str], args: Namespace) -> None:
    """Give the student these texts as its classes; the encoders of its pipeline read them."""
    from distillkit.pipelines.teacher import ask

    if not all(texts):
        raise UsageError("--prompt is empty: say what to make")
    if args.negative is not None and isinstance(student, FewStepStudent):
        raise UsageError(
            "--negative changes nothing: guidance is in this student's weights, so its negative prompt is the one it was "
            "trained with (teacher.negative_prompt); leave it out"
        )
    try:
        with cache.using(cache.of_the_user()):
            ask(student, texts, negative_prompt=args.negative)
    except ValueError as error:
        raise UsageError(str(error)) from error


def media(student: Student, asked: bool) -> Any:
    """How the student's domain shows samples, where its data cannot be had; None if it does not.

    A domain's `media.of(codec, shown)` is asked where what is shown depends on the codec (a sample
    rate), or on what the folder keeps as `DistillData.shown`. Other media show what texts `asked`
    for alone: without data they cannot tell what samples are.

    Raises:
        ValueError: the folder does not say enough.
    """
    known = {each.name for each in iter_modules(find_spec("domains").submodule_search_locations)}
    domain = str(student.config.get("domain"))  # as the folder says: anything
    if domain not in known or not find_spec(f"domains.{domain}.media"):
        return None
    found = import_module(f"domains.{domain}.media")
    if hasattr(found, "of"):
        return found.of(student.codec, student.config.get("shown"))
    return found if asked else None
