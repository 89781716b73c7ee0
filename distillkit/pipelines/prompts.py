"""Texts of a user: files of prompts, and captions beside data."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

CAPTIONS = ("captions.csv", "metadata.csv", "metadata.jsonl", "prompts.jsonl", "prompts.txt")  # of a folder
COLUMNS = ("caption", "prompt", "text")  # of a table, the first one that it has


def read_prompts(path: str) -> list[str]:
    """The different prompts of a file or a folder, in its order.

    A prompt is a line of a text file, an entry of the column `caption`, `prompt` or `text` of a
    .csv file, or that key of each line of a .jsonl file. Of a folder the file among `CAPTIONS` is
    read, else the .txt files in it, one prompt each, in the order of their names.

    Raises:
        ValueError: there is no such file, it has no prompt, or no such column.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        named = [file / name for name in CAPTIONS if (file / name).is_file()]
        found = read_prompts(str(named[0])) if named else list(_beside(file))
    elif file.is_file():
        found = list(_lines(file))
    else:
        raise ValueError(f"there is no file of prompts {path}: give a text file with one a line, or a captions.csv")
    if not (prompts := distinct(found)):
        raise ValueError(f"{path} has no prompts: write one a line")
    return prompts


def distinct(texts: Iterable[str | None]) -> list[str]:
    """The different texts that are not empty, without blanks around them, in their order."""
    return list(dict.fromkeys(text.strip() for text in texts if text and text.strip()))


def _lines(file: Path) -> Iterator[str | None]:
    """Yields the prompts of a file."""
    with file.open(newline="", encoding="utf-8") as lines:
        if file.suffix.lower() == ".csv":
            rows = csv.DictReader(lines)
            column = next((name for name in COLUMNS if name in (rows.fieldnames or ())), None)
            if column is None:
                raise ValueError(f"{file} must have a column `caption`, named in its first line")
            yield from (row[column] for row in rows)
        elif file.suffix.lower() == ".jsonl":
            for number, line in enumerate(filter(str.strip, lines), 1):
                try:
                    row = json.loads(line)
                    text = row if isinstance(row, str) else next(row[name] for name in COLUMNS if name in row)
                except (ValueError, TypeError, StopIteration, RecursionError):
                    raise ValueError(f"line {number} of {file} holds no {' or '.join(COLUMNS)}: mend it") from None
                yield text if isinstance(text, str) else None
        else:
            yield from lines


def _beside(folder: Path) -> Iterator[str]:
    """Yields the texts of the .txt files in a folder and below."""
    for file in sorted(folder.rglob("*.txt")):
        if not any(part.startswith(".") for part in file.relative_to(folder).parts):
            yield file.read_text(encoding="utf-8")
