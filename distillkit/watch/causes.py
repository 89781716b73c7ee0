"""The causes of failure that a run names, each with its mend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Cause(NamedTuple):
    """A cause of failure.

    Args:
        title: what is wrong, the beginning of its sentence.
        mend: what to do, in words of the command line.
        refuses: whether the run does not begin.
    """

    title: str
    mend: str
    refuses: bool = False


CAUSES: dict[str, Cause] = {
    # before the first step
    "unlike_data": Cause(
        "the data are unlike the teacher's",
        "give data in the teacher's range and of its kind, or say vars.callbacks.watch.unlike=true",
        refuses=True,
    ),
    "wrong_scale": Cause("the data's scale is not that of the run", "set model.sigma_data"),
    "ignored_class": Cause("the teacher ignores its classes", "choose a teacher that was trained with them"),
    "untrained_null": Cause(
        "the teacher's unconditional branch is untrained, so guidance has no sense",
        "say model.kappa=1, or train the teacher with model.drop=0.1",
        refuses=True,
    ),
    "long_ema": Cause("the average is older than the run", "lower model.ema_halflife or model.ema_rampup"),
    "unseen_class": Cause("there are no training data of some classes", "give some, or ask for others alone"),
    "no_start": Cause(
        "the teacher predicts noise where there is no signal at all, so one step from there means nothing",
        "say model.t_init below the process's end",
    ),
    "few_updates": Cause("the student has too few steps to learn from", "raise trainer.max_steps"),
    "memorised": Cause("the teacher repeats its training data", "choose a teacher trained on more data"),
    # while it runs
    "lagging_fake_score": Cause("the fake score lags", "raise model.fake_score.updates or model.fake_score.lr"),
    "high_rate": Cause("the learning rate is too high", "lower model.student.lr"),
    "over_guided": Cause("guidance is too strong", "lower model.kappa"),
    "unconverged_teacher": Cause("the teacher has not converged", "train it longer with method=pretrain"),
    "diverged_role": Cause("a role has diverged", "lower its rate, model.ROLE.lr"),
}


class Finding(NamedTuple):
    """A cause that was found.

    Args:
        name: a key of `CAUSES`.
        measured: the evidence, such as `0.99 of the teacher's error at noise 0.3 to 1.5`.
        mend: words in place of those of the cause; empty for its own.
        step: of the run.
    """

    name: str
    measured: str
    mend: str = ""
    step: int = 0

    def __str__(self) -> str:
        cause = CAUSES[self.name]
        return f"{cause.title} ({self.measured}): {self.mend or cause.mend}"

    def record(self) -> dict[str, Any]:
        """The entry of RUN/warnings.json."""
        return {"name": self.name, "step": self.step, "title": CAUSES[self.name].title, "said": str(self)}


Facts = Mapping[str, float]  # what was measured, by the names in metrics.csv without `watch/`
