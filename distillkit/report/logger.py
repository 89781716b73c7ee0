"""The metrics of a run in one file, RUN/metrics.csv, which is whole at every moment."""

import csv
import io
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from distillkit.errors import optional
from distillkit.files import write_text

PACKAGES = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb"}
NOT_TRAINING = ("step", "seconds", "val/", "test/")


class MetricsLogger(Logger):
    """Write every logged number to `metrics.csv`: a row per step, empty cells if not logged.

    The columns are `step`, `seconds` (since the logger was made, summed over all parts of a resumed
    run), then the metrics in order of appearance. A resumed run replays some steps: rows of the
    earlier part from its first new step on are dropped. A `validate` or `test` in the folder of a
    finished run does not change its history.

    Args:
        save_dir: the run folder; the current folder if None.
    """

    every = 10.0  # seconds between two writes; a checkpoint and the end of the run always write

    def __init__(self, save_dir: str | None = None):
        super().__init__()
        self._folder = Path(save_dir or ".")
        self._rows: list[dict[str, Any]] = []
        self._earlier: list[dict[str, Any]] | None = None  # rows of the file found at the start; None: not looked yet
        self._born, self._before = time.monotonic(), 0.0
        self._next_write, self._dirty = self._born + self.every, False

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    log_dir = root_dir = save_dir

    @property
    def path(self) -> Path:
        return self._folder / "metrics.csv"

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml records these."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        step = step if step is not None else (self._rows[-1]["step"] + 1 if self._rows else 0)
        if self._earlier is None:
            self._earlier = [row for row in read_metrics(self.path) if row["step"] < step]
            self._before = max((row.get("seconds", 0.0) for row in self._earlier), default=0.0)
        if not self._rows or self._rows[-1]["step"] != step:
            self._rows.append({"step": step, "seconds": round(self._before + time.monotonic() - self._born, 3)})
        # A tensor is copied on its device: later changes by its owner do not show, and nothing
        # waits.
        for key, value in metrics.items():
            if key != "epoch":  # Lightning adds it; training here is counted in steps
                self._rows[-1][key] = value.detach().clone() if isinstance(value, Tensor) else value
        self._dirty = True

    @rank_zero_only
    def save(self) -> None:
        """Write if it is time to; Lightning calls this after every `log_metrics`."""
        if time.monotonic() >= self._next_write:
            self._write()

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.finalize("checkpoint")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._write()

    def _write(self) -> None:
        begun = time.monotonic()
        training = any(not key.startswith(NOT_TRAINING) for row in self._rows for key in row)
        if self._dirty and (training or not self.path.exists()):
            _to_floats(self._rows)
            rows = [*(self._earlier or []), *self._rows]
            columns = list(dict.fromkeys(["step", "seconds", *(key for row in rows for key in row)]))
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
            write_text(self.path, text.getvalue())
            self._dirty = False
        # The whole file is written anew, so a long history waits longer: at most 2 % of the time
        # goes here.
        now = time.monotonic()
        self._next_write = now + max(self.every, 50 * (now - begun))


def needs_package(logger: str) -> None:
    """Refuse a Lightning logger, given by its class path, whose package is not installed."""
    name = logger.rpartition(".")[2]
    if name in PACKAGES and not (name == "TensorBoardLogger" and find_spec("tensorboardX")):
        optional(PACKAGES[name], "log", f"{name} needs")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv, each with `step` and its numbers; empty if there is no file.

    Rows that are damaged are left out, and from one that is no csv on all.
    """
    if not path.is_file():
        return []
    rows: list[dict[str, float]] = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file, suppress(csv.Error):
        for row in csv.DictReader(file):
            rows.append({key: _number(cell) for key, cell in row.items() if key and cell})
    return [{**row, "step": int(row["step"])} for row in rows if math.isfinite(row.get("step", math.nan))]


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan


def _cell(value: Any) -> str:
    """A number with seven digits, the precision of float32: 0.3 and not 0.30000001192092896."""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _to_floats(rows: list[dict[str, Any]]) -> None:
    """Turn the tensors among the values into floats in place, with one transfer per device."""
    cells = [(row, key) for row in rows for key, value in row.items() if isinstance(value, Tensor)]
    for device in {row[key].device for row, key in cells}:
        here = [(row, key) for row, key in cells if row[key].device == device]
        values = torch.stack([row[key].reshape(()).to(torch.float32) for row, key in here]).tolist()
        for (row, key), value in zip(here, values, strict=True):
            row[key] = value
