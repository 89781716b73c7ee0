"""Standard output and error as they are: of any encoding, and for people."""

import codecs
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distillkit.errors import LONGEST, one_line

SIGNS = {"↓": "v", "↑": "^", "→": ">", "×": "x", "–": "-", "−": "-", "…": ".", "•": "*", "─": "-", "━": "-", "█": "#"}


def forgive() -> None:
    """Let standard output and error replace the signs that their encoding lacks, where they would fail a finished run."""
    codecs.register_error("distillkit", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="distillkit")


@contextmanager
def warnings_in_words() -> Iterator[None]:
    """Python's warnings are lines such as `warning: ...` on standard error, without the place in the code that gave them."""
    with warnings.catch_warnings():
        warnings.showwarning = _say
        yield


def _say(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    print(f"warning: {one_line(message, LONGEST)}", file=sys.stderr, flush=True)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SIGNS.get(sign, "?") for sign in error.object[error.start : error.end]), error.end
