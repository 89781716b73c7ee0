"""Teacher samples kept on disk, which every run asks for again.

Off unless the command line, or `using`, switches it on.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillkit.errors import UsageError
from distillkit.files import hash_tensors, write_atomic
from distillkit.runs import PARTIAL, rank

if TYPE_CHECKING:  # `doctor` reads the size of the cache without torch
    from torch import Tensor

NAME, END = "samples", ".safetensors"
LIMIT = 4.0  # GiB
WORTH = 0.2  # seconds; what is made faster is made again
ROOM = 0.9  # of the limit, which is left after the oldest entries are removed
DEBRIS = 3600  # seconds after which an unfinished file belongs to a process that was killed


class SampleCache:
    """Tensors by key, one safetensors file each, `FOLDER/samples/DIGEST.safetensors`.

    A file holds its key, the seconds that its samples took when they were made and a checksum. One
    that is damaged or foreign is made anew, and a folder that cannot be written stops nothing. The
    entries that were used longest ago go first.

    Args:
        folder: the folder of the cache.
        limit: bytes of all entries.

    Attributes:
        hits: how often something was found that an earlier run, or another process, had made.
        ahead: seconds that the making of all that was asked for took, here or in an earlier run,
            less those that passed here.
    """

    def __init__(self, folder: Path, limit: float = LIMIT * 2**30):
        self.folder, self.limit = folder / NAME, limit
        self.hits, self.ahead = 0, 0.0
        self._own: set[str] = set()  # keys of what this process has made
        self._size: int | None = None  # bytes, as far as this process knows
        self._noted = False

    def recall(
        self, key: Callable[[], dict[str, Any] | None], shape: tuple[int, ...], make: Callable[[], Tensor]
    ) -> Tensor:
        """The tensor that is kept under the key, else what `make` gives, which is then kept.

        Args:
            key: plain data that decide the tensor; None where they cannot be told.
            shape: of the tensor.
            make: makes it.
        """
        start = _now()
        named = key()
        text = None if named is None else json.dumps(named, sort_keys=True)
        found = None if text is None else self._read(self._file(text), text, shape)
        if found is not None:
            made, seconds = found
            self.hits += text not in self._own
        else:
            begun = _now()
            made = make()
            seconds = _now() - begun
            self._own.add(text)
            if text is not None and seconds >= WORTH and tuple(made.shape) == tuple(shape):
                self._keep(text, made, seconds)
        self.ahead += seconds - (_now() - start)
        return made

    def holds(self, key: dict[str, Any] | None) -> bool:
        """Whether there is an entry of the key; its content is not read."""
        return key is not None and self._file(json.dumps(key, sort_keys=True)).is_file()

    def entries(self) -> list[tuple[float, int, Path]]:
        """The last use, the bytes and the file of every entry, those used longest ago first."""
        found = []
        with suppress(OSError):
            for entry in os.scandir(self.folder):
                with suppress(OSError):  # another process has removed it
                    if entry.name.endswith(END) and entry.is_file(follow_symlinks=False):
                        about = entry.stat(follow_symlinks=False)
                        found.append((about.st_mtime, about.st_size, Path(entry.path)))
        return sorted(found)

    def _file(self, text: str) -> Path:
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}{END}"

    def _read(self, file: Path, text: str, shape: tuple[int, ...]) -> tuple[Tensor, float] | None:
        """The tensor and the seconds of an entry; None, with a line, for what it should not be."""
        from safetensors import safe_open

        try:
            about = file.lstat()
        except OSError:
            return None
        try:
            if not stat.S_ISREG(about.st_mode):
                raise ValueError("is no file")
            with safe_open(file, "pt") as opened:
                says = opened.metadata() or {}
                made = opened.get_tensor(NAME).clone()  # no map of a file that another machine may remove
            if says.get("sha256") != _sum(made, text, says.get("seconds", "")) or tuple(made.shape) != tuple(shape):
                raise ValueError("is damaged or holds other samples")
            seconds = float(says["seconds"])
        except Exception as error:  # a damaged file fails in many ways
            fault = error if type(error) is ValueError else "is no whole safetensors file"
            if rank() == 0:
                print(f"{file} {fault}: its samples are made anew", flush=True)
            return None
        with suppress(OSError):
            os.utime(file)
        return made, seconds

    def _keep(self, text: str, made: Tensor, seconds: float) -> None:
        """Write an entry, and remove others where it finds no room."""
        from safetensors.torch import save_file

        made = made.detach().cpu().contiguous()
        size = made.numel() * made.itemsize
        if size > ROOM * self.limit:
            return
        says = {"key": text, "seconds": repr(seconds), "sha256": _sum(made, text, repr(seconds))}
        try:
            write_atomic(self._file(text), lambda temporary: save_file({NAME: made}, temporary, says))
        except Exception as error:  # a full disk is no OSError of safetensors
            if not self._noted and rank() == 0:
                print(
                    f"note: no samples are kept in {self.folder}: {getattr(error, 'strerror', None) or error}",
                    flush=True,
                )
            self._noted = True
            return
        self._size = None if self._size is None else self._size + size
        if self._size is None or self._size > self.limit:
            self._make_room()

    def _make_room(self) -> None:
        """Remove what was used longest ago, if there is more than the limit, and debris."""
        entries = self.entries()
        self._size = sum(size for _, size, _ in entries)
        if self._size > self.limit:
            for _, size, file in entries:
                if self._size <= ROOM * self.limit:
                    break
                with suppress(OSError):
                    file.unlink()
                self._size -= size
        for left in self.folder.glob(f"{PARTIAL}*"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > DEBRIS:
                    left.unlink()


def _sum(tensor: Tensor, *texts: str) -> str:
    """sha256 of the texts and of type, shape and bytes of the tensor."""
    digest = hashlib.sha256(json.dumps(texts).encode())
    hash_tensors(digest, {f"{tensor.dtype} {list(tensor.shape)}": tensor})
    return digest.hexdigest()


def of_the_user() -> SampleCache | None:
    """The cache of this user by the environment; None if it is switched off or has no place.

    Raises:
        UsageError: DISTILLKIT_CACHE_LIMIT is not a number of at least 0.
    """
    given = os.environ.get("DISTILLKIT_CACHE_LIMIT") or str(LIMIT)
    try:
        limit = float(given)
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise UsageError(f"DISTILLKIT_CACHE_LIMIT must be a number of GiB, 0 for no cache, got {given!r}")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    place = os.path.expanduser(os.environ.get("DISTILLKIT_CACHE") or f"{home}/distillkit")
    if not limit or place.startswith("~"):  # of a user without a home
        return None
    return SampleCache(Path(place), limit * 2**30)


_current: SampleCache | None = None


def current() -> SampleCache | None:
    """The cache that is switched on; None if there is none."""
    return _current


@contextmanager
def using(cache: SampleCache | None) -> Iterator[None]:
    """A context in which the samples of teachers are kept in this cache; None switches it off."""
    global _current
    before, _current = _current, cache
    try:
        yield
    finally:
        _current = before


def clock() -> float:
    """Seconds that pass as if nothing had been kept: what is found takes as long as its making.

    They pass as if this process had made alone what others helped to make, too.
    """
    return _now() + (_current.ahead if _current else 0.0)


_spared = 0.0


def spare(seconds: float) -> None:
    """Count the seconds that the help of other processes has spared this one."""
    global _spared
    _spared += seconds


def _now() -> float:
    return time.perf_counter() + _spared
