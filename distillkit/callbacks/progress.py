"""The progress bar of a run, in steps instead of epochs."""

import math
import time
from collections import deque
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import Progress as Bars
from torch import Tensor

from distillkit import progress
from distillkit.progress import PAUSE, clock

WATCHED = {"watch/spread": "spread", "watch/shift": "shift", "watch/lag": "fake/teacher error"}  # words of a line
MEMORY = 5.0  # seconds after which a loss has lost 63 % of its weight in the smoothed value


class Progress(ProgressBar):
    """Show the step, the smoothed loss of each role, steps per second, time gone and time left.

    In a terminal it is one bar over the whole run; new validation numbers are printed above it.
    Elsewhere (a pipe, a job's log) it is a plain line after every tenth of the run, and in between
    every 15 seconds (every 2 % of the time gone, once that is more).

    Args:
        plain: whether lines are printed in a terminal too.
    """

    def __init__(self, plain: bool = False):
        super().__init__()
        self.plain = plain
        self.enabled = True
        self.bar: Bars | None = None

    def enable(self) -> None:
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        progress.plain = self.plain

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.enabled:
            return
        total = trainer.estimated_stepping_batches
        self.total = int(total) if 0 < total < math.inf else None
        self.line_step = trainer.global_step
        self.first_time = self.look_time = time.monotonic()
        self.line_time = self.first_time - 12  # the first line comes after 3 seconds: it runs, and this is how fast
        self.recent = deque([(self.first_time, self.line_step)], maxlen=240)  # a minute of looks, for the speed
        self.losses: dict[str, float] = {}
        self.skipped: dict[str, int] = {}
        self.shown_validation, self.validated = "", trainer.global_step
        self.bar = progress.open_screen()
        if self.bar is not None:
            self.task = self.bar.add_task("", total=self.total, completed=self.line_step, what="", speed="")
            self._show(self.line_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.enabled and time.monotonic() - self.look_time >= PAUSE:
            self._look(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = trainer.global_step  # its numbers are seen a step later

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.enabled:
            self._look(trainer, pl_module, last=True)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            progress.close_screen()
            self.bar = None

    def _show(self, step: int, what: str = "", speed: str = "") -> None:
        """Update the bar to this step."""
        of = f" / {self.total:,}" if self.total else ""
        self.bar.update(
            self.task, description=f"step {step:,}{of}", completed=step, what=what, speed=speed, refresh=True
        )

    def _look(self, trainer: Trainer, pl_module: LightningModule, last: bool = False) -> None:
        """Read the metrics, here only, and show them."""
        now, step = time.monotonic(), trainer.global_step
        noted = {name: value for name, value in getattr(pl_module, "noted", {}).items() if value is not None}
        metrics = _floats({**trainer.callback_metrics, **noted})  # Lightning's own are as old as the last row
        keep = math.exp(-(now - self.look_time) / MEMORY)
        self.look_time = now
        for key, value in metrics.items():
            if key.endswith("/loss") and not key.startswith("val/"):
                role = key.removesuffix("/loss")
                self.skipped[role] = int(metrics.get(f"{role}/skipped", 0))
                old = self.losses.get(role, value)
                # a single loss that is not finite must not stick
                self.losses[role] = keep * old + (1 - keep) * value if math.isfinite(old) else value
        validation = "  ".join(
            [f"{key} {value:.4g}" for key, value in metrics.items() if key.startswith("val/")]
            + [f"{words} {metrics[key]:.3g}" for key, words in WATCHED.items() if key in metrics]
        )
        if validation != self.shown_validation:
            self.shown_validation = validation
            print(f"step {self.validated:,}  {validation}", flush=True)

        then, step_then = self.recent[0]
        self.recent.append((now, step))
        rate = (step - step_then) / max(now - then, 1e-9)
        gone = now - self.first_time
        speed = [f"{rate:.3g} steps/s", clock(gone)]
        if self.total and rate and step < self.total:
            speed.append(f"{clock((self.total - step) / rate)} left")
        losses = "  ".join(
            f"{role} {value:.4g}" + (f" ({self.skipped[role]} skipped)" if self.skipped[role] else "")
            for role, value in self.losses.items()
        )
        if self.bar is not None:
            self._show(step, losses, "  ".join(speed))
        elif self._is_time_for_a_line(step, now) or (last and step > self.line_step):
            self.line_step, self.line_time = step, now
            of = f"/{self.total:,} ({step / self.total:.0%})" if self.total else ""
            print("  ".join(part for part in (f"step {step:,}{of}", losses, *speed) if part), flush=True)

    def _is_time_for_a_line(self, step: int, now: float) -> bool:
        tenth = self.total is not None and step * 10 // self.total > self.line_step * 10 // self.total
        return tenth or now - self.line_time >= max(15.0, 0.02 * (now - self.first_time))


def _floats(metrics: dict[str, Tensor]) -> dict[str, float]:
    """All metrics as floats: one transfer per device, not one per metric."""
    floats: dict[str, float] = {}
    for device in {value.device for value in metrics.values()}:
        here = {key: value for key, value in metrics.items() if value.device == device}
        values = torch.stack([value.detach().reshape(()).float() for value in here.values()]).tolist()
        floats.update(zip(here, values, strict=True))
    return {key: floats[key] for key in metrics}
