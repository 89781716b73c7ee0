"""Reading a pipeline of the package diffusers, piece by piece, from its directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from distillkit.errors import optional

READ = ("*.json", "*.safetensors", "*.model", "*.txt")  # of a repository on the hub: no pickles, no code


def import_diffusers() -> Any:
    """The package `diffusers`, or an error that says how to get it."""
    optional("transformers", "hf", "pipelines are read with")
    return optional("diffusers", "hf", "pipelines are read with")


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


def load(root: Path, part: str, kinds: tuple[str, ...], dtype: torch.dtype | None = None) -> Any:
    """A part of the pipeline.

    Args:
        root: the pipeline's directory.
        part: the folder in it.
        kinds: the classes that it may have.
        dtype: of weights; None for what has none.
    """
    file = root / part / ("scheduler_config.json" if part.endswith("scheduler") else "config.json")
    kind = read_json(file).get("_class_name")
    if kind not in kinds:
        raise ValueError(f"{file} describes a {kind}, but what is needed here is a {' or a '.join(kinds)}")
    weights = {} if dtype is None else {"dtype": dtype, "use_safetensors": True}
    cls = getattr(import_diffusers(), kind)
    try:
        return cls.from_pretrained(str(root), subfolder=part, local_files_only=True, **weights)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{root / part} does not load as a {kind}: {str(error).splitlines()[0]}") from None
