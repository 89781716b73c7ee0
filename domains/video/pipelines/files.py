"""Reading a text-to-video pipeline of the package diffusers, piece by piece, from its directory."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.errors import optional

READ = ("*.json", "*.safetensors", "*.model", "*.txt")  # of a repository on the hub: no pickles, no code
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHUNK = 8  # prompts that the text encoder sees at once


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


def read_prompts(path: str) -> list[str]:
    """The different prompts of a file, in its order.

    A prompt is a line, or in a .csv file an entry of the column `caption`.

    Raises:
        ValueError: there is no such file, it has no prompt, or no such column.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"there is no file of prompts {path}: give a text file with one a line, or a captions.csv")
    with file.open(newline="", encoding="utf-8") as lines:
        if file.suffix.lower() == ".csv":
            rows = csv.DictReader(lines)
            if "caption" not in (rows.fieldnames or ()):
                raise ValueError(f"{path} must have a column `caption`, named in its first line")
            found = [row["caption"] for row in rows]
        else:
            found = list(lines)
    prompts = list(dict.fromkeys(text.strip() for text in found if text and text.strip()))
    if not prompts:
        raise ValueError(f"{path} has no prompts: write one a line")
    return prompts


def load(root: Path, part: str, kinds: tuple[str, ...], dtype: torch.dtype | None = None) -> Any:
    """A part of the pipeline.

    Args:
        root: the pipeline's directory.
        part: the folder in it.
        kinds: the classes that it may have.
        dtype: of weights; None for what has none.
    """
    file = root / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    kind = read_json(file).get("_class_name")
    if kind not in kinds:
        raise ValueError(f"{file} describes a {kind}, but what is needed here is a {' or a '.join(kinds)}")
    weights = {} if dtype is None else {"dtype": dtype, "use_safetensors": True}
    cls = getattr(import_diffusers(), kind)
    try:
        return cls.from_pretrained(str(root), subfolder=part, local_files_only=True, **weights)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{root / part} does not load as a {kind}: {str(error).splitlines()[0]}") from None


@torch.no_grad()
def embed(root: Path, kind: str, prompts: list[str], length: int, dtype: torch.dtype) -> Tensor:
    """The text encoder's embeddings of prompts, [N, tokens, D] of `dtype` on the CPU.

    The encoder runs on a GPU if there is one, and is dropped again. Tokens at the end that are zero
    for all prompts are left out, so tokens <= length.

    Args:
        root: the pipeline's directory.
        kind: its class.
        length: tokens of a prompt, padding included.
    """
    absent = dict.fromkeys(("transformer", "transformer_2", "vae") if kind == "WanPipeline" else ("transformer", "vae"))
    cls = getattr(import_diffusers(), kind)
    try:
        pipeline = cls.from_pretrained(str(root), local_files_only=True, use_safetensors=True, dtype=dtype, **absent)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"the text encoder in {root} does not load: {str(error).splitlines()[0]}") from None
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    parts = [prompts[i : i + CHUNK] for i in range(0, len(prompts), CHUNK)]
    options = {"do_classifier_free_guidance": False, "max_sequence_length": length}
    table = torch.cat([pipeline.encode_prompt(part, **options)[0].cpu() for part in parts])
    used = table.ne(0).any(2).any(0).nonzero()
    return table[:, : int(used.max()) + 1].clone() if len(used) else table[:, :1].clone()
