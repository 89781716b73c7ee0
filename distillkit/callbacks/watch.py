"""Says what goes wrong, while it goes wrong, and by name."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from distillkit import checks, runs
from distillkit.callbacks.checkpoint import Checkpoint
from distillkit.errors import Failure, UsageError
from distillkit.evaluation.pictures import save_picture
from distillkit.files import write_text
from distillkit.progress import progress
from distillkit.report.warned import WARNINGS
from distillkit.watch.before import look
from distillkit.watch.causes import CAUSES, Facts, Finding
from distillkit.watch.during import begin, diagnose, measure
from distillkit.watch.passes import Passes
from distillkit.watch.reference import Reference, evenly
from distillkit.watch.teacher import doubt

SHOWN, ROWS = 8, 8  # samples in a row of the strip, and rows at most
POINT = 8  # numbers of a sample that is a dot in a plot: all are shown
NUMBERS = 2**20  # in a row, which checkpoints keep


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
        self.strip: dict[int, Tensor] = {}  # samples by step
        self.first: Tensor | None = None
        self.passes: Passes | None = None
        self.stopping: Finding | None = None

    # What went before is in the checkpoints

    def state_dict(self) -> dict[str, Any]:
        found = [list(finding) for finding in self.found.values()]
        history = [dict(facts) for facts in self.history]
        return {"history": history, "found": found, "strip": self.strip, "first": self.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.strip, self.first = state["history"], state["strip"], state["first"]
        self.found = {entry[0]: Finding(*entry) for entry in state["found"]}

    # The run

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.looks(trainer):
            return
        with progress("looking at data and teacher"):
            self.reference = Reference(pl_module, trainer.datamodule, self.samples)
            found = look(pl_module, trainer.datamodule, self.reference)
        self.seen, self.noticed = trainer.strategy.broadcast(found)  # all processes begin, or none
        for finding in self.noticed:
            if CAUSES[finding.name].refuses and not (finding.name == "unlike_data" and self.unlike):
                raise UsageError(str(finding))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.looks(trainer):
            return
        facts, found = doubt(pl_module, self.reference)
        self.record(trainer, self.seen | facts)  # now the run has a folder
        for finding in (*self.noticed, *found):
            self.say(trainer, finding)
        if self.stopping:
            raise Failure(f"stopped by --strict before the first step: {self.stopping}")
        self.write(trainer)  # of a run that goes on in another folder
        if self.first is None or self.first.shape != self.reference.first.shape:  # it looks at other samples now
            self.first, self.history = self.reference.first, [begin(self.reference)]
            self.strip = {trainer.global_step: self.first[self.shown(self.first)]}
        self.reference.first = self.first  # of a run that goes on: as it was before its first part
        self.passes = Passes(pl_module, trainer.datamodule.batch_size)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.passes is not None:
            self.passes.begin(pl_module.turn(trainer.global_step))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.passes is not None:
            self.passes.end()
        if self.stopping and trainer.global_step > self.stopping.step:  # a step's end is where runs go on bit for bit
            self.stop(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.looks(trainer):
            return
        facts, samples = measure(pl_module, self.reference)  # in all processes: sharded networks need all of them
        facts = trainer.strategy.broadcast(facts)
        self.history.append(facts)
        named = facts | (self.passes.facts() if self.passes is not None else {})
        self.log_dict({f"watch/{name}": float(value) for name, value in named.items()}, rank_zero_only=True)
        if trainer.is_global_zero and trainer.datamodule.media is not None:
            self.draw(trainer, samples)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.looks(trainer):
            for finding in diagnose(self.history, pl_module):
                self.say(trainer, finding)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop_counting()
        if self.stopping:
            self.stop(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer)  # of a run that had no step left, in another folder

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.stop_counting()

    def stop_counting(self) -> None:
        if self.passes is not None:
            self.passes.remove()
        self.passes = None

    def looks(self, trainer: Trainer) -> bool:
        """Whether this run is watched."""
        asked = self.samples != 0 and not trainer.fast_dev_run and trainer.state.fn == "fit"
        return asked and len(trainer.datamodule.val) > 1  # one sample has no spread

    def record(self, trainer: Trainer, facts: Facts) -> None:
        """Gives the facts to the loggers."""
        for logger in trainer.loggers if facts else ():
            logger.log_metrics({f"watch/{name}": value for name, value in facts.items()}, trainer.global_step)

    def say(self, trainer: Trainer, finding: Finding) -> None:
        """Warns of a cause, once in a run; with `strict` the run stops after its next step."""
        if finding.name in self.found:
            return
        mend = valued(finding.mend or CAUSES[finding.name].mend, trainer.lightning_module)
        finding = finding._replace(step=trainer.global_step, mend=mend)
        self.found[finding.name] = finding
        self.write(trainer)
        if self.strict:
            self.stopping = self.stopping or finding
        elif trainer.is_global_zero:
            warnings.warn(str(finding), stacklevel=2)
        for logger in trainer.loggers:
            logger.log_metrics({f"warning/{finding.name}": 1.0}, trainer.global_step)

    def stop(self, trainer: Trainer) -> None:
        """Saves a checkpoint and ends the run.

        Raises:
            Failure: always.
        """
        finding, self.stopping = self.stopping, None
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoint):
                trainer.save_checkpoint(callback.path(trainer))
        command = runs.continuation(trainer.default_root_dir)
        goes_on = f"; to go on all the same: {command}" if trainer.checkpoint_callbacks else ""
        raise Failure(f"stopped by --strict, {finding}{goes_on}")

    def write(self, trainer: Trainer) -> None:
        """Writes RUN/warnings.json, if the run has its folder and there are any."""
        run = Path(trainer.default_root_dir)
        if self.found and trainer.is_global_zero and (run / "config.yaml").is_file():
            entries = [finding.record() for finding in self.found.values()]
            write_text(run / WARNINGS, f"{json.dumps(entries, indent=1)}\n")

    def shown(self, samples: Tensor) -> Tensor:
        """Which samples are in a row: all that are points, few of large ones."""
        each = max(1, samples[0].numel())
        points = each <= POINT and samples.is_floating_point()
        num = len(samples) if points else max(1, min(SHOWN, NUMBERS // each, len(samples)))
        return evenly(num, len(samples))

    def draw(self, trainer: Trainer, samples: Tensor) -> None:
        """Adds a row to RUN/samples/progress.png.

        Of many rows those stay that are most evenly apart.
        """
        chosen = self.shown(samples)
        self.strip[trainer.global_step] = samples[chosen]
        if len(self.strip) > ROWS:
            del self.strip[crowded([*self.strip])]
        rows = {f"step {step:,}": row for step, row in self.strip.items()}
        if self.reference.target is not None:
            rows["teacher" if self.reference.teacher is not None else "real"] = self.reference.target[chosen]
        cond = {name: value.cpu()[chosen] for name, value in self.reference.cond.items()}
        picture = trainer.datamodule.media.compare(rows, cond)
        save_picture(Path(trainer.default_root_dir) / "samples" / "progress.png", picture)


def valued(mend: str, model: Any) -> str:
    """The mend with what its keys are now, such as `lower model.student.lr (now 0.05)`."""

    def told(match: re.Match[str]) -> str:
        *role, name = match[1].split(".")
        value = getattr(model.settings.get(role[0]) if role else model, name, None)
        return f"{match[0]} (now {value:g})" if isinstance(value, int | float) else match[0]

    return re.sub(r"\bmodel\.([a-z_]+(?:\.[a-z_]+)?)\b(?!=)", told, mend)


def crowded(steps: list[int]) -> int:
    """The step, neither the first nor the last, whose neighbours are closest to each other."""
    return min(zip(steps, steps[1:], steps[2:], strict=False), key=lambda three: three[2] - three[0])[1]
