"""Checkpoints at intervals, at the end, and when the run is told to stop."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as CheckpointBase

from distillkit import checks, processes, runs, signals
from distillkit.errors import Interrupted, UsageError
from distillkit.files import write_atomic

LONG = 60.0  # seconds of training that are saved before the last validation, which may take as long
HEARD = b"stopping after this step, or after this validation and a step; another signal stops at once\n"
GO_ON, SAVE, STOP = range(3)  # what a process asks for after a step; of several, the most counts
# parts that every reader needs
NEEDED = ("state_dict", "optimizer_states", "loops", "epoch", "global_step", "pytorch-lightning_version")


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoints as whole files: written beside the old one, flushed to disk, then swapped.

    The file that last.ckpt replaces stays as previous.ckpt. A file that is read must be whole
    (every record has a checksum) and is never unpickled.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                try:
                    torch.save(checkpoint, file)
                except RuntimeError as error:  # torch's own, about the file that a full disk cut short
                    raise error.__context__ if isinstance(error.__context__, OSError) else error from None
                file.flush()
                os.fsync(file.fileno())
            if path.name == runs.LAST:
                keep_previous(path)

        write_atomic(path, write)
        with suppress(OSError):  # the folder's own entry; not every file system has this
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        runs.check_checkpoint(path)
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's errors are many; that each record is whole was checked before
            raise UsageError(f"{path} is no checkpoint of a run ({type(error).__name__})") from error
        if not isinstance(checkpoint, dict) or "distillkit" not in checkpoint:
            raise UsageError(f"{path} was not written by distillkit: give one from a run's checkpoints folder")
        lacking = [name for name in NEEDED if checkpoint.get(name) in (None, [], {})]
        if lacking or not {"method", "teacher", "seed"} <= set(checkpoint["distillkit"] or ()):
            raise UsageError(
                f"{path} lacks {' and '.join(lacking) or 'what it is of'}: give another checkpoint of the run"
            )
        return checkpoint


def keep_previous(path: Path) -> None:
    """Link the file at `path` as previous.ckpt too; without links it is moved there."""
    if path.is_file():
        previous, link = path.with_name(runs.PREVIOUS), path.with_name(f"{runs.PARTIAL}link")
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
        except OSError:
            os.replace(path, previous)
        else:
            os.replace(link, previous)


class Checkpoint(CheckpointBase):
    """Keeps RUN/checkpoints/last.ckpt up to date, with the one before as previous.ckpt.

    Ctrl-C and the signals of queues (`signals.STOP`) finish the current step, save, and print the
    command that goes on; another one, a second later, stops at once. It is enough that one process
    of several gets one. A signal that is ignored when the run starts (nohup) stays ignored. The
    last step is saved before its validation, too, if much would be lost; a run of one process
    then stops in it at once. What the validation of a saved step has found is saved with the step
    after it, so that a run that goes on has it.

    Args:
        every: optimiser steps between saves.
        minutes: minutes between saves, if that is sooner.
    """

    def __init__(self, every: int = 500, minutes: float = 10.0):
        checks.whole(1, every=every)
        checks.positive(minutes=minutes)
        self.every, self.minutes = every, minutes
        self.step, self.saved, self.saved_at = -1, -1, time.monotonic()
        self.behind = False  # the file of this step was written before its validation
        self.signal: int | None = None
        self.told_at = 0.0
        self.alone, self.ended, self.speaks = False, False, False
        self._before: dict[int, Any] = {}

    def path(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints" / runs.LAST

    def save(self, trainer: Trainer) -> None:
        """Save unless this step is saved already."""
        if self.saved != trainer.global_step:
            trainer.save_checkpoint(self.path(trainer))
            self._mark(trainer)

    def _mark(self, trainer: Trainer) -> None:
        self.saved, self.saved_at, self.behind = trainer.global_step, time.monotonic(), False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not one that the user chose
            trainer.strategy.checkpoint_io = CheckpointFiles()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark(trainer)
        self.step = trainer.global_step
        self.alone, self.ended = trainer.world_size == 1, False
        self.speaks = trainer.is_global_zero
        self._before = signals.take(self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.signal is None:
            self.signal, self.told_at = number, time.monotonic()
            if self.ended and self.alone:
                raise KeyboardInterrupt  # the last step is saved
            if self.speaks:
                with suppress(OSError):
                    os.write(2, HEARD)  # print may be what was interrupted
        elif time.monotonic() - self.told_at >= signals.AGAIN:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        signals.give_back(self._before)
        self._before = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            return  # gradients of a step that has not been made would be lost
        self.step = trainer.global_step
        last = trainer.global_step == trainer.max_steps
        late = time.monotonic() - self.saved_at >= (LONG if last else 60 * self.minutes)
        asked = STOP if self.signal is not None else SAVE if late or self.behind else GO_ON
        asked = processes.largest(asked)  # all stop or save after the same step
        if asked or trainer.global_step % self.every == 0:
            self.save(trainer)
            self.ended = last
        if asked == STOP:
            self.stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.behind |= self.saved == trainer.global_step
        self.saved = -1  # what it has found belongs to the step

    def stop(self, trainer: Trainer) -> None:
        """Ends the run, which is saved.

        Raises:
            Interrupted: always.
        """
        raise Interrupted(f"stopped at step {trainer.global_step}; {runs.way_on(trainer.default_root_dir)}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()
        self.save(trainer)
        if not trainer.fast_dev_run and pl_module.conclude():
            trainer.save_checkpoint(self.path(trainer))  # decisions are saved before anything is exported
        if processes.largest(self.signal is not None):  # it came after the last step, in its validation
            self.stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()
