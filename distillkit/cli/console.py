"""Standard output and error: any encoding, and warnings as sentences."""

import codecs
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distillkit.errors import LONGEST, one_line

SIGNS = {"↓": "v", "↑": "^", "→": ">", "×": "x", "–": "-", "−": "-", "…": ".", "•": "*", "─": "-", "━": "-", "█": "#"}


def forgive() -> None:
    """Replace characters that the encoding of stdout or stderr lacks, instead of failing."""
    codecs.register_error("distillkit", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="distillkit")


@contextmanager
def warnings_in_words() -> Iterator[None]:
    """A context in which Python's warnings are lines `warning: ...` without a place in the code.

    Each is said once.
    """
    said: set[str] = set()

    def say(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if (line := one_line(message, LONGEST)) not in said:
            said.add(line)
            print(f"warning: {line}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.showwarning = say
        yield


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SIGNS.get(sign, "?") for sign in error.object[error.start : error.end]), error.end
