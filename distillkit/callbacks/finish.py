"""The products of a finished run: student folder, evaluation, pictures, report."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from distillkit import checks
from distillkit.data import DistillData
from distillkit.devices import able
from distillkit.errors import pasted
from distillkit.evaluation.pictures import save_files, save_picture, save_student
from distillkit.evaluation.rows import UNTRAINED
from distillkit.files import read_yaml, write_atomic, write_text
from distillkit.processes import Crew, several
from distillkit.progress import progress
from distillkit.report.logger import MetricsLogger
from distillkit.report.sounds import sounds_in
from distillkit.students.base import NUM_EXAMPLES, Student

PLAYED, KEPT = 4, 3  # sounds of each model in a run, and beside its weights
MOST_NAMES = 1000  # of classes in a student's folder
SMALL = 500_000  # bytes of a sound that is kept beside weights, at most


class Finish(Callback):
    """Exports, evaluates and reports when `fit` ends, on the devices of training.

    All processes make the samples of the evaluation together. The first one does the rest.

    Args:
        num_samples: samples of every model in the evaluation; 0 leaves the evaluation out.
        seed: seed of the evaluation's noise, which training never uses.
        pictures: whether samples are drawn; false for models that are too slow for it.
    """

    def __init__(self, num_samples: int = 1000, seed: int = 1234, pictures: bool = True):
        if num_samples != 0:
            checks.whole(2, why="0 leaves the evaluation out", num_samples=num_samples)
        checks.seed(seed=seed)
        self.num_samples, self.seed, self.pictures = num_samples, seed, pictures

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.check_steps(ended=True)  # also where a run went on from its last step, so that no training ended
        if trainer.fast_dev_run:
            return
        pl_module = pl_module.gathered()
        crew = Crew() if self.num_samples and several() else None
        if not trainer.is_global_zero and crew is None:
            return
        pl_module.to(able(trainer.strategy.root_device))  # Lightning has moved it to the CPU
        try:
            if trainer.is_global_zero:
                run = Path(trainer.default_root_dir)
                for logger in trainer.loggers:
                    if isinstance(logger, MetricsLogger):
                        logger.finalize("success")  # the report draws the last steps too
                finish(pl_module, trainer.datamodule, run, self.num_samples, self.seed, self.pictures, crew)
            else:
                help_finish(pl_module, trainer.datamodule, crew, self.num_samples)
        finally:
            if crew and trainer.is_global_zero:
                crew.dismiss()
            pl_module.cpu()


def is_complete(folder: str | Path, record: str, steps: int) -> bool:
    """Whether a run with this config.yaml made all its steps here, and its products after them.

    Args:
        folder: the run folder.
        record: the content of config.yaml.
        steps: the steps of all roles; -1 where they are not known, so that no run is complete.
    """
    config, report = Path(folder, "config.yaml"), Path(folder, "report.html")
    try:
        if not report.is_file() or config.read_text(encoding="utf-8") != record:
            return False
        facts = next(file for kind in ("student", "teacher") if (file := Path(folder, kind, f"{kind}.yaml")).is_file())
        made = sum(role["steps"] for role in read_yaml(facts)["skipped"].values())
        return made == steps and facts.stat().st_mtime <= report.stat().st_mtime
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return False  # what an older version or another program left


def finish(
    model: LightningModule,
    data: Any,
    run: Path,
    num_samples: int = 1000,
    seed: int = 1234,
    pictures: bool = True,
    crew: Crew | None = None,
) -> None:
    """Write the products of `Finish` into the run folder; computes where the model is.

    The processes of the `crew`, the others in `help_finish`, make the samples of the evaluation.
    """
    from distillkit.report.card import write_card
    from distillkit.report.page import write_report
    from distillkit.report.warned import read_warnings

    config = read_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    product, teacher, student = concluded(model)
    kind, facts = product.kind, {**model.facts(), "domain": data.domain, "run": provenance(config)}
    if num_samples:
        facts["num_samples"] = num_samples
    if word := config.get("method"):
        facts |= {"method": word, "mechanism": facts["method"]}
    kappa = facts.get("kappa", 1.0)
    if student:
        facts |= called(student, data) | ({"shown": dict(data.shown)} if data.shown else {})
    if student and student.context:
        facts |= {"asks": data.asks, "examples": student.condition(data.conditions(NUM_EXAMPLES))}
    product.save(run / kind, **facts)
    for folder in (run, run / kind):  # of the weights before
        (folder / "evaluation.json").unlink(missing_ok=True)

    if pictures:
        with progress("drawing pictures"):
            _show(data, teacher, student, run, kind, seed, kappa)

    asked = (num_samples, seed, kappa, untrained(model, student) if num_samples else None, crew)
    evaluation = _evaluate(data, teacher, student, run, *asked) if num_samples else None
    facts = read_yaml(run / kind / f"{kind}.yaml")
    command = pasted("fit", "--config", run / "config.yaml") if config else None
    warned = read_warnings(run)
    write_card(run / kind, kind, facts, evaluation, command, warned)
    report = write_report(run)
    if evaluation and "rows" in evaluation:
        from rich.console import Console

        from distillkit.report.quality import evaluation_table

        Console().print(evaluation_table(evaluation, facts, warned))
    print(f"{kind}: {run / kind}\nreport: {report}", flush=True)


def help_finish(model: LightningModule, data: Any, crew: Crew, num_samples: int) -> None:
    """Makes this process's part of the samples of the evaluation in the first one."""
    from distillkit.evaluation.protocol import assist

    def models() -> dict[str, Any]:
        _, teacher, student = concluded(model)
        return {"teacher": teacher, "student": student, UNTRAINED: untrained(model, student)}

    assist(crew, data, models, num_samples)


def concluded(model: LightningModule) -> tuple[Any, Any, Any]:
    """The product of a trained method, and which teacher and student are evaluated."""
    model.conclude()
    product = model.eval().product().eval()
    return product, *((product, None) if product.kind == "teacher" else (getattr(model, "teacher", None), product))


def untrained(model: LightningModule, student: Student | None) -> Any:
    """The student as it was before training, where the evaluation has a row of it."""
    before = model.untrained() if student else None
    return before and before.eval()


def _evaluate(data: Any, teacher: Any, student: Any, run: Path, *asked: Any) -> dict[str, Any]:
    """Write evaluation.json and return its content; with too few data a sentence is all of it."""
    from distillkit.evaluation.metrics import TooFew
    from distillkit.evaluation.protocol import evaluate

    try:
        evaluation = evaluate(data, teacher, student, *asked)
    except TooFew as error:  # the data are small, and the product is wanted all the same
        evaluation = {"impossible": f"The evaluation was left out, for there are too few held-out data: {error}."}
        print(evaluation["impossible"], flush=True)
    write_text(run / "evaluation.json", json.dumps(evaluation, indent=1))
    return evaluation


def _show(data: Any, teacher: Any, student: Any, run: Path, kind: str, seed: int, kappa: float) -> None:
    """Save samples of student and teacher from the same noise as pictures and in file formats."""
    num = data.pictured
    cond = (teacher or student).condition(data.conditions(num))
    rows = {"student": student.sample(num, cond, seed)} if student else {}
    if teacher:
        rows["teacher_best"] = teacher.generate(num, cond, seed, kappa=kappa)
    if student and teacher:
        solver, times = teacher.few_step_choices(student.num_steps)[-1 if student.num_steps == 1 else 1]
        rows["teacher_same_steps"] = teacher.generate(num, cond, seed, solver, times, kappa)
    first = next(iter(rows.values()))
    if (real := data.real(num)) is not None:
        rows["real"] = real["data"]
    for name, samples in rows.items():
        save_picture(run / "samples" / f"{name}.png", data.media.picture(samples, cond))
        if hasattr(data.media, "film"):
            data.media.film(samples, cond, run / "samples" / f"{name}.gif")
        if hasattr(data.media, "sounds"):
            data.media.sounds(samples[:PLAYED], cond, run / "samples" / name)
    titled = {name.replace("_", " "): samples for name, samples in rows.items()}
    save_picture(run / "samples" / "comparison.png", data.media.compare(titled, cond))
    save_picture(run / kind / "samples.png", data.media.picture(first, cond))
    if hasattr(data.media, "sounds"):
        _keep_sounds(run / "samples" / next(iter(rows)), run / kind)
    else:
        save_files(data.media, first, cond, run / "samples")
    if student:
        save_student(data.media, student, cond, run / "samples")


def _keep_sounds(samples: Path, folder: Path) -> None:
    """Copy the first sounds into the folder of the weights, if they are small."""
    for path in sounds_in(samples)[:KEPT]:
        if path.stat().st_size <= SMALL:
            write_atomic(folder / path.name, partial(shutil.copyfile, path))


def called(student: Student, data: DistillData) -> dict[str, Any]:
    """The names of the student's classes, and the prompts that it was made for, where it has such.

    They are plain text, whatever the names of folders hold; of more than `MOST_NAMES` there are
    none.
    """
    names = {
        condition: [plain(name) for name in data.names[condition]]
        for condition, num in student.classes.items()
        if len(data.names.get(condition, ())) == num <= MOST_NAMES
    }
    prompts = getattr(student.network, "known", None)
    return ({"names": names} if names else {}) | ({"prompts": list(prompts)} if prompts else {})


def plain(text: str) -> str:
    """A name with bytes that are no text escaped."""
    return str(text).encode(errors="backslashreplace").decode()


def provenance(config: dict[str, Any]) -> dict[str, Any]:
    """The teacher and the data of a run's config, which student folders keep for evaluation."""
    arguments = (config.get("model") or {}).get("init_args") or {}
    return {key: value for key, value in (("teacher", arguments.get("teacher")), ("data", config.get("data"))) if value}
