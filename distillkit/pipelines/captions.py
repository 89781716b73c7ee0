"""Captions of a user's data: tables of texts, and texts beside data."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from distillkit.sources import Source

CAPTIONS = ("captions.csv", "metadata.csv", "metadata.jsonl", "prompts.jsonl", "prompts.txt")  # of a folder
COLUMNS = ("caption", "prompt", "text")  # of a table, the first one that it has
NAMES = ("file", "file_name")  # the column with the data that a text describes


def caption_in(row: Mapping[str, Any]) -> str | None:
    """The caption of a row, the first one of several; None if it has none.

    Raises:
        StopIteration: the row has no such column.
    """
    text = next(row[name] for name in COLUMNS if name in row)
    text = text[0] if isinstance(text, list) and text else text
    return text.strip() if isinstance(text, str) and text.strip() else None


def distinct(texts: Iterable[str | None]) -> list[str]:
    """The different texts that are not empty, without blanks around them, in their order."""
    return list(dict.fromkeys(text.strip() for text in texts if text and text.strip()))


def table(folder: Path) -> Path | None:
    """The file with the captions of a folder, one of `CAPTIONS`; None if there is none."""
    return next((folder / name for name in CAPTIONS if (folder / name).is_file()), None)


def captions_of(folder: Path, files: Sequence[str]) -> list[list[str]]:
    """The different captions of each data file of a folder, in their order; [] where it has none.

    They stand in the folder's `table`, one a row, else in a .txt file of the same name beside the
    data.

    Args:
        folder: the folder.
        files: paths below it, with `/`.

    Raises:
        ValueError: the table cannot be read.
    """
    if (file := table(folder)) is not None:
        known: dict[str, list[str | None]] = {}
        for name, text in said(file):
            if name:
                known.setdefault(alike(name), []).append(text)
        return [distinct(known.get(alike(name), ())) for name in files]
    beside = [(folder / name).with_suffix(".txt") for name in files]
    return [distinct([_text(path)]) if path.is_file() else [] for path in beside]


def alike(name: str) -> str:
    """A path as names in a table and names of files are compared.

    Windows writes other slashes, and systems write a letter with an accent as one sign or as two.
    """
    return unicodedata.normalize("NFC", str(PurePosixPath(name.replace("\\", "/"))))


def numbered(captions: Iterable[str | None], prompts: Sequence[str], source: object) -> list[int | None]:
    """The number of each caption among the prompts of the same source; None where there is none.

    Raises:
        ValueError: a caption is not among them: the source says its prompts in another way.
    """
    number = {text: i for i, text in enumerate(prompts)}
    captions = list(captions)
    if lacking := [text for text in captions if text and text not in number]:
        raise ValueError(
            f"{source} has the caption {lacking[0]!r:.60}, but its prompts are read from elsewhere in it: keep captions of one "
            f"kind there, a table, shards or .txt files"
        )
    return [number[text] if text else None for text in captions]


def said(file: Path) -> Iterator[tuple[str | None, str | None]]:
    """Yields the texts of a file of prompts, each after the name of what it describes, if any.

    Raises:
        ValueError: it is not what its suffix says, or has no such column.
    """
    try:
        yield from _said(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error) from None


class Rows(csv.DictReader):
    """The rows of an open .csv file, none of which may have more cells than the first line.

    Blanks behind a comma count for nothing, so that quotes may follow them.

    Args:
        file: its path, for errors.
        lines: the open file.
    """

    def __init__(self, file: Path, lines: Iterable[str]):
        super().__init__(lines, skipinitialspace=True)
        self.file = file

    def __next__(self) -> dict[str, str | None]:
        row = super().__next__()
        if any(map(str.strip, row.pop(None, ()))):  # else a text would end at its first comma
            raise ValueError(
                f"line {self.line_num} of {self.file} has too many cells: put a text with commas in quotes"
            )
        return row


def _said(file: Path) -> Iterator[tuple[str | None, str | None]]:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        if file.suffix.lower() == ".csv":
            rows = Rows(file, lines)
            if not set(COLUMNS) & set(rows.fieldnames or ()):
                raise ValueError(f"{file} must have a column `caption`, named in its first line")
            yield from ((_name(row), caption_in(row)) for row in rows)
        elif file.suffix.lower() == ".jsonl":
            for number, line in enumerate(filter(str.strip, lines), 1):
                try:
                    row = json.loads(line)
                    row = {"text": row} if isinstance(row, str) else row
                    text = caption_in(row)
                except (ValueError, TypeError, StopIteration, RecursionError):
                    raise ValueError(f"line {number} of {file} holds no {' or '.join(COLUMNS)}: mend it") from None
                yield _name(row), text
        else:
            yield from ((None, line) for line in lines)


def _name(row: Mapping[str, Any]) -> str | None:
    found = next((row[name] for name in NAMES if name in row), None)
    return found if isinstance(found, str) else None


def texts_in(folder: Path) -> Iterator[str]:
    """Yields the texts of the .txt files in a folder and below, those beside data too."""
    yield from map(_text, Source(folder, (".txt",), "prompt").files)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} cannot be read ({error}): save it as UTF-8, a table with closed quotes")
