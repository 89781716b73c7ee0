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
    assert distillkit.load_student(tmp_path / "out" / "student").sample(2).isfinite().all()
