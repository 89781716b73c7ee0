"""The ladder: fixed points in closed form, and default runs that must reach a known law."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from helpers import UNMEASURED, distil, trainer
from torch import nn

from distillkit import load_student
from distillkit.methods.base import Distiller
from distillkit.methods.scm import TangentConsistency
from distillkit.methods.score import ScoreDistiller
from distillkit.teachers.folder import FolderTeacher
from tests.battery.conftest import FOREIGN, Case, compose, loaded, plane, tiny


class ExactStudent(nn.Module):
    """A map from noise of level t to the teacher's Gaussian, exact at shift 0 and log scale 0."""

    def __init__(self, teacher, t: float):
        super().__init__()
        law, self.t = teacher.mixture, t
        self.mean, self.root = law.mean.float(), (law.axes[0] * law.variances[0].sqrt()).float()
        self.shift, self.scale = (nn.Parameter(torch.zeros(2)) for _ in range(2))

    def forward(self, x_t, t, cond):
        return self.mean + self.scale.exp() * ((x_t / self.t) @ self.root.T) + self.shift


@pytest.fixture
def distiller(method):
    """A one-step score distiller with an exact student and an exact fake score.

    Other methods have no such fixed point.
    """
    made = tiny(method)
    if not isinstance(made.model, ScoreDistiller):
        pytest.skip("no fake score, so no fixed point of this kind")
    if isinstance(made.model, TangentConsistency):
        pytest.skip("its student must be exact at every level: tests of its own prove it")
    if not hasattr(made.model.teacher, "mixture"):
        pytest.skip("no law in closed form where it is at home: tests of its own prove it")
    if len(made.model.teacher.mixture.means) > 1:
        pytest.skip("it needs classes; its fixed points are in tests/methods/test_presets.py")
    made.model.student = ExactStudent(made.model.teacher, float(made.model.step_times[0]))
    made.model.fake_score = made.model.teacher.denoiser
    return made


def gradient(model: Distiller, num: int = 4096) -> torch.Tensor:
    """The gradient of the student's loss in (shift, scale)."""
    loss = model.student_loss({"data": torch.zeros(num, 2)})
    return torch.cat(torch.autograd.grad(loss, [model.student.shift, model.student.scale]))


def test_no_pull_where_student_and_teacher_agree(distiller):
    assert gradient(distiller.model).abs().max() < 1e-6


def test_a_pull_back_from_anywhere_else(distiller):
    """Shift and scale are both pushed towards zero, from either side: the mean is not enough."""
    model = distiller.model
    law = model.teacher.mixture
    for sign in (1.0, -1.0):
        with torch.no_grad():
            model.student.shift.fill_(0.3 * sign)
            model.student.scale.fill_(0.2 * sign)
        # the best fake score for this student: a Gaussian around its own mean, of its own width
        scale = float(model.student.scale[0].detach().exp())
        model.fake_score = type(model.teacher.denoiser)(
            type(law)(
                (law.mean + 0.3 * sign)[None].tolist(),
                (scale**2 * law.covariance)[None].tolist(),
            ),
            model.teacher.process,
        )
        shift, scale = gradient(model, 20_000).reshape(2, 2)
        # displaced alike in both dimensions, whose correlation may turn a single component but not
        # the sum
        assert sign * shift.sum() > 0 and sign * scale.sum() > 0, (sign, shift, scale)


def default_run(kind: type[Distiller], folder: Path, *words: str) -> dict[str, float]:
    """Metrics of the student, or of the teacher that is left, after `fit` as a user types it.

    The product alone is measured: what the run would evaluate beside it takes as long as training.
    """
    words = ["domain=toy", *words]
    distil("fit", *FOREIGN, *words, *UNMEASURED, "--out", folder, timeout=900)
    data = loaded(json.dumps(compose(*words)["data"]))
    return measured(kind, folder, data.evaluator())


def measured(kind: type[Distiller], folder: Path, evaluator: Any) -> dict[str, float]:
    """The evaluator on 20,000 samples; of a teacher the best of its solvers by the headline.

    The energy, which no proof asks for, would take the distances of all pairs of them.
    """
    num, seed = 20_000, 1234
    if (folder / "student").is_dir():
        made = [load_student(folder).sample(num, {}, seed)]
    else:
        teacher, steps = FolderTeacher(str(folder / "teacher")), kind.proof_steps
        choices = teacher.few_step_choices(steps) if steps else [(None, None)]
        made = [teacher.generate(num, {}, seed, *choice) for choice in choices]
    with patch("distillkit.evaluation.metrics.energy_distance", return_value=0.0):
        return min((evaluator(samples, {}) for samples in made), key=lambda metrics: metrics[evaluator.headline])


# A smaller batch reaches the same bounds; half the steps are too few (std_error 0.057).
LONG = {"consistency", "reflow", "scm", "lsd", "pretrain"}  # what they do in closed form is in tests of their own
QUICKER = {"dmd": ("data.batch_size=256",)}
STEPS = 2000


def on_the_plane(case: Case) -> None:
    if case.domain != "toy":
        pytest.skip("no class of the plane: what it reaches is proved in the tests of its own world")
    if not case.kind.proof:
        pytest.skip("it goes on from a finished student, or seeks no law: tests of its own prove it")


@pytest.mark.per_family
def test_a_part_of_the_default_run_reaches_the_gaussian(case, tmp_path):
    on_the_plane(case)
    if case.method in LONG:
        pytest.skip("a minute for what the slow lane proves in full")
    words = [f"method={case.method}", "teacher=gaussian", f"trainer.max_steps={STEPS}", *QUICKER.get(case.method, ())]
    reached = default_run(case.kind, tmp_path / "run", *words)
    for metric, bound in case.kind.proof["gaussian"].items():
        assert reached[metric] <= bound, f"{metric} {reached[metric]:.3f} after {STEPS} steps"


# What is known not to reach its bounds: jumps that learn from their neighbours are smooth between
# modes, whose weights were off by 0.215 (scm), 0.316 (rcm), 0.499 (consistency_training), 0.352
# (ict) and 0.274 (ect) where 0.2 is asked for.
# Particles that follow adapters on a network drawn at random (vsd) had a width that was off by 0.44
# on the Gaussian, and weights by 0.40.
SMOOTH = ("scm", "tbcm", "rcm", "consistency_training", "ict", "ect")
SHORT = {*((method, "mixture") for method in SMOOTH), ("vsd", "gaussian"), ("vsd", "mixture")}


@pytest.mark.slow  # minutes each
@pytest.mark.parametrize("teacher", ["gaussian", "mixture"])
def test_the_default_run_reaches_the_law(method, teacher, tmp_path, request):
    if (method, teacher) in SHORT:
        request.node.add_marker(pytest.mark.xfail(reason="what is known, see SHORT", strict=True))
    if "teacher=labelled" in plane(method):
        pytest.skip("it needs classes, or more that these laws do not have")
    on_the_plane(Case(method))
    kind = Case(method).kind
    reached = default_run(kind, tmp_path / "run", f"method={method}", f"teacher={teacher}")
    for metric, bound in kind.proof[teacher].items():
        assert reached[metric] <= bound, f"{metric} {reached[metric]:.3f}"
    assert teacher == "gaussian" or reached["modes_found"] == 8


@pytest.mark.per_family
def test_a_wrong_start_is_a_wrong_start(case):
    """Before training the law is missed by far, so the runs above have something to learn."""
    on_the_plane(case)
    made = tiny(case, "model.student.lr=1e-9")
    trainer(max_steps=1).fit(made.model, made.data)
    if steps := case.kind.proof_steps:
        product = made.model.product()
        samples = product.generate(1000, {}, 0, *product.few_step_choices(steps)[0])
    else:
        samples = made.model.sample({}, 1000, 0)
    metrics = made.data.evaluator()(samples, {})
    assert metrics["std_error"] > 0.3
