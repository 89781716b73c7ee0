"""The example scripts, shortened."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from helpers import Command

import distillkit

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
QUICK = {"image", "toy"}  # the others take up to half a minute; the battery puts their domains through the same


@pytest.mark.parametrize(
    "script",
    [pytest.param(file, id=file.stem, marks=() if file.stem in QUICK else pytest.mark.slow) for file in EXAMPLES],
)
def test_example_runs(script, tmp_path):
    def run(argv):
        runpy.run_path(str(script), run_name="__main__")

    example = Command("--steps", "6", "--out", tmp_path / "out", cwd=tmp_path, work=run)
    assert example.wait() == 0, example.stderr
    folders = [file.parent for file in (tmp_path / "out").rglob("student.yaml")]
    students = [distillkit.load_student(folder, trust=(str(tmp_path),)) for folder in folders]  # a pipeline lies there
    assert students
    assert all(student.sample(2).isfinite().all() for student in students if not student.context)
