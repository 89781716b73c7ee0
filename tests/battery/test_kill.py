"""A killed and resumed run leaves the files of an undisturbed run, bit for bit."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path

import pytest
import torch
from helpers import Command

from distillkit.files import hash_weights
from tests.battery.conftest import FOREIGN, Case, small

SHORT = ["trainer.max_steps=60", "vars.callbacks.checkpoint.every=7", "vars.callbacks.finish.num_samples=2000"]
MOMENTS = (  # of each kill: what has just appeared in the run folder; the last is a run that had ended
    "config.yaml",
    "checkpoints/last.ckpt",
    "samples",
    "evaluation.json",
    None,
)


def start(case: Case, out: Path, elsewhere: Path) -> Command:
    """A run that continues the last one in this folder, with its temporary folder elsewhere."""
    words = [*FOREIGN, *small(case), *SHORT, "--out", out, "--ckpt_path", "last"]
    return Command("fit", *words, env={"TMPDIR": str(elsewhere)})


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
        again = start(case, out, elsewhere)
        assert again.wait() == 0, again.stderr
        assert left(out) == expected, f"killed when {moment or 'all'} was there"
        assert not [path for path in out.rglob(".*")], "debris of the kill"
