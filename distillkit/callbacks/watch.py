"""Says what goes wrong, while it goes wrong, and by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from distillkit import checks
from distillkit.errors import Failure, UsageError
from distillkit.evaluation.pictures import save_picture
from distillkit.files import write_text
from distillkit.progress import progress
from distillkit.watch.before import look
from distillkit.watch.causes import CAUSES, Facts, Finding
from distillkit.watch.during import diagnose, measure
from distillkit.watch.reference import Reference

SHOWN, ROWS = 8, 8  # samples in a row of the strip, and rows at most
WARNINGS = "warnings.json"


class Watch(Callback):
    """Measures a run before its first step and at every validation, and names causes of failure.

    A cause is said once, at the time: as a warning, in metrics.csv, in RUN/warnings.json, and so in
    report and card. RUN/samples/progress.png shows the same samples at every validation.

    Args:
        samples: number of samples that are looked at; None takes fewer of large ones, 0 none at
            all.
        unlike: begin although the data are unlike the teacher's.
        strict: stop at the first cause.
    """

    def __init__(self, samples: int | None = None, unlike: bool = False, strict: bool = False):
        if samples != 0 and samples is not None:
            checks.whole(2, why="0 looks at none", samples=samples)
        self.samples, self.unlike, self.strict = samples, unlike, strict
        self.history: list[Facts] = []
        self.found: dict[str, Finding] = {}
        self.strip: dict[str, Tensor] = {}

    # What went before is in the checkpoints

    def state_dict(self) -> dict[str, Any]:
        found = [list(finding) for finding in self.found.values()]
        return {"history": [dict(facts) for facts in self.history], "found": found, "strip": self.strip}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.strip = state["history"], state["strip"]
        self.found = {entry[0]: Finding(*entry) for entry in state["found"]}

    # The run

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.samples == 0 or trainer.fast_dev_run:
            return
        with progress("looking at data and teacher"):
            self.reference = Reference(pl_module, trainer.datamodule, self.samples)
            self.seen, self.noticed = look(pl_module, trainer.datamodule, self.reference)
        for finding in self.noticed:
            if CAUSES[finding.name].refuses and not (finding.name == "unlike_data" and self.unlike):
                raise UsageError(str(finding))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.samples == 0 or trainer.fast_dev_run:
            return
        self.record(trainer, self.seen)  # now the run has a folder
        for finding in self.noticed:
            self.say(trainer, finding)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.samples == 0 or trainer.fast_dev_run or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        facts, samples = measure(pl_module, self.reference)
        self.history.append(facts)
        self.record(trainer, facts)
        self.draw(trainer, samples)
        for finding in diagnose(self.history, pl_module):
            self.say(trainer, finding)

    def record(self, trainer: Trainer, facts: Facts) -> None:
        """Gives the facts to the loggers."""
        for logger in trainer.loggers if facts else ():
            logger.log_metrics({f"watch/{name}": value for name, value in facts.items()}, trainer.global_step)

    def say(self, trainer: Trainer, finding: Finding) -> None:
        """Warns of a cause, once in a run.

        Raises:
            Failure: `strict` is on.
        """
        if finding.name in self.found:
            return
        finding = finding._replace(step=trainer.global_step)
        self.found[finding.name] = finding
        self.write(trainer)
        if self.strict:
            raise Failure(f"stopped by --strict at step {finding.step}: {finding}")
        warnings.warn(str(finding), stacklevel=2)
        for logger in trainer.loggers:
            logger.log_metrics({f"warning/{finding.name}": 1.0}, trainer.global_step)

    def write(self, trainer: Trainer) -> None:
        """Writes RUN/warnings.json, if the run has its folder and there are any."""
        run = Path(trainer.default_root_dir)
        if self.found and (run / "config.yaml").is_file():
            write_text(run / WARNINGS, json.dumps([finding.record() for finding in self.found.values()], indent=1))

    def draw(self, trainer: Trainer, samples: Tensor) -> None:
        """Adds a row to RUN/samples/progress.png; of many rows some stay."""
        self.strip[f"step {trainer.global_step:,}"] = samples[:SHOWN].clone()
        names = list(self.strip)
        if len(names) > ROWS:
            del self.strip[names[len(names) // 2]]
        cond = {name: value[:SHOWN].cpu() for name, value in self.reference.cond.items()}
        picture = trainer.datamodule.media.compare(self.strip, cond)
        save_picture(Path(trainer.default_root_dir) / "samples" / "progress.png", picture)
