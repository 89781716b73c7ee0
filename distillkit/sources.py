"""Folders as sources of data: the files that are read, and warnings about the others."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from distillkit.feeding import THREADS
from distillkit.files import write_text
from distillkit.progress import progress

T = TypeVar("T")
FORMAT = 1  # version of the index
PAUSE = 15.0  # seconds of looking at files after which the index is written
HIDDEN = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")  # files of systems, without a dot
NAMED = 10  # files in a sentence, at most


class Source:
    """The data files of a folder and its sub-folders, in the order of their names.

    Hidden files and folders (names that begin with a dot, and `HIDDEN`) are ignored. Links are
    followed, but every file counts once, under its own name before that of a link to it.

    Args:
        path: the folder; `~` is understood.
        suffixes: suffixes of the files that are read, in lower case; files may have capitals.
        noun: the content of a file, such as "image".
        beside: names, or suffixes, of files that are read in another way.

    Attributes:
        root: the folder.
        files: paths of the files that are read.

    Raises:
        ValueError: there is no such folder.
    """

    def __init__(self, path: str | Path, suffixes: Sequence[str], noun: str, beside: Sequence[str] = ()):
        self.root, self.suffixes, self.noun = Path(os.path.expanduser(str(path))), tuple(suffixes), noun
        if not self.root.is_dir():
            raise ValueError(f"{path} is not a folder; give the path of one with {', '.join(suffixes)} files")
        self.files: list[Path] = []
        self.faults: dict[Path, str] = {}  # reasons of files that cannot be looked at
        self.unread: dict[str, list[str]] = {}  # names by type
        self.folders: list[str] = []  # of the first level
        for file in sorted(self._walk()):
            if file.name.lower().endswith(self.suffixes):
                self.files.append(file)
            elif file.name not in beside and file.suffix.lower() not in beside:
                self.unread.setdefault(file.suffix.lower(), []).append(self.name(file))

    def _walk(self) -> Iterable[Path]:
        """Yields all files: first those in the folder, then the targets of links."""
        here, links, seen = [(self.root, os.path.realpath(self.root))], deque(), set()
        while here or links:
            path, real = here.pop() if here else (link := links.popleft(), os.path.realpath(link))
            if real in seen:
                self.faults[path] = "is a link to what is there already"
                continue
            seen.add(real)
            if os.path.isfile(real):
                yield path
            elif os.path.isdir(real):
                if path.parent == self.root and path != self.root:
                    self.folders.append(path.name)
                try:
                    names = sorted(os.listdir(path))
                except OSError as error:
                    self.faults[path] = f"cannot be opened: {error.strerror}"
                    continue
                for name in names:
                    if name.startswith(".") or name in HIDDEN:
                        continue
                    if os.path.islink(path / name):
                        links.append(path / name)
                    else:
                        here.append((path / name, os.path.join(real, name)))
            else:
                self.faults[path] = "is no file"

    def name(self, path: Path) -> str:
        """A file's path below the folder, with `/`."""
        return path.relative_to(self.root).as_posix()

    def facts(self, look: Callable[[Path], dict[str, Any]]) -> dict[Path, dict[str, Any]]:
        """The result of `look` for every file, a mapping of plain values.

        It is kept in the folder (`.distillkit-images.json`, where the noun is image), if that may
        be written to; only new and changed files are looked at again.

        Args:
            look: a function of a file; it does not raise.
        """
        index, known = self.root / f".distillkit-{self.noun}s.json", {}
        kept = _kept(index)
        for file in self.files:
            stamp, facts = _stamp(file), kept.get(self.name(file))
            known[file] = facts if isinstance(facts, dict) and facts.get("stamp") == stamp else {"stamp": stamp}
        new = [file for file, facts in known.items() if len(facts) == 1]
        if not new:
            return known
        portion, written = 16 * THREADS, time.monotonic()
        with progress(f"looking at {self.root}, once", len(new)) as looking, ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(new), portion):  # Ctrl-C waits for one portion only
                files = new[start : start + portion]
                for file, facts in zip(files, pool.map(look, files), strict=True):
                    known[file] |= facts
                    looking.advance()
                    if time.monotonic() - written > PAUSE:
                        written = time.monotonic()
                        self._keep(index, known)
        self._keep(index, known)
        return known

    def _keep(self, index: Path, known: Mapping[Path, Mapping[str, Any]]) -> None:
        files = {self.name(file): facts for file, facts in known.items() if len(facts) > 1}
        try:
            write_text(index, json.dumps({"format": FORMAT, "files": files}))
        except OSError as error:
            warnings.warn(f"{index} cannot be written ({error}), so every run has to look at all files", stacklevel=4)

    def without(self, faults: Mapping[Path, str]) -> list[Path]:
        """The files without a fault; one warning names the others with reasons, and unread types.

        Raises:
            ValueError: no file is left.
        """
        kept = [file for file in self.files if file not in faults]
        named = [f"{self.name(path)} ({why})" for path, why in sorted({**self.faults, **faults}.items())]
        said = [f"left out: {listed(named)}"] if named else []
        if self.unread:
            kinds = (
                f"{len(names)} {kind or 'without a suffix'} ({listed(names)})" for kind, names in self.unread.items()
            )
            said.append(f"passed over, for {', '.join(self.suffixes)} are read: {', '.join(kinds)}")
        if not kept:
            facts = "".join(f"; {part}" for part in said)
            raise ValueError(
                f"{self.root} holds no {self.noun} that can be used: give a folder with {', '.join(self.suffixes)} "
                f"files{facts}"
            )
        if said:
            warnings.warn(f"{self.root}: {'; '.join(said)}", stacklevel=3)
        return kept

    def classes(self, files: Sequence[Path]) -> tuple[list[str], list[int] | None]:
        """The names of the classes, and the index of each file's class.

        Classes are the first-level folders that hold one of `files`; a warning names the others.
        Files without folders have no classes: [] and None.

        Raises:
            ValueError: some files are in folders and others are not.
        """
        homes = [parts[0] if len(parts := file.relative_to(self.root).parts) > 1 else None for file in files]
        names = sorted(set(homes) - {None})
        if not names:
            return [], None
        if flat := [file.name for file, home in zip(files, homes, strict=True) if home is None]:
            raise ValueError(
                f"{self.root} holds files both flat and in class folders; move the flat ones into a folder: {listed(flat)}"
            )
        if empty := sorted(set(self.folders) - set(names)):
            warnings.warn(
                f"{self.root}: no {self.noun} in {listed(empty)}, which are no classes therefore; the classes are, from 0 on, "
                f"{listed(names)}",
                stacklevel=3,
            )
        number = {name: i for i, name in enumerate(names)}
        return names, [number[home] for home in homes]


def first_whole(row: int, total: int, read: Callable[[int], T]) -> tuple[int, T]:
    """The first of `row`, `row + 1` ... (cyclic) that can be read, and its content.

    So a file that breaks during a run costs no more than itself, and the file in its place does not
    depend on the moment. A warning says why the ones before it cannot be read.

    Args:
        row: in 0 .. total - 1.
        total: number of rows.
        read: reads a row; raises a `ValueError` that names the file.

    Raises:
        ValueError: none can be read.
    """
    faults = []
    for number in range(row, row + total):
        try:
            found = read(number % total)
        except ValueError as error:
            faults.append(str(error))
            continue
        if faults:
            warnings.warn(f"{listed(faults)}: the next one that can be read stands in", stacklevel=2)
        return number % total, found
    raise ValueError(f"none of {total} can be read: {listed(faults, 1)}")


def listed(names: Sequence[str], most: int = NAMED) -> str:
    """The first names, and the number of further ones."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def drawn(names: Sequence[str], seed: int) -> list[int]:
    """Indices of the names in a random order, which does not depend on which others there are."""
    keys = [hashlib.blake2b(f"{seed}/{name}".encode(errors="surrogateescape")).hexdigest() for name in names]
    return sorted(range(len(names)), key=keys.__getitem__)


def _stamp(file: Path) -> list[int]:
    """Size and time of the last change, by which a changed file is recognised."""
    try:
        facts = file.stat()
    except OSError:  # gone since
        return []
    return [facts.st_size, facts.st_mtime_ns]


def _kept(index: Path) -> dict[str, Any]:
    """The files of an index; empty if it is missing, damaged or of another format."""
    try:
        kept = json.loads(index.read_text(encoding="utf-8"))
        return dict(kept["files"]) if kept["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
