"""Tar files in the layout of webdataset: the members KEY.EXT of one key are one sample.

They are read in place, by their offsets; nothing is extracted.
"""

from __future__ import annotations

import fnmatch
import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from distillkit.pipelines.captions import caption_in
from distillkit.sources import Source

SPECIAL = "*?[{"  # of a pattern
LARGEST, LONGEST = 2**28, 2**20  # bytes of a member that is data, and of one that is text
TEXTS = ("txt", "json", "cls")  # members that say what a sample is


class Sample(NamedTuple):
    """A sample of a shard.

    Args:
        shard: the tar file.
        key: what its members have in common, without the shard.
        members: offset and size, in bytes, of those that are data, by ending in lower case.
        caption: of KEY.txt, or of KEY.json.
        label: of KEY.cls, an integer.
    """

    shard: Path
    key: str
    members: dict[str, tuple[int, int]]
    caption: str | None
    label: int | None

    def read(self, ending: str) -> bytes:
        """The member of this ending.

        Raises:
            ValueError: the shard has changed.
        """
        offset, size = self.members[ending]
        with self.shard.open("rb") as file:
            file.seek(offset)
            found = file.read(size)
        if len(found) != size:
            raise ValueError(f"{self} is cut off")
        return found

    def __str__(self) -> str:
        return f"{self.key} in {self.shard}"


def are_at(path: str) -> bool:
    """Whether `path` is a pattern, or a folder with shards."""
    if any(sign in path for sign in SPECIAL) and not Path(path).expanduser().exists():
        return True
    return next(Path(path).expanduser().rglob("*.tar"), None) is not None


def read_shards(path: str) -> list[Sample]:
    """The samples of all shards, in the order of the shards' names.

    The index is kept in the folder (`.distillkit-shards.json`), if that may be written to, and only
    new and changed shards are read again. Shards that are no whole tar files are left out with a
    warning.

    Args:
        path: a folder, or a pattern of files such as `DIR/part-{000..099}.tar` or `DIR/*.tar`.

    Raises:
        ValueError: there is no shard that can be used.
    """
    source = _source(path)
    facts = source.facts(_look)
    shards = source.without({shard: facts[shard]["fault"] for shard in facts if facts[shard]["fault"]})
    return [
        Sample(shard, key, {ending: tuple(place) for ending, place in members.items()}, caption, label)
        for shard in shards
        for key, members, caption, label in facts[shard]["samples"]
    ]


def _source(path: str) -> Source:
    """The tar files that `path` means."""
    if not any(sign in path for sign in SPECIAL) or Path(path).expanduser().is_dir():
        return Source(path, (".tar",), "shard")
    parts = Path(path).parts
    fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in SPECIAL))
    source = Source(Path(*parts[:fixed]), (".tar",), "shard")
    source.files = [file for file in source.files if _fits(source.name(file), "/".join(parts[fixed:]))]
    return source


def _fits(name: str, pattern: str) -> bool:
    """Whether a name is one of a pattern, in which `{000..099}` stands for these numbers."""
    ranges = re.findall(r"\{(\d+)\.\.(\d+)\}", pattern)
    found = re.match(fnmatch.translate(re.sub(r"\{\d+\.\.\d+\}", "\0", pattern)).replace("\0", r"(\d+)"), name)
    numbers = found.groups() if found else ()
    return found is not None and all(
        len(number) == len(first) and int(first) <= int(number) <= int(last)
        for number, (first, last) in zip(numbers, ranges, strict=True)
    )


def _look(shard: Path) -> dict[str, Any]:
    """The fault of a shard, or None, and its samples: key, members, caption and label of each."""
    found: dict[str, list[Any]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member, key, ending in _members(tar):
                sample = found.setdefault(key, [key, {}, None, None])
                if ending not in TEXTS:
                    if member.size <= LARGEST:
                        sample[1][ending] = [member.offset_data, member.size]
                elif member.size <= LONGEST:
                    with suppress(ValueError, TypeError, StopIteration, RecursionError):  # then it says nothing
                        text = tar.extractfile(member).read().decode("utf-8-sig")
                        if ending == "cls":
                            sample[3] = int(text)
                        else:
                            sample[2] = text.strip() or None if ending == "txt" else caption_in(json.loads(text))
            tar.fileobj.seek(tar.offset)  # where the last member ends: of a whole archive a block of zeros is there
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"it is damaged at byte {tar.offset}")
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError) as error:  # absurd sizes too
        return {"fault": f"is no whole tar file: {error}", "samples": []}
    return {"fault": None, "samples": [sample for sample in found.values() if sample[1]]}


def _members(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Yields the plain files of an archive that are not hidden, with key and ending."""
    for member in tar:
        match = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]+)", member.name)
        if match and member.isreg() and not member.issparse() and "__MACOSX" not in member.name:
            yield member, match[1], match[2].lower()
