"""The example scripts, shortened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import distillkit

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_example_runs(script, tmp_path):
    command = [sys.executable, str(script), "--steps", "6", "--out", str(tmp_path / "out")]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path, capture_output=True)
    students = [distillkit.load_student(file.parent) for file in (tmp_path / "out").rglob("student.yaml")]
    assert students
    assert all(student.sample(2).isfinite().all() for student in students if not student.context)
