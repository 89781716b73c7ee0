"""A run is complete if its configuration is the same and all that it leaves is there."""

from __future__ import annotations

import os

import pytest
import yaml
from helpers import UNMEASURED

from distillkit import runs
from distillkit.callbacks.finish import is_complete
from distillkit.cli import front

RECORD = "a: 1\n"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text(RECORD)
    (tmp_path / "student").mkdir()
    made = {"student": {"steps": 4, "skipped": 1}, "fake_score": {"steps": 8, "skipped": 0}}
    (tmp_path / "student" / "student.yaml").write_text(yaml.safe_dump({"skipped": made}))
    (tmp_path / "report.html").touch()
    for file, time in (("student/student.yaml", 10), ("report.html", 11)):
        os.utime(tmp_path / file, (time, time))
    return tmp_path


def test_a_run_with_all_steps_and_a_later_report_is_complete(run):
    assert is_complete(run, RECORD, 12)


def test_a_teacher_is_a_product_too(run):
    (run / "student" / "student.yaml").rename(run / "student" / "teacher.yaml")
    (run / "student").rename(run / "teacher")
    assert is_complete(run, RECORD, 12)


@pytest.mark.parametrize("steps", [11, 13, -1])
def test_other_steps_are_not(run, steps):
    assert not is_complete(run, RECORD, steps)


def test_another_configuration_is_not(run):
    assert not is_complete(run, "a: 2\n", 12)


def test_a_report_from_before_the_product_is_not(run):
    """The run went on after a first end, and died before its report."""
    os.utime(run / "report.html", (9, 9))
    assert not is_complete(run, RECORD, 12)


@pytest.mark.parametrize("file", ["config.yaml", "student/student.yaml", "report.html"])
def test_nor_what_lacks_a_file_or_has_another_content(run, file):
    if file != "report.html":
        (run / file).write_text("no: steps\n")
        assert not is_complete(run, RECORD, 12)
    (run / file).unlink()
    assert not is_complete(run, RECORD, 12)


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setenv(runs.OUT, "")  # which is then put back


@pytest.mark.parametrize("way", [["--ckpt_path", "last"], ["--ckpt_path", "a/checkpoints/last.ckpt"]])
def test_going_on_from_the_end_of_a_complete_run_says_so_and_changes_nothing(way, alone, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "domain=toy", "method=dmd", "data.batch_size=16", "trainer.max_steps=2", *UNMEASURED]
    assert front.main([*words, "--out", "a"]) == 0
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    capsys.readouterr()
    for command in ([*words, "--out", "a"], ["fit", "--config", "a/config.yaml", *(["--out", "a"] * ("last" in way))]):
        assert front.main([*command, *way]) == 0
        assert capsys.readouterr().out == "this run is complete: a\n"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == left


def test_only_its_own_last_checkpoint_is_the_end_of_a_run(tmp_path):
    run = tmp_path / "run"
    assert runs.is_last(str(run / "checkpoints" / "last.ckpt"), run)
    for file in ("run/checkpoints/previous.ckpt", "other/checkpoints/last.ckpt", "run/last.ckpt"):
        assert not runs.is_last(str(tmp_path / file), run)
