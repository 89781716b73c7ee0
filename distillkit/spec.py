"""Objects that record how they were made, so that a folder can describe and a process rebuild them.

A folder may come from a stranger. Its description is checked as a whole before anything of it is
imported, read or made.
"""

from __future__ import annotations

import collections.abc
import importlib
import importlib.util
import inspect
import math
import os
import re
import shlex
import types
import typing
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distillkit.files import sizes

TRUSTED = ("distillkit", "domains")
# arguments that name files
PATHS = (
    "path",
    "root",
    "high",
    "low",
    "tokenizer",
    "pipeline",
    "prompts",
    "empty_prompt",
    "i3d",
    "features",
    "clap",
    "clip",
    "lpips",
    "dists",
    "autoencoder",
    "config",
    "refine",
)
LARGEST = 2**22  # largest number in a description, except seeds
MOST_MADE = 2**24  # numbers of objects without own weights, such as embedded teachers (x 16)


class Outside(ValueError):
    """The error of a folder that wants to read outside of itself, which only callers may allow."""


class Recorded:
    """Mixin that keeps the constructor's arguments, for `to_spec`.

    Attributes:
        retired: former arguments without meaning now; they are ignored in older folders.
    """

    retired: tuple[str, ...] = ()

    def __new__(cls, *args, **kwargs):
        if cls.__init__ is object.__init__ and (args or kwargs):  # which takes anything beside a __new__
            raise TypeError(f"{cls.__name__} takes no arguments, got {', '.join(map(repr, [*args, *kwargs]))}")
        self = super().__new__(cls)
        # straight into __dict__: nn.Module refuses attributes before its own __init__
        self.__dict__["_arguments"] = dict(
            inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs).arguments
        )
        return self

    def recorded(self) -> dict[str, Any]:
        """The arguments that make the object again; overridden where objects change later."""
        arguments = {name: value for name, value in self._arguments.items() if name != "self"}
        return arguments | arguments.pop("kwargs", {})


def to_spec(value: Any) -> Any:
    """`{class_path, init_args}` of a `Recorded` object, at every depth; plain data stays plain."""
    if isinstance(value, Recorded):
        cls = type(value)
        made = {name: to_spec(argument) for name, argument in value.recorded().items()}
        return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": made}
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {k: to_spec(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_spec(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{type(value).__name__} cannot be written to a folder: derive it from distillkit.spec.Recorded")


def from_spec(spec: Any, trust: tuple[str, ...] = (), home: Path | None = None, weights: Path | None = None) -> Any:
    """Make the object that `to_spec` described.

    Args:
        spec: the description, plain data.
        trust: permissions of the caller: packages, besides `TRUSTED`, whose classes it may name;
            and paths outside of its folder, or repositories of a hub, that it may read. A text
            with a `/`, or that begins with `.` or `~`, is a path.
        home: the folder of the description.
        weights: the safetensors file of the object, which bounds its size; without one, the files
            that it reads do.

    Raises:
        ValueError: for a class from elsewhere, a value of the wrong kind or without bounds, an
            object that cannot be made.
        Outside: for a path outside of `home` that is not in `trust`.
    """
    read = check(spec, trust, home)
    there = sum(
        file.stat().st_size for path in read for file in _files(path) if file.suffix in (".safetensors", ".pth")
    )
    elsewhere = weights is None or _says(spec, "teacher")  # the base of adapters is its teacher's, not in `weights`
    with bounded(sizes(weights) if weights else [], there + MOST_MADE * elsewhere):
        return _made(spec, trust)


def trusted_class(path: Any, trust: tuple[str, ...], kind: type) -> type:
    """The class that a folder names, which must be a `kind`; raises as `from_spec`."""
    check({"class_path": path}, trust)
    cls = _imported(path)
    if not (isinstance(cls, type) and issubclass(cls, kind)) or inspect.isabstract(cls):
        raise ValueError(f"the folder names {path}, which is no {kind.__name__} that can be made")
    return cls


@contextmanager
def named(file: Path) -> Iterator[None]:
    """Add the name of the file to errors about its description."""
    try:
        yield
    except ValueError as error:
        raise retold(error, f"{file}: {error}") from error


def retold(error: ValueError, text: str) -> ValueError:
    """The error with another text, still an `Outside` if it was one."""
    return Outside(text) if isinstance(error, Outside) else ValueError(text)


# ---- before anything is imported


def check(spec: Any, trust: tuple[str, ...] = (), home: Path | None = None) -> list[Path]:
    """Refuse a description as `from_spec` does, without imports; returns the paths it reads."""
    allowed = [*TRUSTED, *(name for name in trust if not _is_path(name))]
    yes = {name: Path(name).expanduser().resolve() for name in trust if _is_path(name)}
    read, outside, left = [], {}, [("", spec)]
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            if "class_path" in value:
                _check_class(value, allowed)
            if any(not isinstance(key, str) for key in value):
                raise ValueError(f"the folder is damaged: the names in {_short(value)} must be text")
            if value.get("download"):  # the names of repositories look like paths
                asked = (value.get(key) for key in ("path", "pipeline"))
                outside |= {key: None for key in asked if isinstance(key, str) and not _there(key) and key not in yes}
            if value.get("no_reference") and "pyiqa" not in trust:  # its metrics fetch their weights
                outside["pyiqa"] = None
            left += reversed(value.items())
        elif isinstance(value, list):
            left += [(name, inner) for inner in reversed(value)]
        elif isinstance(value, str):
            pattern = name in PATHS and not _there(value)
            fixed = re.split(r"[^/]*[*?\[{]", value)[0] if pattern else value  # `DIR/*.tar` reads in DIR
            for path in _there(fixed or ".") if name in PATHS or "/" in value or os.sep in value else ():
                read.append(path)
                if not any(path.is_relative_to(root) for root in yes.values()):
                    outside |= _leaves(path, home)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"the folder says {name} = {value}: it must be a finite number")
        elif isinstance(value, int) and abs(value) > (2**63 - 1 if name == "seed" else LARGEST):
            raise ValueError(f"the folder says {name} = {_short(value)}, which is absurd (more than {LARGEST:,})")
        elif value is not None and not isinstance(value, (bool, int, float)):
            raise ValueError(f"the folder is damaged: {name} cannot be a {type(value).__name__}")
    if outside:
        wanted = (*trust, *outside)  # ready to paste, with earlier permissions
        flags = " ".join(f"--trust {shlex.quote(name)}" for name in wanted)
        raise Outside(
            f"the folder wants to read {' and '.join(outside)}, which it does not hold itself: pass trust={wanted!r} if "
            f"that is right ({flags} on the command line)"
        )
    return read


def _check_class(spec: dict, allowed: list[str]) -> None:
    path, arguments = spec["class_path"], spec.get("init_args") or {}
    if (
        not isinstance(path, str)
        or not isinstance(arguments, dict)
        or not isinstance(spec.get("dict_kwargs", {}), dict)
    ):
        raise ValueError(
            f"the folder is damaged: class_path {_short(path)} with init_args {_short(arguments)} names no object"
        )
    package = path.partition(".")[0]
    if package not in allowed:
        raise ValueError(
            f"the folder names class {_short(path)[1:-1]}, which is outside {', '.join(allowed)}: pass trust=({package!r},) if "
            f"you trust that package with running its code (--trust {shlex.quote(package)} on the command line)"
        )
    if "." not in path or any(not part.isidentifier() or part.startswith("_") for part in path.split(".")):
        raise ValueError(f"the folder names {_short(path)[1:-1]}, which is no class that distillkit writes to folders")


def _says(spec: Any, name: str) -> bool:
    """Whether a description has this name at any depth."""
    inner = spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ()
    return (isinstance(spec, dict) and name in spec) or any(_says(value, name) for value in inner)


def _is_path(name: str) -> bool:
    return "/" in name or os.sep in name or name.startswith((".", "~"))


def _there(text: str) -> list[Path]:
    """Existing paths that a text names, links resolved: itself, after `~`, after a colon."""
    found = []
    for part in filter(None, dict.fromkeys((text, text.partition(":")[2]))):
        try:
            found += [path.resolve() for path in {Path(part), Path(part).expanduser()} if path.exists()]
        except (OSError, ValueError, RuntimeError):  # too long, a null character, an unknown user
            continue
    return found


def _leaves(path: Path, home: Path | None) -> dict[str, None]:
    """The part of a path outside of `home` and of this package, as a dict with one key; else empty.

    Raises:
        ValueError: the path lies in `home` and has a pickle in it.
    """
    if any(path.is_relative_to(root) for root in _shipped()):
        return {}
    if home is None or not path.is_relative_to(home.resolve()):
        return {str(path): None}
    for file in _files(path):
        if not file.resolve().is_relative_to(home.resolve()):
            return {str(file.resolve()): None}
        if _pickled(file):
            raise ValueError(
                f"the folder wants {file} read, which is a pickle: these are not read from a student's folder"
            )
    return {}


@cache
def _shipped() -> tuple[Path, ...]:
    """The folders of `TRUSTED`."""
    specs = [importlib.util.find_spec(name) for name in TRUSTED]
    return tuple(Path(place).resolve() for spec in specs if spec for place in spec.submodule_search_locations or ())


def _files(path: Path) -> Iterator[Path]:
    """Yields the file itself, or all files and links below a folder."""
    if not path.is_dir():
        yield path
    for folder, folders, names in os.walk(path):
        yield from (
            Path(folder, name) for name in (*names, *folders) if name in names or Path(folder, name).is_symlink()
        )


def _pickled(file: Path) -> bool:
    """Whether a file, whatever its name, is a pickle or an archive of `torch.save`."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        head = opened.read(2)
    if head != b"PK":
        return head[:1] == b"\x80"
    try:
        return any(name.endswith(".pkl") for name in zipfile.ZipFile(file).namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return True


# ---- making it


def _made(spec: Any, trust: tuple[str, ...]) -> Any:
    """Make the object of a checked description."""
    if isinstance(spec, list):
        return [_made(inner, trust) for inner in spec]
    if not isinstance(spec, dict):
        return spec
    if "class_path" not in spec:
        return {name: _made(inner, trust) for name, inner in spec.items()}
    path = spec["class_path"]
    cls = _imported(path)
    if not (isinstance(cls, type) and issubclass(cls, Recorded)):
        raise ValueError(f"the folder names {path}, which is no class that distillkit writes to folders")
    given = (spec.get("init_args") or {}) | (spec.get("dict_kwargs") or {})
    arguments = {k: _made(v, trust) for k, v in given.items() if k not in cls.retired}
    signature = inspect.signature(cls.__init__).parameters
    if "trust" in signature:
        arguments["trust"] = list(trust)  # a folder does not choose whom to trust
    hints = _hints(cls)
    for key, value in arguments.items():
        default = key in signature and signature[key].default is value
        if key in hints and not default and not fits(value, hints[key]):
            raise ValueError(f"the folder's {path} cannot be built: {key} cannot be {_short(value)}")
    try:
        return cls(**arguments)
    except ValueError:
        raise
    except TypeError as error:
        raise ValueError(
            f"the folder's {path} cannot be built ({error}); was it written by another version?"
        ) from error
    except Exception as error:  # values of strangers can fail in every way
        raise ValueError(f"the folder's {path} cannot be built ({type(error).__name__}: {error})") from error


def _imported(path: str) -> Any:
    """The object at a checked class path."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"the folder names {path}, which cannot be imported here ({error})") from error


def _hints(cls: type) -> dict[str, Any]:
    """Types of a constructor's arguments, with those of its parents, as far as they resolve."""
    found: dict[str, Any] = {}
    for parent in cls.__mro__:
        made = vars(parent).get("__init__")
        if made is None:
            continue
        with suppress(NameError, TypeError):
            found = typing.get_type_hints(made) | found
        if not any(each.kind is each.VAR_KEYWORD for each in inspect.signature(made).parameters.values()):
            break
    return found


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a folder fits an annotation; lists fit tensors and all sequences."""
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(fits(value, choice) for choice in inner)
    if kind is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if kind is collections.abc.Callable:
        return callable(value)
    if not isinstance(kind, type):
        return True  # a type variable and other things that are no type
    if issubclass(kind, torch.Tensor):
        return isinstance(value, list)
    if issubclass(kind, Path):
        return isinstance(value, str)
    if kind is str or not issubclass(kind, collections.abc.Iterable) or issubclass(kind, torch.nn.Module):
        return isinstance(value, kind)
    if issubclass(kind, collections.abc.Mapping):
        return isinstance(value, dict) and all(fits(v, inner[1]) for v in value.values() if len(inner) == 2)
    if not isinstance(value, list):
        return False
    if kind is tuple and inner and inner[-1] is not ...:
        return len(value) == len(inner) and all(map(fits, value, inner))
    return all(fits(item, inner[0]) for item in value if inner)


class Bounded(TorchDispatchMode):
    """A context in which only so many numbers can be made, against descriptions of huge objects.

    Every tensor counts for 256 numbers or more, so that a claimed million of small layers ends
    early too. A new tensor is counted before there is memory for it.

    Args:
        room: the number of numbers.
    """

    def __init__(self, room: int):
        super().__init__()
        self.left = room

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, so torch need not import its compiler to keep out of it."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        new = "device" in kwargs and not any(isinstance(value, torch.Tensor) for value in args)
        if new:
            planned = {name: value for name, value in kwargs.items() if name != "pin_memory"}
            self._spend(func(*args, **{**planned, "device": "meta"}))
        out = func(*args, **kwargs)
        for value in () if new else out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor) and not any(value is other for other in args):
                self._spend(value)
        return out

    def _spend(self, tensor: torch.Tensor) -> None:
        self.left -= max(tensor.numel(), 256)
        if self.left < 0:
            raise ValueError("the folder describes something far larger than the weights it brings or reads")


def bounded(sizes: Collection[int], more: int = 0) -> Bounded:
    """A `Bounded` for a network with tensors of these sizes, and `more` numbers read elsewhere."""
    return Bounded(16 * (sum(sizes) + more) + 2048 * len(sizes) + 2**20)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:76]} ..."
