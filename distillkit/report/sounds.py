"""Sounds among the files of samples: played on the page of a run, and linked in a card."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TYPES = {".wav": "audio/wav", ".mp3": "audio/mpeg", ".flac": "audio/flac", ".ogg": "audio/ogg"}
MOST = 2_000_000  # bytes of the files that a page holds


def sounds_in(folder: Path) -> list[Path]:
    """The sound files of a folder by name, `sound_2` before `sound_10`."""
    found = [path for path in folder.glob("*") if path.suffix in TYPES and path.is_file()]
    return sorted(found, key=lambda path: (len(path.stem), path.name))


def players(folders: Sequence[Path], root: Path) -> list[list[dict[str, Any]]]:
    """For each name of a file the sounds of that name, one from each of the folders that has it.

    A sound has its `folder`, its `name` without an ending, its `path` from the root and, where a
    picture of the same name lies beside it, its `picture`. As long as all sounds of a name fit into
    `MOST` bytes with those before, they have a `uri`, which is None for the others.
    """
    found = [sounds_in(folder) for folder in folders]
    rows, size = [], 0
    for name in dict.fromkeys(path.name for paths in found for path in paths):
        paths = [path for each in found for path in each if path.name == name]
        size += sum(path.stat().st_size for path in paths)
        rows.append([_player(path, root, size <= MOST) for path in paths])
    return rows


def _player(path: Path, root: Path, inside: bool) -> dict[str, Any]:
    picture = path.with_suffix(".png")
    return {
        "folder": path.parent.name,
        "name": path.stem,
        "path": path.relative_to(root).as_posix(),
        "picture": uri(picture, "image/png") if picture.is_file() else None,
        "uri": uri(path, TYPES[path.suffix]) if inside else None,
    }


def uri(path: Path, kind: str) -> str:
    """A file as a data URI."""
    return f"data:{kind};base64," + base64.b64encode(path.read_bytes()).decode()
