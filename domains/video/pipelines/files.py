"""Reading a text-to-video pipeline of the package diffusers: its texts."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from distillkit.pipelines.files import import_diffusers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHUNK = 8  # prompts that the text encoder sees at once


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
