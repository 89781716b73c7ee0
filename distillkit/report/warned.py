"""What was warned of in a run: RUN/warnings.json lists `name`, `step`, `title` and `said`."""

from pathlib import Path
from typing import Any

from distillkit.files import read_json
from distillkit.report.numbers import listed

WARNINGS = "warnings.json"
LONGEST = 500  # characters of a text


def read_warnings(run: Path) -> tuple[dict[str, Any], ...]:
    """What was warned of in a run: `name`, `said`, `step`; empty without a readable file.

    The name is the title in words, if there is one. Entries that are damaged are left out, and
    control characters of texts.
    """
    try:
        entries = read_json(Path(run) / WARNINGS)
    except ValueError:
        return ()
    found = []
    for entry in entries if isinstance(entries, list) else ():
        name, said, step = (entry.get(key) if isinstance(entry, dict) else None for key in ("name", "said", "step"))
        title = entry.get("title") if isinstance(entry, dict) else None
        if isinstance(name, str) and _plain(name) and isinstance(step, int) and not isinstance(step, bool):
            said = _plain(said) if isinstance(said, str) else ""
            named = (_plain(title) if isinstance(title, str) else "") or _plain(name).replace("_", " ")
            found.append({"name": named, "said": said, "step": step})
    return tuple(found)


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:LONGEST]).strip()


def warned_of(warned: tuple[dict[str, Any], ...]) -> str:
    """A sentence on the warnings of a run."""
    named = [f"{warning['name']} (step {warning['step']:,})" for warning in warned]
    return f"Warned: {listed(named)}." if named else ""
