"""`optimize` from the command line: files, numbers, and one sentence for what cannot be done."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import domains.image
import domains.video
from distillkit.cli import front
from distillkit.spec import to_spec
from distillkit.students.base import load_student
from distillkit.students.few_step import FewStepStudent
from domains.image.controls import Brightness
from domains.image.data import Digits
from domains.image.teacher import Digits as Teacher

ASK = ["--control", "brightness=0.3", "--steps", "12", "--lr", "0.05", "-n", "3", "--seed", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A student folder: the shipped teacher, called twice; and a teacher folder of the same."""
    folder, teacher, data = tmp_path_factory.mktemp("optimize"), Teacher(), to_spec(Digits())
    run = {"teacher": to_spec(teacher), "data": data}
    facts = {"id": teacher.id, "hash": teacher.fingerprint()}
    times = teacher.grid(3)[:-1].tolist()
    student = FewStepStudent(copy.deepcopy(teacher.denoiser), times, (1, 8, 8), {"label": 10})
    student.save(folder / "student", teacher=facts, domain="image", run=run)
    teacher.save(folder / "teacher", domain="image", run={"data": data})
    return folder


def optimized(made, out, *words, model="student", capsys=None):
    """The content of control.json and of samples.npz, and what was said."""
    assert front.main(["optimize", str(made / model), *words, "--out", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().out if capsys else ""
    return json.loads((out / "control.json").read_text()), np.load(out / "samples.npz", allow_pickle=False), said


def complaint(capsys, *words):
    code = front.main(["optimize", *map(str, words)])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: "), (code, err)
    return err


def test_samples_become_as_bright_as_asked(made, tmp_path, capsys):
    report, arrays, said = optimized(made, tmp_path / "out", *ASK, capsys=capsys)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"samples.npz", "samples.png", "control.json"}
    assert arrays["samples"].shape == (3, 1, 8, 8) and arrays["noise"].shape == (3, 2, 1, 8, 8)
    assert arrays["label"].tolist() == [0, 1, 2]
    student = load_student(made / "student")
    before = student.sample(3, seed=1)
    for i, row in enumerate(report["samples"]):
        told = row["errors"]["brightness=0.3"]
        brightness = ((torch.from_numpy(arrays["samples"])[i].clamp(-1, 1) + 1) / 2).mean()
        assert told["before"] == pytest.approx(abs(float((before[i].clamp(-1, 1) + 1).mean() / 2) - 0.3), abs=1e-5)
        assert told["decoded"] == told["heard"] == pytest.approx(abs(float(brightness) - 0.3), abs=1e-5)
        assert row["steps"] == 12 and len(row["loss"]) == 13 and row["cond"] == {"label": i}
        assert told["surrogate"] ** 2 == pytest.approx(min(row["loss"]), abs=1e-6)
    mean = report["mean"]["brightness=0.3"]
    assert mean["surrogate"] == mean["decoded"] < 0.2 * mean["before"]
    assert report["network_calls"] == 3 * 2 * 13 and report["through"] == "student" and report["decode_steps"] == 2
    assert "brightness" in said and "3 samples in" in said and "mean" in said


def test_the_same_command_gives_the_same_and_no_step_gives_what_sample_gives(made, tmp_path):
    words = ["--control", "brightness=0.3", "--steps", "4", "--lr", "0.05", "-n", "3", "--seed", "1"]
    first, again = (optimized(made, tmp_path / name, *words)[1] for name in "ab")
    assert all(np.array_equal(first[name], again[name]) for name in ("samples", "noise", "label"))
    none = optimized(made, tmp_path / "c", *ASK, "--steps", "0", "--decode-steps", "3")[1]
    student = load_student(made / "student")
    assert np.array_equal(none["samples"], student.with_steps(3).sample(3, seed=1).numpy())
    assert np.array_equal(
        none["noise"], torch.stack(student.with_steps(3).noise(3, {"label": torch.arange(3)}, 1), 1).numpy()
    )


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_through_the_teacher(made, tmp_path, model):
    words = [
        "--control",
        "brightness=0.3",
        *["--steps", "2", "--lr", "0.1", "-n", "2", "--cond", "label=7", "--kappa", "2"],
    ]
    through = ["--through", "teacher"] if model == "student" else []
    report, arrays, _ = optimized(made, tmp_path / "out", *words, *through, model=model)
    assert report["through"] == "teacher" and report["decode_steps"] == 20 and arrays["label"].tolist() == [7, 7]
    assert report["network_calls"] == 2 * 2 * 20 * (2 + 1)  # two samples, guided, through 20 steps
    teacher, cond = Teacher(), {"label": torch.tensor([7, 7])}
    expected = teacher.sample(torch.from_numpy(arrays["noise"]), cond, 20, "ddim", 2.0)
    assert np.array_equal(arrays["samples"], expected.numpy())
    mean = report["mean"]["brightness=0.3"]
    assert mean["decoded"] < mean["before"] and mean["decoded"] == pytest.approx(mean["surrogate"], abs=1e-5)


def test_one_step_in_place_of_the_sampler_is_told_where_it_stands_in_badly(made, tmp_path, capsys):
    report, arrays, said = optimized(made, tmp_path / "out", *ASK, "--through", "step", "--no-project", capsys=capsys)
    assert report["through"] == "step" and report["network_calls"] == 3 * 13 and report["decode_steps"] == 2
    drawn = load_student(made / "student").noise(3, {"label": torch.arange(3)}, 1)
    assert np.array_equal(arrays["noise"][:, 1], drawn[1].numpy())
    assert not np.array_equal(arrays["noise"][:, 0], drawn[0].numpy())
    mean = report["mean"]["brightness=0.3"]
    assert mean["surrogate"] < 0.3 * mean["before"]
    assert ("stands in badly" in said) == (mean["decoded"] > 2 * mean["surrogate"])


def test_several_controls(made, tmp_path):
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save(tmp_path / "white.png")
    asked = [f"inpaint={tmp_path / 'white.png'}@0,2,16,16", "label=7"]
    words = [word for text in asked for word in ("--control", text)]
    report, _, _ = optimized(made, tmp_path / "out", *words, "--steps", "8", "--lr", "0.1", "-n", "2", "--project")
    assert list(report["controls"]) == asked and report["project"] is True
    for text in asked:
        assert report["mean"][text]["surrogate"] < report["mean"][text]["before"]


def test_what_cannot_be_done_is_one_sentence(made, tmp_path, capsys):
    student, out = made / "student", ["--out", tmp_path / "x"]
    assert "--control" in complaint(capsys, student)
    said = complaint(capsys, student, "--control", "brightnes=1", *out)
    assert "did you mean 'brightness'" in said and "there are brightness, inpaint, label" in said
    assert "from 0 (black) to 1 (white), got '2'" in complaint(capsys, student, "--control", "brightness=2", *out)
    assert "class from 0 to 9, got '10'" in complaint(capsys, student, "--control", "label=10", *out)
    assert "there is no picture" in complaint(capsys, student, "--control", "inpaint=none.png", *out)
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    assert "all of" in complaint(capsys, student, "--control", f"inpaint={tmp_path / 'black.png'}", *out)
    assert "must lie in the picture" in complaint(
        capsys, student, "--control", f"inpaint={tmp_path / 'black.png'}@0,0,9,9", *out
    )
    assert "label is a number from 0 to 9" in complaint(capsys, student, *ASK, "--cond", "label=10", *out)
    assert "not told kappa" in complaint(capsys, student, *ASK, "--kappa", "2", *out)
    assert "leave it out" in complaint(capsys, student, *ASK, "--through", "teacher", "--decode-steps", "2", *out)
    assert "holds a teacher" in complaint(capsys, made / "teacher", *ASK, "--through", "student", *out)
    assert "no student folder" in complaint(capsys, tmp_path / "nowhere", *ASK, *out)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--lr", "nan", "must be at least 1e-09, got nan"),
        ("--lr", "0", "must be at least 1e-09, got 0"),
        ("--lr", "-1", "must be at least 1e-09, got -1"),
        ("--lr", "inf", "must be finite, got inf"),
        ("--steps", "-1", "must be at least 0, got -1"),
        ("--steps", "1.5", "invalid int value: '1.5'"),
        ("-n", "0", "must be at least 1, got 0"),
        ("--decode-steps", "0", "must be from 1 to 1000, got 0"),
        ("--decode-steps", "1001", "must be from 1 to 1000, got 1001"),
        ("--tolerance", "nan", "--tolerance must be a finite number, got nan"),
        ("--seed", "-1", "must be from 0 to 4294967295, got -1"),
        ("--kappa", "-1", "must be at least 0, got -1"),
        ("--kappa", "inf", "must be finite, got inf"),
        ("--through", "data", "invalid choice: 'data'"),
        ("--control", "0*brightness=0.3", "its weight must be a number from 1e-9 to 1e9, got 0"),
        ("--control", "1.2.3*brightness=0.3", "its weight must be a number from 1e-9 to 1e9, got 1.2.3"),
        ("--control", "2*brightnes=0.3", "did you mean 'brightness'"),
        ("--control", "brightness=0.3", "is given twice: say it once, or with its weight, such as 2*brightness=0.3"),
    ],
)
def test_numbers_without_sense_are_one_sentence(flag, value, said, made, tmp_path, capsys):
    words = [made / "student", "--control", "brightness=0.3", "--out", tmp_path / "x"]
    assert said in complaint(capsys, *words, f"{flag}={value}" if flag[:2] == "--" else f"{flag}{value}")
    assert not (tmp_path / "x").exists()


def test_nothing_is_written_over(made, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("mine")
    assert "exists already" in complaint(capsys, made / "student", *ASK, "--out", tmp_path / "file")
    assert "is no folder that takes it" in complaint(capsys, made / "student", *ASK, "--out", tmp_path / "file" / "x")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # of a reader; root may write everywhere
    said = complaint(capsys, made / "student", *ASK, "--out", tmp_path / "x")
    assert f"cannot write to {tmp_path / 'x'}" in said and "give another place with --out" in said
    assert (tmp_path / "file").read_text() == "mine" and [*tmp_path.iterdir()] == [tmp_path / "file"]


def test_an_interrupt_leaves_nothing(made, tmp_path, capsys, monkeypatch):
    """Control-C in the middle of the fourth step; the same command then does it all."""
    calls = []

    def interrupted(self, x, cond):
        calls.append(len(calls))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return self.error(x, cond).square()

    with monkeypatch.context() as patch:
        patch.setattr(Brightness, "loss", interrupted)
        assert front.main(["optimize", str(made / "student"), *ASK, "--out", str(tmp_path / "out")]) == 130
    err = capsys.readouterr().err
    assert "interrupted" in err and "Traceback" not in err and not [*tmp_path.iterdir()] and len(calls) == 4
    optimized(made, tmp_path / "out", *ASK)


def test_a_shipped_teacher_is_asked_with_the_data_of_its_domain(tmp_path, capsys):
    folder = Path(domains.image.__file__).parent / "weights/digits"
    words = ["--control", "brightness=0.3", "--steps", "0", "-n", "2"]
    report, arrays, _ = optimized(folder.parent, tmp_path / "out", *words, model=folder.name)
    expected = Teacher().sample(torch.from_numpy(arrays["noise"]), {"label": torch.arange(2)}, 20, "ddim")
    assert report["through"] == "teacher" and np.array_equal(arrays["samples"], expected.numpy())
    other = Path(domains.video.__file__).parent / "weights/clips_continuation"
    said = complaint(capsys, other, "--control", "loop", "--out", tmp_path / "x")
    assert "those of domain=video are others" in said and "--through teacher" in said


def test_help_tells_the_defaults(capsys):
    assert front.main(["optimize", "--help"]) == 0
    said = capsys.readouterr().out
    for flag in ("--control NAME[=TARGET]", "--through", "--decode-steps", "--tolerance", "--project"):
        assert flag in said
