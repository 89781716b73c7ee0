"""Nothing is lost: a checkpoint at intervals, at the end, and when the run is told to stop."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as CheckpointBase

from distillkit.errors import Interrupted


class Checkpoint(CheckpointBase):
    """Keeps RUN/checkpoints/last.ckpt up to date, written atomically by Lightning.

    Ctrl-C and SIGTERM finish the current step, save, and say how to go on; a second signal stops at once.

    Args:
        every: optimiser steps between saves.
    """

    def __init__(self, every: int = 500):
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.every, self.saved = every, -1
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def path(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def save(self, trainer: Trainer) -> None:
        if self.saved != trainer.global_step:
            self.saved = trainer.global_step
            trainer.save_checkpoint(self.path(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        stop = self.signal is not None
        if trainer.world_size > 1 and trainer.global_step % trainer.log_every_n_steps == 0:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)  # one process's signal stops all
        elif trainer.world_size > 1:
            stop = False
        if stop:
            self.save(trainer)
            raise Interrupted(
                f"stopped at step {trainer.global_step}; go on with: python -m distillkit fit "
                f"--config {Path(trainer.default_root_dir) / 'config.yaml'} --ckpt_path {self.path(trainer)}"
            )
        if trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()
        self.save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()
