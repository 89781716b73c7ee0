"""The prompts of a user, in one order for teacher and data: a prompt is known by its number."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from distillkit.pipelines import saved, shards
from distillkit.pipelines.captions import distinct, said, table, texts_in


def read_prompts(path: str) -> list[str]:
    """The different prompts of a file, a folder or a pattern of shards, in its order.

    A prompt is a line of a text file, an entry of the column `caption`, `prompt` or `text` of a
    .csv file, or that key of each line of a .jsonl file. Of a folder the file among
    `captions.CAPTIONS` is read, else the captions of its shards, see `shards.read_shards`, or of
    the data set saved in it, see `saved.read_saved`, else the .txt files in it, one prompt each, in
    the order of their names.

    Raises:
        ValueError: there is no such file, it has no prompt, or no such column.
    """
    if not (prompts := distinct(_texts(path))):
        folder = Path(path).expanduser().is_dir()
        mend = (
            "a captions.csv with the columns file and caption, or a .txt beside each file" if folder else "one a line"
        )
        raise ValueError(f"{path} has no prompts: write {mend}")
    return prompts


def _texts(path: str) -> Iterable[str | None]:
    """The texts at `path`, with repetitions."""
    file = Path(path).expanduser()
    if file.is_dir() and (named := table(file)) is not None:
        file = named
    if file.is_file():
        return [text for _, text in said(file)]
    if shards.are_at(path):
        return [sample.caption for sample in shards.read_shards(path)]
    if saved.is_at(file):
        return saved.read_saved(path).captions or ()
    if not file.is_dir():
        raise ValueError(f"there is no file of prompts {path}: give a text file with one a line, or a captions.csv")
    return texts_in(file)
