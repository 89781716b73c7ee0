"""Processes that a queue starts, stops and kills: they agree, leave one checkpoint, and go on."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest
import torch
from helpers import UNMEASURED, Command

TOY = ["fit", "domain=toy", "method=dmd", "data.batch_size=32", "data.num_samples=256", *UNMEASURED]
TOY += ["~vars.callbacks.watch", "trainer.log_every_n_steps=5"]
STRATEGIES = {"ddp": [], "shard": ["trainer=shard"]}
ENDLESS = 1_000_000
SOON = 240  # seconds, on a machine that is busy; processes that lose each other would wait for 30 minutes


def by_torchrun(rank: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "none",
    }


def by_srun(rank: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NAME": "mine",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


def by_srun_on_two_nodes(rank: int) -> dict[str, str]:
    one_task = {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0"}
    return {**by_srun(rank), **one_task, "LOCAL_RANK": "0"}  # some scripts export the last


def by_hand_on_two_nodes(rank: int) -> dict[str, str]:
    return {"NODE_RANK": str(rank)}


def devices(start) -> list[str]:
    """The words that tell how many processes there are."""
    nodes, each = (2, 1) if start in (by_srun_on_two_nodes, by_hand_on_two_nodes) else (1, 2)
    return ["trainer.accelerator=cpu", f"trainer.devices={each}", f"trainer.num_nodes={nodes}"]


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def started(start, out: Path, *words: str, steps: int = ENDLESS, env: dict[str, str] | None = None) -> list[Command]:
    """Two processes of one run that goes on from its last checkpoint."""
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **(env or {})}
    argv = [*TOY, *devices(start), *words, f"trainer.max_steps={steps}", "--out", out, "--ckpt_path", "last"]
    return [Command(*argv, env=meet | start(rank)) for rank in range(2)]


def ended(processes: list[Command], timeout: float = SOON) -> tuple[list[int], str]:
    """Exit codes, and what all said."""
    try:
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = "".join(process.stdout + process.stderr for process in processes)
    assert "Traceback" not in said, said
    return codes, said


def until_trained(processes: list[Command]) -> None:
    processes[0].until(lambda: re.search("^step ", processes[0].stdout, re.M), SOON)
    assert processes[0].poll() is None, processes[0].stderr


def step_of(out: Path, name: str = "last.ckpt") -> int:
    return torch.load(out / "checkpoints" / name, weights_only=True)["global_step"]


@pytest.mark.parametrize(
    ("start", "strategy", "number"),
    [
        (by_torchrun, "ddp", signal.SIGTERM),
        pytest.param(by_srun, "shard", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(by_torchrun, "shard", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(by_srun, "ddp", signal.SIGUSR2, marks=pytest.mark.slow),
        pytest.param(by_srun_on_two_nodes, "ddp", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(by_hand_on_two_nodes, "ddp", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_one_process_is_told_and_all_stop_after_the_same_step(start, strategy, number, tmp_path):
    """A queue requeues by its own rules: nobody calls scontrol."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f"#!/bin/sh\ntouch {tmp_path}/requeued\n")
    scontrol.chmod(0o755)
    env = {"PATH": f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"}
    out, words = tmp_path / "run", STRATEGIES[strategy]
    both = started(start, out, *words, env=env)
    until_trained(both)
    both[1].send_signal(number)
    codes, said = ended(both)
    assert codes == [130, 130], said
    (step,) = re.findall(r"stopped at step (\d+); ", said)  # told once
    assert step_of(out) == int(step) and not (tmp_path / "requeued").exists()
    assert said.count("run folder: ") == 1
    codes, said = ended(started(start, out, *words, steps=int(step) + 4))
    assert codes == [0, 0], said
    assert step_of(out) == int(step) + 4 and (out / "student" / "model.safetensors").is_file()
    codes, said = ended(started(start, out, *words, steps=int(step) + 4)[:1])
    assert codes == [0] and f"this run is complete: {out}" in said
    assert not [path for path in out.rglob(".*")]


LOST = [
    ("ddp", 1, None),
    pytest.param("shard", 0, "last.ckpt", marks=pytest.mark.slow),
    pytest.param("ddp", 0, "last.ckpt", marks=pytest.mark.slow),
    pytest.param("shard", 1, None, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("strategy", "rank", "after"), LOST)
def test_a_killed_process_ends_the_others_and_the_run_goes_on(strategy, rank, after, tmp_path):
    out, words = tmp_path / "run", [*STRATEGIES[strategy], f"vars.callbacks.checkpoint.every={3 if after else ENDLESS}"]
    both = started(by_srun, out, *words)
    if after:
        both[0].until((out / "checkpoints" / after).exists, SOON)
    else:
        until_trained(both)
    both[rank].kill()
    codes, said = ended(both, timeout=60)
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 1, said
    way_on = f"; the same command goes on, with --out {out} --ckpt_path last" if after else ""
    (told,) = re.findall("^error: (.*)$", said, re.M)
    assert told == f"a process of this run was lost{way_on}", said
    kept = step_of(out) if after else 0
    codes, said = ended(started(by_srun, out, *words, steps=kept + 7))
    assert codes == [0, 0] and step_of(out) == kept + 7, said
    rows = [int(line.split(",")[0]) for line in (out / "metrics.csv").read_text().splitlines()[1:]]
    assert rows == sorted(set(rows)) and rows[-1] == (kept + 7) // 5 * 5 - 1
