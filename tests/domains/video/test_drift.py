"""Long videos: from the command line to files, and what is measured of them."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import UNMEASURED, distil, wake

from distillkit import load_student
from distillkit.cli.products import sample
from distillkit.errors import UsageError
from distillkit.files import read_yaml, write_yaml
from distillkit.rollouts import rolled_out
from domains.video import drift
from tests.battery.conftest import build

SMALL = ["data.train=60", "data.val=60", "data.test=40", "data.batch_size=2", "model.num_steps=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two steps on an untrained teacher, on clips that follow each other."""
    at = tmp_path_factory.mktemp("drift")
    own = build("domain=video", "stage=continuation", "method=pretrain", *SMALL[:4], "network.channels=8")
    wake(own.model.ema)
    own.model.export(at / "teacher")
    words = ["domain=video", "stage=continuation", "method=dmd", "model.rollouts=2", "teacher=folder", *SMALL]
    distil("fit", *words, f"teacher.path={at}/teacher", "trainer.max_steps=3", *UNMEASURED, "--out", at / "run")
    return at / "run"


def test_a_student_goes_on_from_the_command_line(folder, tmp_path, capsys):
    distil("sample", folder, "-n", "3", "--rollouts", "3", "--out", tmp_path / "long")
    long = np.load(tmp_path / "long" / "samples.npz")["samples"]
    assert long.shape == (3, 1, 40, 16, 16)
    assert (tmp_path / "long" / "clips.gif").is_file()
    student = load_student(folder)  # the same first frames, from its own folder, and what it says without any
    assert torch.equal(
        rolled_out(student.sample, student.continuation, student.default_condition(3), 3), torch.from_numpy(long)
    )
    with pytest.raises(ValueError, match=r"needs cond\['first'\] for 2 samples: the first frames of each clip"):
        student.sample(2, {"label": [0, 1], "motion": [0, 1]})
    words = [str(folder), "-n", "40", "--clips", "2", "--out", str(tmp_path / "drift")]
    assert drift.main(words) == 2 and f"--trust {folder.parent}/teacher" in capsys.readouterr().err
    words += ["--trust", f"{folder.parent}/teacher"]
    assert drift.main(words) == 0
    said = capsys.readouterr().out
    assert "frechet" in said and "motion" in said
    found = json.loads((tmp_path / "drift" / "drift.json").read_text())["models"]
    assert set(found) == {"teacher", str(folder)} and len(found["teacher"]["frechet"]) == 2
    assert {path.name for path in (tmp_path / "drift").iterdir()} == {"0", "1", "drift.json", "drift.png"}
    assert drift.main(words) == 2 and "exists already" in capsys.readouterr().err


def test_every_clip_is_measured_by_itself(folder):
    student = load_student(folder)
    own = build(
        "domain=video",
        "stage=continuation",
        "method=dmd",
        *SMALL,
        "teacher=folder",
        f"teacher.path={folder}/../teacher",
    )
    cond = own.data.conditions(4)
    video = rolled_out(student.sample, student.continuation, cond, 3)
    seen = []

    def evaluator(clips, asked):
        seen.append(clips)
        assert set(asked) == {"label", "motion"}
        return {"mean": float(clips.mean())}

    found = drift.drift(evaluator, video, cond, 16)
    assert len(found["mean"]) == 3 and all(clips.shape == (4, 1, 16, 16, 16) for clips in seen)
    assert torch.equal(seen[0][:, :, 12:], seen[1][:, :, :4]) and torch.equal(seen[2][:, :, -1], video[:, :, -1])


def test_a_guidance_scale_counts_in_every_clip(folder, tmp_path):
    """It reaches the student, which here was not told any."""
    with pytest.raises(UsageError, match="was not told kappa"):
        sample([str(folder), "-n", "2", "--rollouts", "2", "--kappa", "2", "--out", str(tmp_path / "s")])


def test_only_students_that_are_given_frames_go_on(tmp_path, capsys):
    own = build("domain=toy", "method=dmd")
    own.model.export(tmp_path / "toy")
    assert drift.main([str(tmp_path / "toy")]) == 2 and "is not given first frames" in capsys.readouterr().err
    with pytest.raises(UsageError, match="cannot go on from its own"):
        sample([str(tmp_path / "toy"), "--rollouts", "2"])


def test_a_folder_of_an_earlier_version_goes_on_as_its_teacher_does(folder, tmp_path, capsys):
    """The teacher's continuation is used; where it has none, one sentence says what is missing."""
    old, teacher = tmp_path / "student", folder.parent / "teacher"
    shutil.copytree(folder / "student", old)
    config = read_yaml(old / "student.yaml")
    assert config.pop("continuation")["class_path"] == "domains.video.continuation.LastFrames"
    write_yaml(old / "student.yaml", config)
    words = ["-n", "2", "--rollouts", "2", "--trust", str(teacher)]
    assert sample([str(old), *words, "--out", str(tmp_path / "old")]) == 0
    assert sample([str(folder), *words, "--out", str(tmp_path / "new")]) == 0
    one, other = (np.load(tmp_path / name / "samples.npz")["samples"] for name in ("old", "new"))
    assert one.shape == (2, 1, 28, 16, 16) and (one == other).all()
    moved = tmp_path / "teacher"
    shutil.copytree(teacher, moved)
    facts = read_yaml(moved / "teacher.yaml")
    del facts["continuation"]
    write_yaml(moved / "teacher.yaml", facts)
    config["run"]["teacher"]["init_args"]["path"] = str(moved)
    write_yaml(old / "student.yaml", config)
    with pytest.raises(UsageError, match="neither this student nor its teacher says what comes after a sample"):
        sample([str(old), "--rollouts", "2", "--trust", str(moved)])
