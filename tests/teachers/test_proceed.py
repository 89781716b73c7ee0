"""Rollouts of any modality: the contract, on a teacher of sound that continues its last values."""

import re

import numpy as np
import pytest
import torch
from helpers import Tail, gaussian, neural, trainer, wake

from distillkit.cli.products import sample
from distillkit.data import DistillData, TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.errors import UsageError
from distillkit.files import read_yaml, write_yaml
from distillkit.methods.dmd import DMD
from distillkit.methods.lsd import LSD
from distillkit.networks.mlp import MLP
from distillkit.rollouts import rolled_out
from distillkit.spec import Recorded
from distillkit.students.base import load_student
from distillkit.teachers.base import Teacher
from distillkit.teachers.folder import FolderTeacher

TRUST = ("helpers", __name__.split(".")[0])
SHARED = 2  # values of a sample that it has from the one before


class Sound(Denoiser, Recorded):
    """Its samples begin with the values `before`."""

    def forward(self, x_t, t, cond):
        before = cond["before"]
        return torch.cat([before, super().forward(x_t, t, {})[:, :, SHARED:]], dim=2)


class Tones(DistillData):
    """Tones [1, 6], and the two values before each."""

    event_shape, classes, context = (1, 6), {}, ("before",)
    domain = "sound"

    def load(self):
        x = torch.sin(torch.arange(8) + torch.arange(40.0)[:, None])[:, None]
        made = TensorData({"data": x[:, :, SHARED:], "before": x[:, :, :SHARED]})
        return made, made, made

    build_evaluator = media = None


def teacher():
    network = wake(MLP([1, 6], width=8, depth=1))
    denoiser = Sound(network, VarianceExploding(), "edm", 1.0)
    return Teacher(denoiser, (1, 6), context=("before",), continuation=Tail())


def test_a_teacher_says_what_comes_after_a_sample():
    cond, made = {"before": torch.zeros(3, 1, SHARED)}, torch.arange(18.0).reshape(3, 1, 6)
    after = teacher().proceed(cond, made)
    assert torch.equal(after["before"], made[:, :, 4:]) and not cond["before"].any()
    plain = Teacher(teacher().denoiser, (1, 6), context=("before",))
    assert plain.proceed(cond, made) is None
    assert plain.fingerprint() == teacher().fingerprint()  # how it goes on changes no sample


def test_joined_samples_keep_the_earlier_one_s_part():
    own = teacher()
    cond = {"before": torch.full((3, 1, SHARED), 0.3)}
    long = rolled_out(own.generate, own.continuation, cond, 3, seed=2)
    parts, following = [], cond
    for k in range(3):
        parts.append(own.generate(3, following, 2 * 3 + k))
        following = own.proceed(following, parts[-1])
    assert long.shape == (3, 1, 6 + 4 + 4)
    assert torch.equal(long, torch.cat([parts[0], parts[1][:, :, 2:], parts[2][:, :, 2:]], dim=2))
    assert torch.equal(rolled_out(own.generate, own.continuation, cond, 1), own.generate(3, cond, 0))


@pytest.mark.parametrize("axis", [0, 3, -3, 99])
def test_an_axis_that_samples_do_not_have_is_refused(axis):
    own = teacher()
    with pytest.raises(ValueError, match=rf"Tail cannot go on along axis {axis} of samples \[3, 1, 6\]"):
        rolled_out(own.generate, Tail(axis=axis), {"before": torch.zeros(3, 1, SHARED)}, 2)


@pytest.mark.parametrize("method", [DMD, LSD])
def test_from_training_to_long_samples_on_the_command_line(method, tmp_path, capsys):
    """The student's folder records its continuation; a sampler brings its teacher."""
    own = FolderTeacher(str(teacher().save(tmp_path / "s" / "teacher")), trust=[*TRUST])
    assert isinstance(own.continuation, Tail)
    torch.manual_seed(0)
    model = DMD(own, rollouts=3) if method is DMD else LSD(own, num_steps=2, num_pairs=8, guard=0)
    data = Tones(batch_size=8)
    trainer(max_steps=8).fit(model, data)
    examples = own.condition(data.conditions(4))
    model.export(tmp_path / "s", examples=examples)
    student = load_student(tmp_path / "s", TRUST)
    assert isinstance(student.continuation, Tail)
    assert ("continuation" in student.config) == (method is DMD)
    allowed = [word for name in (*TRUST, str(tmp_path / "s")) for word in ("--trust", name)]
    assert sample([str(tmp_path / "s"), "-n", "3", "--rollouts", "4", "--out", str(tmp_path / "long"), *allowed]) == 0
    found = np.load(tmp_path / "long" / "samples.npz")["samples"]
    expected = rolled_out(student.sample, Tail(), student.default_condition(3), 4)
    assert found.shape == (3, 1, 6 + 3 * 4) and torch.equal(torch.from_numpy(found), expected)


def test_a_damaged_record_is_refused(tmp_path):
    model = DMD(teacher())
    model.export(tmp_path / "s")
    config = read_yaml(tmp_path / "s" / "student.yaml")
    for value in ({"class_path": "distillkit.codec.Codec", "init_args": {}}, 3):
        write_yaml(tmp_path / "s" / "student.yaml", {**config, "continuation": value})
        with pytest.raises(ValueError, match="student.yaml is damaged: continuation cannot be"):
            load_student(tmp_path / "s", TRUST)


def test_a_record_that_does_not_fit_the_student_is_refused(tmp_path):
    """A stranger's folder says that it goes on, but lacks the conditioning that this takes."""
    DMD(gaussian(0.0, 1.0)).export(tmp_path / "alone")
    DMD(neural()).export(tmp_path / "label")
    frames = {"class_path": "domains.video.continuation.LastFrames", "init_args": {}}
    for folder, said in (
        ("alone", "this model is conditioned on nothing"),
        ("label", "cond['first'], which this model"),
    ):
        config = read_yaml(tmp_path / folder / "student.yaml")
        write_yaml(tmp_path / folder / "student.yaml", {**config, "continuation": frames})
        with pytest.raises(UsageError, match=re.escape(said)):
            sample([str(tmp_path / folder), "-n", "2", "--rollouts", "2"])


def test_a_student_whose_teacher_does_not_proceed_says_so(tmp_path):
    DMD(Teacher(teacher().denoiser, (1, 6), context=("before",))).export(tmp_path / "s")
    with pytest.raises(UsageError, match="--rollouts 2: neither this student nor its teacher says what comes after"):
        sample([str(tmp_path / "s"), "--rollouts", "2", "--trust", TRUST[1]])
