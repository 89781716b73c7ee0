"""Standard output and error as they are: of any encoding."""

import codecs
import sys

SIGNS = {"↓": "v", "↑": "^", "→": ">", "×": "x", "–": "-", "−": "-", "…": ".", "•": "*", "─": "-", "━": "-", "█": "#"}


def forgive() -> None:
    """Let standard output and error replace the signs that their encoding lacks, where they would fail a finished run."""
    codecs.register_error("distillkit", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="distillkit")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SIGNS.get(sign, "?") for sign in error.object[error.start : error.end]), error.end
