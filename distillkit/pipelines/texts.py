"""Embeddings of prompts: computed once by the pipeline's own encoders, kept on disk, looked up."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import cache
from distillkit.files import read_tensors, save_tensors

CHUNK = 8  # prompts that a text encoder sees at once
MASK = "mask"  # of the name of a table that says which tokens count
RESIDENT = 2**30  # bytes of tables that are moved to a GPU as a whole


class Texts(nn.Module):
    """Embeddings of prompts, by number. Copies of a network share them.

    Tables of more than `RESIDENT` bytes stay where they are when a network is moved to a GPU; rows
    follow when they are looked up.

    Args:
        shapes: for each table its shape `[prompts, ...]`; row `prompts`, one more, is the negative
            prompt. A table whose name ends in `mask` is bool.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]):
        super().__init__()
        for name, (num, *shape) in shapes.items():
            dtype = torch.bool if name.endswith(MASK) else torch.float32
            self.register_buffer(name, torch.zeros(num + 1, *shape, dtype=dtype))

    @classmethod
    def of(cls, tables: Mapping[str, Tensor]) -> Texts:
        """The module of these tables, which it does not copy."""
        made = cls({})
        for name, table in tables.items():
            made.register_buffer(name, table)
        return made

    @property
    def shapes(self) -> dict[str, list[int]]:
        """The argument that makes it again."""
        return {name: [len(table) - 1, *table.shape[1:]] for name, table in self.named_buffers()}

    def __deepcopy__(self, memo):
        return self

    def forward(self, prompt: Tensor) -> dict[str, Tensor]:
        """The embeddings of prompts [B], by table."""
        return {name: table[prompt.to(table.device)].to(prompt.device) for name, table in self.named_buffers()}

    def _apply(self, fn, recurse: bool = True):
        size = sum(table.numel() * table.element_size() for table in self.buffers())
        return self if size > RESIDENT else super()._apply(fn, recurse)

    def _load_from_state_dict(self, state, prefix, *args):
        """Reads folders of earlier versions, whose one table is called `table`."""
        if f"{prefix}table" in state and "table" not in self._buffers:
            state[f"{prefix}text"] = state.pop(f"{prefix}table")
        super()._load_from_state_dict(state, prefix, *args)


def trimmed(tables: dict[str, Tensor], used: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Tables without the tokens at the end that no prompt uses.

    Args:
        tables: embeddings, [N, tokens, ...] under `names`.
        used: bool [N, tokens].
        names: the tables to cut.
    """
    places = used.any(0).nonzero()
    length = int(places.max()) + 1 if len(places) else 1
    return {name: table[:, :length].contiguous() if name in names else table for name, table in tables.items()}


def padded(text: Tensor, length: int) -> Tensor:
    """Embeddings [B, tokens, D] with zeros up to [B, length, D]."""
    return F.pad(text, (0, 0, 0, length - text.shape[1]))


def in_chunks(encode: Callable[[list[str]], dict[str, Tensor]], prompts: list[str]) -> dict[str, Tensor]:
    """The tables of `encode` for all prompts, a few at once, on the CPU."""
    made = [encode(prompts[i : i + CHUNK]) for i in range(0, len(prompts), CHUNK)]
    return {name: torch.cat([part[name].detach().cpu() for part in made]) for name in made[0]}


def kept(about: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tables that `about` decides, from the user's cache or made and put there.

    Args:
        about: plain data: the pipeline's print and index, the family's code, texts, precision.
        make: makes them.
    """
    room = cache.current()
    if room is None:
        return make()
    packages = {name: version(name) for name in ("diffusers", "transformers")}
    text = json.dumps({**about, **packages}, sort_keys=True)
    file = room.folder.parent / "texts" / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
    with suppress(OSError, ValueError):
        found = read_tensors(file)
        os.utime(file)
        return found
    made = make()
    with suppress(OSError, SafetensorError):  # a cache that cannot be written stops nothing
        save_tensors(file, made)
        _make_room(file.parent, room.limit)
    return made


def _make_room(folder: Path, limit: float) -> None:
    """Remove what was used longest ago, beyond the limit in bytes; the newest stays."""
    there = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    size = sum(file.stat().st_size for file in there)
    for file in there[:-1]:
        if size <= limit:
            return
        size -= file.stat().st_size
        file.unlink(missing_ok=True)
