"""A user's session through the command line: fit, load, sample, evaluate, export, stop, go on."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import UNMEASURED, Command, distil
from PIL import Image

import distillkit
from distillkit import cache, runs
from distillkit.cli import front
from distillkit.evaluation import protocol
from distillkit.teachers.base import Teacher

TINY = ["domain=toy", "network.width=16", "network.depth=2", "data.batch_size=32", "data.num_samples=256"]
SHORT = ["trainer.max_steps=6", "vars.callbacks.finish.num_samples=32"]
BARE = ["trainer.max_steps=2", *UNMEASURED]


def complaint(*argv: str, code: int = 2) -> str:
    """The one-sentence error of an impossible command, run in this process to save imports."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        assert front.main([*map(str, argv)]) == code, said.getvalue()
    assert "Traceback" not in said.getvalue()
    lines = said.getvalue().strip().splitlines()
    assert lines[-1].startswith("error: ") and not any(line.startswith("error: ") for line in lines[:-1])
    return lines[-1]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """Removes the environment variables that a run in this process leaves."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", runs.OUT):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a finished run: a two-step student on digits with a tiny network."""
    out = tmp_path_factory.mktemp("session") / "run"
    words = ["domain=image", "method=sid", "model.num_steps=2", "data.batch_size=16", "trainer.log_every_n_steps=2"]
    distil("fit", *words, *SHORT, "--out", out)
    return out


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_a_run_leaves_everything_that_was_promised(run):
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert found == {
        "config.yaml",
        "metrics.csv",
        "evaluation.json",
        "report.html",
        "checkpoints/last.ckpt",
        "samples/real.png",
        "samples/student.png",
        "samples/teacher_best.png",
        "samples/teacher_same_steps.png",
        "samples/comparison.png",
        "samples/progress.png",
        "warnings.json",  # of the few steps
        "student/model.safetensors",
        "student/student.yaml",
        "student/README.md",
        "student/samples.png",
    }
    names = [row["name"] for row in json.loads((run / "evaluation.json").read_text())["rows"]]
    assert names == ["student", "teacher at its best", "teacher at 2 steps", "real data"]
    page = (run / "report.html").read_text()
    assert (
        not re.search(r"""(src|href)=["']https?:""", page)
        and "<script" not in page
        and page.count("data:image/png") >= 3
    )
    assert Image.open(run / "samples" / "student.png").size > (64, 64)


def test_the_student_loads_in_one_line_without_its_teacher(run):
    code = (
        f"import json, sys, distillkit; s = distillkit.load_student({str(run / 'student')!r}); x = s.sample(5, seed=1);"
        "names = 'lightning', 'hydra', 'jsonargparse', 'domains', 'distillkit.teachers', 'distillkit.methods';"
        "heavy = [m for m in sys.modules if m.startswith(names)];"
        "print(json.dumps([list(x.shape), s.num_steps, heavy]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout) == [[5, 1, 8, 8], 2, []]


def test_samples_depend_on_the_seed_alone(run):
    student = distillkit.load_student(run)
    assert torch.equal(student.sample(6, seed=1), student.sample(6, seed=1))
    assert not torch.equal(student.sample(6, seed=1), student.sample(6, seed=2))


def test_sample_writes_what_the_student_gives(run, tmp_path):
    said = distil("sample", run / "student", "-n", "12", "--seed", "1", "--cond", "label=3", "--out", tmp_path / "s")
    arrays = np.load(tmp_path / "s" / "samples.npz", allow_pickle=False)
    expected = distillkit.load_student(run).sample(12, {"label": torch.full((12,), 3)}, seed=1)
    assert np.array_equal(arrays["samples"], expected.numpy()) and (arrays["label"] == 3).all()
    assert "12 samples" in said and (tmp_path / "s" / "samples.png").is_file()


def test_evaluate_gives_the_same_numbers_again(copy):
    before = json.loads((copy / "evaluation.json").read_text())
    said = distil("evaluate", copy)  # of as many samples as the run took
    after = json.loads((copy / "evaluation.json").read_text())
    assert "Frechet" in said
    for old, new in zip(before["rows"], after["rows"], strict=True):
        assert old["metrics"] == pytest.approx(new["metrics"], rel=1e-6)
    assert before["protocol"] == after["protocol"]


def test_export_safetensors_is_exact(copy):
    assert "difference from the student 0.0e+00" in distil("export", copy / "student", "--format", "safetensors")
    assert (copy / "student" / "student.safetensors").is_file()


def test_export_onnx_equals_the_student(copy):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    said = distil("export", copy / "student", "--format", "onnx")
    assert float(re.search(r"difference from the student (\S+)", said)[1]) < 1e-4


def test_the_config_of_a_run_runs_again_elsewhere(copy, tmp_path):
    distil("fit", "--config", copy / "config.yaml", "--out", tmp_path / "again")
    same = [
        torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for out in (copy, tmp_path / "again")
    ]
    assert all(torch.equal(value, same[1][key]) for key, value in same[0].items())


def test_samples_of_the_teacher_are_made_once_for_all_runs(tmp_path, monkeypatch, capsys):
    """Pairs, pictures, evaluation: a second run and `evaluate` make none and measure the same."""
    monkeypatch.setattr(cache, "WORTH", 0.0)
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("DISTILLKIT_CACHE_LIMIT", "1")
    made, make = [], Teacher.make
    watched = lambda self, num, cond, seed, solver, *rest: (  # noqa: E731
        made.append(num if isinstance(solver, str) else 0) or make(self, num, cond, seed, solver, *rest)
    )
    monkeypatch.setattr(Teacher, "make", watched)

    def door(*words: str) -> int:
        """Runs a command; the number of samples that the teacher made by its own samplers."""
        made.clear()
        monkeypatch.delenv(runs.OUT, raising=False)
        assert front.main([*map(str, words)]) == 0, capsys.readouterr().err
        return sum(made)

    def metrics(name: str) -> list:
        rows = json.loads((tmp_path / name / "evaluation.json").read_text())["rows"]
        return [(row["name"], row["metrics"]) for row in rows], [row.get("timed") for row in rows]

    words = ["fit", *TINY, *SHORT, "method=dmd", "model.regression=0.25", "model.num_pairs=64", "--out"]
    assert door(*words, tmp_path / "first") > 64 + 3 * 32 and door(*words, tmp_path / "again") == 0
    assert metrics("first")[0] == metrics("again")[0]
    assert set(metrics("again")[1][1:-1]) == {"earlier"} and set(metrics("first")[1]) == {None}
    files = [f"student/{file}" for file in ("model.safetensors", "student.yaml")] + ["samples/comparison.png"]
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    (tmp_path / "again" / "evaluation.json").unlink()
    assert door("evaluate", tmp_path / "again", "--num-samples", 32) == 0
    assert metrics("again")[0] == metrics("first")[0]
    found, seen = json.loads((tmp_path / "again" / "evaluation.json").read_text()), []
    monkeypatch.setattr(protocol, "evaluate", lambda *asked: seen.append(cache.current()) or found)
    door("evaluate", tmp_path / "again", "--no-cache")
    assert seen == [None]


def test_pretrain_leaves_a_teacher_that_can_be_distilled(tmp_path):
    distil("fit", *TINY, "method=pretrain", *BARE, "--out", tmp_path / "teacher")
    assert {"model.safetensors", "teacher.yaml", "README.md"} <= {
        p.name for p in (tmp_path / "teacher" / "teacher").iterdir()
    }
    words = ["fit", "domain=image", "method=pretrain", "network.channels=8", "data.batch_size=8", *BARE]
    distil(*words, "--out", tmp_path / "digits")
    path = tmp_path / "digits" / "teacher"
    distil(
        "fit",
        "domain=image",
        "method=dmd",
        "teacher=folder",
        f"teacher.path={path}",
        *BARE,
        "--out",
        tmp_path / "student",
    )
    assert distillkit.load_student(tmp_path / "student").sample(2).shape == (2, 1, 8, 8)


def test_validate_and_test_measure_a_checkpoint(copy):
    flags = ["--config", copy / "config.yaml", "--ckpt_path", copy / "checkpoints" / "last.ckpt"]
    for verb, stage in (("validate", "val"), ("test", "test")):
        assert f"{stage}/frechet" in distil(verb, *flags)


def test_validate_takes_the_run_s_own_checkpoint_or_refuses(copy, capsys, monkeypatch):
    """An untrained student is not worth a number, nor is that of a run one happens to stand in."""
    trained = ["--ckpt_path", copy / "checkpoints" / "last.ckpt"]
    shown = []
    for more in (trained, [], ["--out", copy]):
        assert front.main([*map(str, ["validate", "--config", copy / "config.yaml", *more])]) == 0
        shown.append(re.findall(r"frechet.*", capsys.readouterr().out))
    assert shown[0] and shown[0] == shown[1] == shown[2]
    monkeypatch.chdir(copy)
    for verb in ("validate", "test"):
        said = complaint(verb, *TINY, "method=sid")
        assert f"{verb} measures what a run has trained: name its checkpoint with --ckpt_path" in said


def test_a_run_that_goes_on_from_its_last_step_leaves_everything_again(copy, tmp_path):
    """As after a kill in the evaluation, or on another machine without a config.yaml yet."""
    last = ["--ckpt_path", copy / "checkpoints" / "last.ckpt"]
    distil("fit", "--config", copy / "config.yaml", *last, "--out", tmp_path / "new")
    names = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    again = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert names - again == {"metrics.csv", "samples/progress.png"}, again ^ names
    assert "Warned: the student has too few steps" in (tmp_path / "new" / "student" / "README.md").read_text()
    weights = [(place / "student" / "model.safetensors").read_bytes() for place in (copy, tmp_path / "new")]
    assert weights[0] == weights[1]


# Stop and go on


def test_numbers_of_the_weights_before_are_not_those_of_a_run_that_went_on(copy):
    shutil.copy(copy / "evaluation.json", copy / "student")
    words = [
        "domain=image",
        "method=sid",
        "model.num_steps=2",
        "data.batch_size=16",
        "trainer.max_steps=7",
        *UNMEASURED,
    ]
    distil("fit", *words, "--ckpt_path", "last", "--out", copy)
    assert [*copy.rglob("evaluation.json")] == [] and "instead of" not in (copy / "report.html").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on(number, tmp_path):
    words = ["fit", *TINY, "method=dmd", *UNMEASURED, "trainer.max_steps=100000"]
    out = tmp_path / "run"
    process = Command(*words, "--out", out)
    process.until(lambda: re.search("^step ", process.stdout, re.M))
    process.send_signal(number)
    process.wait(timeout=60)
    errors = process.stderr
    assert process.returncode == 130 and "Traceback" not in errors
    step = int(re.search(r"stopped at step (\d+)", errors)[1])
    command = re.search(r"python -m distillkit (fit .*)$", errors, re.M)[1].split()
    assert torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step
    distil(*command, f"--trainer.max_steps={step + 5}")
    assert torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step + 5
    steps = [int(line.split(",")[0]) for line in (out / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps))


# Bad input


def test_unknown_names():
    assert "did you mean 'dmd'" in complaint("fit", "domain=toy", "method=dmdd")
    assert "did you mean 'image'" in complaint("fit", "domain=imag")
    assert "did you mean 'evaluate'" in complaint("evalute", "x")
    said = complaint("fit", *TINY, "method=sid", "model.alhpa=1.0")
    assert "alhpa" in said and "alpha" in said


def test_wrong_types_and_values():
    assert "float" in complaint("fit", *TINY, "method=sid", "model.alpha=much")
    assert "batch_size must be at least 1, got 0" in complaint("fit", "domain=toy", "method=sid", "data.batch_size=0")
    assert "updates must be at least 1" in complaint("fit", *TINY, "method=dmd", "model.fake_score.updates=0")
    assert "num_steps must be at least 1" in complaint("fit", *TINY, "method=dmd", "model.num_steps=0")
    assert "needs model.num_steps=1" in complaint(
        "fit", *TINY, "method=dmd", "model.regression=0.25", "model.num_steps=2"
    )


def test_impossible_pairs(tmp_path):
    np.savez(tmp_path / "rgb.npz", images=np.zeros((300, 16, 16, 3), np.uint8))
    said = complaint(
        "fit", "domain=image", "method=sid", "data=npz", f"data.path={tmp_path / 'rgb.npz'}", "--out", tmp_path / "r"
    )
    assert "the data have shape (3, 16, 16), the teacher makes (1, 8, 8)" in said and "or say data." not in said
    for i in range(20):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{i}.png")
    folder = ("fit", "domain=image", "method=sid", "data=image_folder", f"data.path={tmp_path}", "data.channels=1")
    assert "the data have shape (1, 64, 64)" in (said := complaint(*folder, "--out", tmp_path / "r"))
    assert said.rstrip().endswith("(fit method=pretrain makes one), or say data.resolution=8")
    said = complaint("fit", "domain=image", "method=dmd", "teacher=folder", "teacher.path=/nowhere/at/all")
    assert "does not exist" in said


def test_a_folder_that_holds_something_is_never_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("mine")
    assert "is not empty" in complaint("fit", *TINY, "method=sid", *SHORT, "--out", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious"]


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "error" in complaint("fit", *TINY, "method=sid", *SHORT, "--out", tmp_path / "file" / "run", code=1)


def test_a_checkpoint_that_is_missing_truncated_or_foreign(copy, tmp_path):
    flags = ["fit", "--config", copy / "config.yaml", "--out", tmp_path / "new", "--ckpt_path"]
    assert "there is no file" in complaint(*flags, tmp_path / "none.ckpt")
    whole = (copy / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "half.ckpt is not whole, or no checkpoint" in complaint(*flags, tmp_path / "half.ckpt")
    (tmp_path / "empty.ckpt").touch()
    assert "empty.ckpt is empty" in complaint(*flags, tmp_path / "empty.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    assert "foreign.ckpt was not written by distillkit" in complaint(*flags, tmp_path / "foreign.ckpt")
    assert not (tmp_path / "new").exists()


def test_no_way_of_naming_a_checkpoint_unpickles_it(copy, tmp_path):
    """Flag, config.yaml, switch, environment: a pickle is refused before it is opened."""

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "opened"),))

    evil, new = tmp_path / "evil.ckpt", ["--out", tmp_path / "new"]
    for write in (lambda: evil.write_bytes(pickle.dumps(Evil())), lambda: torch.save({"distillkit": Evil()}, evil)):
        write()
        config = yaml.safe_load((copy / "config.yaml").read_text()) | {"ckpt_path": str(evil), "weights_only": None}
        (tmp_path / "evil.yaml").write_text(yaml.safe_dump(config))
        complaint("fit", "--config", copy / "config.yaml", "--ckpt_path", evil, *new)
        complaint("fit", "--config", tmp_path / "evil.yaml", *new)
        complaint("validate", "--config", tmp_path / "evil.yaml", *new)
        for word in ("--weights_only=false", "--weights_only=False"):
            assert "weights_only is no choice" in complaint("fit", "--config", tmp_path / "evil.yaml", word, *new)
        (tmp_path / "evil.yaml").write_text(yaml.safe_dump(config | {"weights_only": False}))
        assert "weights_only is no choice" in complaint("fit", "--config", tmp_path / "evil.yaml", *new)
    for place in ("http://localhost:9/last.ckpt", "https://localhost/x", "s3://bucket/x", "file:///x", "hf://a/b"):
        assert "not an address" in complaint("fit", "--config", copy / "config.yaml", "--ckpt_path", place, *new)
        (tmp_path / "far.yaml").write_text(yaml.safe_dump(config | {"ckpt_path": place}))
        assert "not an address" in complaint("fit", "--config", tmp_path / "far.yaml", *new)
    for word in ("best", "hpc", "registry", "registry:name:x"):
        assert f"there is no file {word}" in complaint(
            "fit", "--config", copy / "config.yaml", "--ckpt_path", word, *new
        )
    assert not (tmp_path / "opened").exists()


def test_a_damaged_student_folder(copy, tmp_path):
    assert "there is no student folder" in complaint("sample", tmp_path / "nothing")
    weights = copy / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "not a whole safetensors file" in complaint("sample", copy)
    torch.save({}, weights)
    assert "pickles are not read" in complaint("evaluate", copy)
    weights.unlink()
    assert "does not exist" in complaint("export", copy)
    config = yaml.safe_load((copy / "student" / "student.yaml").read_text())
    config["denoiser"]["class_path"] = "os.system"
    (copy / "student" / "student.yaml").write_text(yaml.safe_dump(config))
    assert "os.system" in complaint("sample", copy)


def test_sample_refuses_what_it_cannot_do(run, tmp_path):
    assert "at least 1" in complaint("sample", run, "-n", "0")
    assert "label is a number from 0 to 9" in complaint("sample", run, "--cond", "label=10")
    (tmp_path / "there").mkdir()
    assert "exists already" in complaint("sample", run, "--out", tmp_path / "there")
    assert "--format" in complaint("export", run, "--format", "pickle")


def test_nan_in_the_data_is_found_before_training(tmp_path):
    """Through the Python interface, the only place where float data come in."""
    from distillkit.data import TensorData

    with pytest.raises(ValueError, match="contains NaN"):
        TensorData({"data": torch.tensor([[1.0, float("nan")]])})


def test_list_shows_the_matrix():
    matrix = json.loads(distil("list", "--json"))["matrix"]
    assert matrix["toy"]["sid"] is None and matrix["image"]["dmd"] is None


def test_a_run_takes_no_more_than_it_says(run):
    """max_steps counts optimiser steps of all roles."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
