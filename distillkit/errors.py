"""Errors for users: one sentence with the given value and the mend."""

import argparse
import difflib
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, NoReturn

LONGEST = 5000  # characters of a sentence that may hold commands and paths, which must not be cut


class UsageError(ValueError):
    """A wrong command or a wrong value in it; shown as one sentence, exit code 2."""


class Failure(RuntimeError):
    """A right command that cannot be done (no space, no permission); one sentence, exit code 1."""


class Interrupted(Failure):
    """A run that was told to stop and has saved its state; one sentence, exit code 130."""


class Arguments(argparse.ArgumentParser):
    """An argparse parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog.split()[-1]}: {message} (see --help)")


def number(kind: type, least: float, most: float = math.inf) -> Callable[[str], Any]:
    """The argparse type of a finite int or float (`kind`) from `least` to `most`."""

    def read(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:
            bounds = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be {bounds}, got {text}")
        if value == math.inf:
            raise argparse.ArgumentTypeError(f"must be finite, got {text}")
        return value

    read.__name__ = kind.__name__  # the name in argparse's errors
    return read


def moved(flag: str) -> Callable[[str], Any]:
    """The argparse type of an argument of earlier versions: its error names the new one."""

    def read(text: str) -> NoReturn:
        raise argparse.ArgumentTypeError(f"it is {flag} now, so type {flag} {text}")

    return read


def did_you_mean(name: str, names: Iterable[str], prefix: str = "", show: int = 3) -> str:
    """` (did you mean 'a' or 'b'?)`, or nothing without a near name; `prefix` goes before each."""
    known = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), known, n=show, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(prefix + known[other]) for other in near)}?)" if near else ""


def pasted(*words: object) -> str:
    """A distillkit command for a shell: `pasted("fit", "--config", path)`."""
    return shlex.join(["python", "-m", "distillkit", *map(str, words)])


def install(extra: str) -> str:
    """The command that installs an extra, as typed in a shell."""
    return f"pip install 'distillkit[{extra}]'"


def optional(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: its name.
        extra: the extra that installs it.
        purpose: the start of the sentence that names the package, such as "videos are read with".

    Raises:
        UsageError: it does not import.
    """
    try:
        return import_module(module)
    except Exception as error:  # broken builds raise much else than ImportError
        package = module.partition(".")[0]
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise UsageError(f"{purpose} {package}, which does not import here ({reason}): {install(extra)}") from None


def one_line(error: BaseException | str, limit: int = 500) -> str:
    """The message in one line, cut at `limit` characters; control characters are escaped."""
    text = re.sub(r"\s*[\r\n]\s*", " ", str(error).strip())
    text = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def exit_code(work: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run a command line and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    try:
        work(argv)
    except (UsageError, Failure) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0
