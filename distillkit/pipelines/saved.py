"""Data sets that the package `datasets` has saved to disk (`save_to_disk`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from distillkit.errors import optional
from distillkit.pipelines.captions import COLUMNS, caption_in

SEVERAL, ONE = "dataset_dict.json", "state.json"  # the files by which a folder is known


class Saved(NamedTuple):
    """A data set.

    Args:
        rows: the `datasets.Dataset`.
        captions: of each row, or None.
        labels: of each row, or None.
    """

    rows: Any
    captions: list[str | None] | None
    labels: list[int] | None


def is_at(folder: Path) -> bool:
    """Whether a data set is saved in `folder`."""
    return any((folder / name).is_file() for name in (SEVERAL, ONE))


def read_saved(path: str) -> Saved:
    """The data set saved in a folder; of several splits the one called `train`.

    Captions are its column `caption`, `prompt` or `text`, labels its column `label`.

    Raises:
        ValueError: none is saved there, or none of its splits is called `train`.
    """
    folder = Path(path).expanduser()
    if not is_at(folder):
        raise ValueError(
            f"{path} holds no data set: give a folder that `save_to_disk` of the package datasets has made"
        )
    datasets = optional("datasets", "hf", "data sets saved by Hugging Face's package are read with")
    rows = datasets.load_from_disk(str(folder))
    if (folder / SEVERAL).is_file():
        if "train" not in rows:
            raise ValueError(f"{path} holds the splits {', '.join(rows)}: save one alone, or call it train")
        rows = rows["train"]
    column = next((name for name in COLUMNS if name in rows.column_names), None)
    captions = None if column is None else [caption_in({column: text}) for text in rows[column]]
    return Saved(rows, captions, list(rows["label"]) if "label" in rows.column_names else None)
