"""A killed and resumed run leaves the files of an undisturbed run, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import Command

from distillkit.files import hash_weights
from tests.battery.conftest import FOREIGN, Case, small

SHORT = ["trainer.max_steps=60", "vars.callbacks.checkpoint.every=7"]
MOMENTS = (  # of each kill: what has just appeared in the run folder; the last is a run that had ended
    "config.yaml",
    "checkpoints/last.ckpt",
    "samples",
    "evaluation.json",
    None,
)


def words(case: Case, out: Path) -> list[str]:
    """The command of a run that goes on from where the last one in this folder ended."""
    num = 2000 if case.domain == "toy" else 16  # enough that the evaluation takes its time
    finish = f"vars.callbacks.finish.num_samples={num}"
    return ["fit", *FOREIGN, *small(case), *SHORT, finish, "--out", str(out), "--ckpt_path", "last"]


def start(case: Case, out: Path, elsewhere: Path) -> Command:
    """The run, with its temporary folder elsewhere."""
    return Command(*words(case, out), env={"TMPDIR": str(elsewhere)})


def start_anew(case: Case, out: Path, elsewhere: Path) -> tuple[int, str]:
    """Exit code and errors of the run in a new interpreter, where sets have another order."""
    env = {**os.environ, "TMPDIR": str(elsewhere), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-m", "distillkit", *words(case, out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stderr


def left(out: Path) -> dict[str, str]:
    """The files of a run, as far as they do not depend on the clock."""
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    digest = hashlib.sha256(repr(sorted(state["distillkit"].items())).encode())
    holder = torch.nn.Module()
    for number, value in enumerate(state["state_dict"].values()):
        holder.register_buffer(str(number), value)
    hash_weights(digest, holder)
    kind = "teacher" if (out / "teacher").is_dir() else "student"
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    return {
        "checkpoint": f"{state['global_step']} {digest.hexdigest()}",
        "weights": hashlib.sha256((out / kind / "model.safetensors").read_bytes()).hexdigest(),
        "facts": (out / kind / f"{kind}.yaml").read_text(),
        "metrics": repr([row["metrics"] for row in rows]),
    }


@pytest.mark.slow  # six runs with their evaluation, of each class
def test_a_run_killed_at_any_moment_leaves_what_it_would_have_left(case, tmp_path):
    elsewhere = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path  # as a rule another file system
    whole = start(case, tmp_path / "whole", elsewhere)
    assert whole.wait() == 0, whole.stderr
    expected = left(tmp_path / "whole")
    for number, moment in enumerate(MOMENTS):
        out = tmp_path / str(number)
        run = start(case, out, elsewhere)
        if moment:
            run.until((out / moment).exists)
            run.kill()
        assert run.wait() == (-signal.SIGKILL if moment else 0), f"{moment} came too late"
        if moment == "checkpoints/last.ckpt":
            code, said = start_anew(case, out, elsewhere)
        else:
            again = start(case, out, elsewhere)
            code, said = again.wait(), again.stderr
        assert code == 0, said
        assert left(out) == expected, f"killed when {moment or 'all'} was there"
        assert not [path for path in out.rglob(".*")], "debris of the kill"
