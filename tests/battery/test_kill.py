"""Whenever a run is killed, what it leaves after going on is what it would have left, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distillkit.files import hash_weights
from tests.battery.conftest import FEW_PAIRS, TINY

SHORT = ["trainer.max_steps=60", "vars.callbacks.checkpoint.every=7", "vars.callbacks.finish.num_samples=2000"]
# the moment of each kill: what has just appeared in the run folder; the last is a run that had
# ended
MOMENTS = ("config.yaml", "checkpoints/last.ckpt", "samples", "evaluation.json", None)


def start(method: str, out: Path, elsewhere: Path) -> subprocess.Popen:
    """A run that goes on from where the last one in this folder ended, with its temporary folder elsewhere."""
    learned = ["model.num_pairs=256", "model.guard=2000"] if method.startswith("lsd") else FEW_PAIRS.get(method, [])
    words = ["fit", "domain=toy", f"method={method}", *TINY, *SHORT, *learned, "--out", out, "--ckpt_path", "last"]
    return subprocess.Popen(
        [sys.executable, "-m", "distillkit", *map(str, words)],
        env={**os.environ, "TMPDIR": str(elsewhere)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def left(out: Path) -> dict[str, str]:
    """What a run leaves, as far as it does not depend on the clock."""
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


@pytest.mark.slow
@pytest.mark.per_class
def test_a_run_killed_at_any_moment_leaves_what_it_would_have_left(method, tmp_path):
    elsewhere = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path  # as a rule another file system
    whole = start(method, tmp_path / "whole", elsewhere)
    assert whole.wait(timeout=300) == 0, whole.stderr.read()
    expected = left(tmp_path / "whole")
    for number, moment in enumerate(MOMENTS):
        out = tmp_path / str(number)
        run = start(method, out, elsewhere)
        while moment and run.poll() is None and not (out / moment).exists():
            time.sleep(0.005)
        if moment:
            run.send_signal(signal.SIGKILL)
        assert run.wait(timeout=300) == (-signal.SIGKILL if moment else 0), f"{moment} came too late"
        again = start(method, out, elsewhere)
        assert again.wait(timeout=300) == 0, again.stderr.read()
        assert left(out) == expected, f"killed when {moment or 'all'} was there"
        assert not [path for path in out.rglob(".*")], "debris of the kill"
