"""The README's two commands, as a stranger types them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import distil

import distillkit
from distillkit.cli import matrix

ROOT = Path(__file__).parents[1]
SHORT = "trainer.max_steps=4 vars.callbacks.finish.num_samples=32 data.batch_size=4 --out run"


def command(number: int) -> str:
    found = re.search(rf"<!-- command {number} -->\n```bash\n(.*?)\n```", (ROOT / "README.md").read_text(), re.S)
    return found[1]


def test_the_main_job_runs(tmp_path):
    """The first command runs after its installation part, shortened."""
    create, install, run = command(1).split(" && ")
    assert create == "python3 -m venv .venv" and install == ".venv/bin/pip install -e ."
    words = shlex.split(run)
    assert words[:3] == [".venv/bin/python", "-m", "distillkit"]
    distil(*words[3:], *SHORT.split(), cwd=tmp_path)
    assert distillkit.load_student(tmp_path / "run").sample(2).isfinite().all()


def test_the_tables_are_those_of_list():
    """Mend: paste what `python -m distillkit list --markdown` prints."""
    assert matrix.markdown() in (ROOT / "README.md").read_text()


def test_the_second_command_passes_the_tests():
    assert command(2) == "make test"
    recipe = (ROOT / "Makefile").read_text().split("\ntest: ")[1].splitlines()[1]
    assert recipe.strip().endswith("-m pytest -q -n 2 --dist worksteal")


@pytest.mark.slow
def test_the_first_command_works_in_a_fresh_copy(tmp_path):
    """Installation and all, in an environment of its own, from the files git knows."""
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    for name in filter(None, files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(["bash", "-c", f"{command(1)} {SHORT}"], check=True, cwd=tmp_path, env=environment, timeout=1200)
    packages = subprocess.run(
        [".venv/bin/pip", "list"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert "nvidia" not in packages or "+cpu" not in packages
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
