"""What the samples of a teacher depend on, as the key under which they are kept.

Everything counts that is not known to be without effect: each attribute of the teacher, the source
code and the machine. A teacher with an attribute that is no plain data has no key.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from distillkit.devices import model_name
from distillkit.diffusion.denoiser import Cond
from distillkit.files import hash_tensors
from distillkit.spec import to_spec

# of `distillkit`: what teachers import, without what says or writes something alone
READ = (
    "diffusion",
    "discrete",
    "networks",
    "pipelines",
    "teachers",
    "checks.py",
    "codec.py",
    "devices.py",
    "files.py",
    "rollouts.py",
    "spec.py",
)
INSTALLED = ("site-packages", "dist-packages")


def samples_key(
    teacher: Any,
    num: int,
    cond: Cond,
    seed: int,
    solver: Any,
    times: Tensor,
    kappa: float | Tensor,
    chunk: int,
) -> dict[str, Any] | None:
    """The key of `teacher.make` with these arguments; None if one cannot be told as plain data."""
    if not isinstance(solver, str):
        return None
    try:
        described, saved = attributes(teacher), teacher.state_dict()
        classes = [cls.__module__ for cls in (*type(teacher).__mro__, *map(type, teacher.modules()))]
        classes += _classes([to_spec(teacher.denoiser), described])
        packages = {path.partition(".")[0] for path in classes} - sys.stdlib_module_names
        return {
            "teacher": _name(type(teacher)),
            "fingerprint": _fingerprint(teacher),
            "attributes": described,
            "buffers": {name: _tensor(value) for name, value in teacher.named_buffers() if name not in saved},
            "num": num,
            "conditions": {name: _tensor(value) for name, value in sorted(cond.items())},
            "seed": seed,
            "solver": solver,
            "times": [str(times.dtype), times.tolist()],
            "kappa": _tensor(kappa) if isinstance(kappa, Tensor) else float(kappa),
            "chunk": chunk,
            "machine": _machine(teacher.device),
            "code": {name: _code(name) for name in sorted(packages)},
        }
    except (ValueError, OSError, LookupError, RuntimeError):  # the last one of flags of precision at odds
        return None


def attributes(teacher: Any) -> dict[str, Any]:
    """The teacher's attributes as plain data, without those that it sets `apart`.

    Raises:
        ValueError: one cannot be written as plain data.
    """
    plain = nn.Module().__dict__.keys() | {"_arguments"} | teacher.apart
    return {name: _plain(value) for name, value in sorted(vars(teacher).items()) if name not in plain}


def _plain(value: Any) -> Any:
    """`to_spec`, also of functions with a name."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if isinstance(value, Tensor):
        return _tensor(value)
    return {"class_path": _name(value)} if isinstance(value, (type, FunctionType)) else to_spec(value)


def _name(value: type | FunctionType) -> str:
    """The path of a class or a function; a ValueError for one that was made by another function."""
    path = f"{value.__module__}.{value.__qualname__}"
    if "<" in path:
        raise ValueError(f"{path} may depend on what stands around it")
    return path


def _classes(spec: Any) -> Iterator[str]:
    """Yields the class paths in a description."""
    if isinstance(spec, dict):
        if isinstance(spec.get("class_path"), str):
            yield spec["class_path"]
        for inner in spec.values():
            yield from _classes(inner)
    elif isinstance(spec, list):
        for inner in spec:
            yield from _classes(inner)


def _tensor(value: Tensor) -> list[Any]:
    """Type, shape and sha256 of a tensor."""
    digest = hashlib.sha256()
    hash_tensors(digest, {"": value})
    return [str(value.dtype), list(value.shape), digest.hexdigest()]


_known: WeakKeyDictionary[nn.Module, tuple[list, str]] = WeakKeyDictionary()


def _fingerprint(teacher: Any) -> str:
    """The teacher's fingerprint, read again only if a tensor or the start has changed."""
    state = teacher.state_dict(keep_vars=True)
    if any(value.is_inference() for value in state.values()):  # whose changes are not counted
        return teacher.fingerprint()
    seen = [(name, value.data_ptr(), value._version, str(value.dtype)) for name, value in state.items()]
    seen.append((to_spec(teacher.denoiser), teacher.begins()))
    if teacher not in _known or _known[teacher][0] != seen:
        _known[teacher] = seen, teacher.fingerprint()
    return _known[teacher][1]


def _machine(device: torch.device) -> dict[str, Any]:
    """What decides the last bits of a result, and the time that it takes."""
    kind = device.type
    return {
        "device": model_name(device) if kind == "cuda" else f"{kind} {processor()}",
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()),
        "matmul": torch.get_float32_matmul_precision(),
        "convolutions": torch.backends.cudnn.allow_tf32,
        "autocast": str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@cache
def processor() -> str:
    """The processor's name, and the widest of its instructions that torch uses."""
    name = platform.processor() or platform.machine()
    said = Path("/proc/cpuinfo")
    for line in said.read_text(encoding="utf-8").splitlines() if said.is_file() else ():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{name} {torch.backends.cpu.get_cpu_capability()}"


@cache
def _code(package: str) -> str:
    """The version of an installed package, sha256 of the sources of another."""
    module = sys.modules[package]
    places = [module.__file__] if getattr(module, "__file__", None) else [*getattr(module, "__path__", ())]
    version = getattr(module, "__version__", None)
    if version and set(INSTALLED) & {part for place in places for part in Path(place).parts}:
        return str(version)
    digest = hashlib.sha256()
    for place in map(Path, places):
        folder = place.parent if place.name == "__init__.py" else place
        roots = [folder / name for name in READ] if package == "distillkit" else [folder]
        files = [file for root in roots for file in (root.rglob("*.py") if root.is_dir() else [root])]
        for file in sorted(files):
            digest.update(f"{file.relative_to(folder.parent)}".encode() + file.read_bytes())
    if not places:
        raise ValueError(f"{package} has no files")
    return digest.hexdigest()
