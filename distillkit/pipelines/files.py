"""Reading a pipeline of the package diffusers, piece by piece, from its directory."""

from __future__ import annotations

import hashlib
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from distillkit.errors import optional
from distillkit.teachers.foreign import check_foreign

# of a repository on the hub: no pickles, no code, and no weights beside the pipeline's folders
READ = ("model_index.json", "*/*.json", "*/*.safetensors", "*/*.model", "*/*.txt")
SEEN, PIECE = 64, 2**16  # pieces of a file of weights in its print, and bytes of each


def import_diffusers() -> Any:
    """The package `diffusers`, or an error that says how to get it."""
    transformers = optional("transformers", "hf", "pipelines are read with")
    transformers.logging.set_verbosity_error()  # before parts that it cannot use complain
    transformers.logging.disable_progress_bar()
    diffusers = optional("diffusers", "hf", "pipelines are read with")
    diffusers.utils.logging.disable_progress_bar()
    return diffusers


def local(path: str, download: bool = False) -> Path:
    """The directory of a pipeline.

    Args:
        path: the directory, or the name of a repository on the hub.
        download: fetch the repository, or the part of it that is missing here.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not download:
        raise ValueError(
            f"there is no directory {path}: give that of a diffusers pipeline, or say teacher.download=true to fetch "
            f"{path} from the hub"
        )
    import_diffusers()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=READ))
    except Exception as error:  # no network, no such repository, no permission
        raise ValueError(f"{path} cannot be fetched from the hub: {str(error).splitlines()[0]}") from None


def read_json(file: Path) -> dict[str, Any]:
    """A configuration of the pipeline."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist: give the directory of a diffusers pipeline")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not readable as json: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it should hold a mapping")
    return found


def read_index(root: Path) -> dict[str, Any]:
    """model_index.json of a pipeline that brings no code of its own."""
    index = read_json(root / "model_index.json")  # first: a folder without one may be a whole disk
    check_foreign(root)
    return index


def print_of(root: Path, parts: tuple[str, ...] = ()) -> str:
    """A hash by which a pipeline, or some parts of it, are recognised again.

    It covers all configurations and vocabularies, and of weights the names, shapes and types of the
    tensors and `SEEN` evenly spaced pieces of each file: a pipeline of 40 GB takes no minute.

    Args:
        root: the pipeline's directory.
        parts: beginnings of the names of its folders; none means all of them.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        name = file.relative_to(root).as_posix()
        if "/" not in name or name.startswith(".") or parts and not name.startswith(parts):
            continue
        if file.suffix != ".safetensors":
            if file.suffix in (".json", ".txt", ".model"):
                digest.update(name.encode() + file.read_bytes())
            continue
        size = file.stat().st_size
        with file.open("rb") as opened:
            head = opened.read(8 + min(int.from_bytes(opened.read(8), "little"), 2**27))
            digest.update(f"{name} {size}".encode() + head)
            for i in range(SEEN):
                opened.seek(max(0, (size - PIECE) * i // (SEEN - 1)))
                digest.update(opened.read(PIECE))
    return digest.hexdigest()


def place(root: Path, part: str) -> Path:
    """The folder of a part; the oldest pipelines (DDPM) have their files in the root itself."""
    return root / part if (root / part).is_dir() else root


def load(root: Path, part: str, kinds: tuple[str, ...], dtype: torch.dtype | None = None) -> Any:
    """A part of the pipeline.

    Args:
        root: the pipeline's directory.
        part: the folder in it, see `place`.
        kinds: the classes that it may have.
        dtype: of weights; None for what has none.
    """
    folder = place(root, part)
    file = folder / ("scheduler_config.json" if part.endswith("scheduler") else "config.json")
    config = read_json(file)
    kind = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    if kind not in kinds:
        raise ValueError(f"{file} describes a {kind}, but what is needed here is a {' or a '.join(kinds)}")
    weights = {} if dtype is None else {"dtype": dtype, "use_safetensors": True}
    cls = getattr(import_diffusers(), kind, None) or getattr(import_module("transformers"), kind)
    try:
        return cls.from_pretrained(str(folder), local_files_only=True, **weights)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{root / part} does not load as a {kind}: {str(error).splitlines()[0]}") from None
