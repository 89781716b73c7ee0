"""`cluster=slurm` and `cluster=local`: the words that queue the runs of a sweep."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import UNMEASURED, heed_signals

from distillkit import runs
from distillkit.cli import cluster, front, sweeps
from distillkit.errors import UsageError

ROOT = Path(__file__).parents[2]
TOY = ["domain=toy", "data.batch_size=32", "data.num_samples=256", "trainer.max_steps=4", *UNMEASURED]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(runs.OUT, raising=False)


def test_a_list_of_partitions_is_one_value():
    words = cluster.translated(["cluster=slurm", "cluster.partition=gpu,long"])
    assert "hydra.launcher.partition='gpu,long'" in words


def test_slurm_in_words_of_the_launcher_and_the_trainer():
    words = ["domain=toy", "cluster=slurm", "cluster.nodes=2", "cluster.gpus=8", "cluster.partition=gpu", "x.y=1"]
    assert cluster.translated(words) == [
        "domain=toy",
        "x.y=1",
        "trainer.devices=8",
        "trainer.num_nodes=2",
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.nodes=2",
        "hydra.launcher.gpus_per_node=8",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.max_num_timeout=10",
        "hydra.launcher.name=distillkit",
        "hydra.launcher.timeout_min=1440",
        "hydra.launcher.tasks_per_node=8",
    ]


def test_a_job_without_a_gpu_is_one_process():
    said = cluster.translated(["cluster=slurm", "cluster.gpus=0", "cluster.hours=0.5", "cluster.memory=16"])
    assert {"trainer.devices=1", "hydra.launcher.tasks_per_node=1", "hydra.launcher.gpus_per_node=0"} <= {*said}
    assert {"hydra.launcher.timeout_min=30", "hydra.launcher.mem_gb=16"} <= {*said}


def test_the_cores_of_a_process_are_told_to_srun_too():
    said = cluster.translated(["cluster=slurm", "cluster.cpus=8"])
    assert {"hydra.launcher.cpus_per_task=8", "++hydra.launcher.srun_args=['--cpus-per-task=8']"} <= {*said}


def test_jobs_of_this_machine():
    local = [f"hydra.launcher.{rest}" for rest in ("name=distillkit", "timeout_min=1440")]
    assert cluster.translated(["a=1", "cluster=local"]) == ["a=1", "hydra/launcher=submitit_local", *local]
    assert not [word for word in cluster.translated(["cluster=local", "cluster.cpus=2"]) if "srun" in word]
    assert cluster.translated(["a=1", "clusters=2", "model.cluster=3"]) == ["a=1", "clusters=2", "model.cluster=3"]


WRONG = [
    (["cluster.gpus=2"], r"cluster.gpus=2 needs the cluster that it is about: say cluster=local or cluster=slurm"),
    (["cluster=slrum"], r"no cluster 'slrum' \(did you mean 'slurm'\?\); there are: local, slurm"),
    (["cluster=slurm", "cluster.gpu=2"], r"cluster=slurm has no key gpu \(did you mean 'gpus'\?\)"),
    (["cluster=local", "cluster.nodes=2"], r"cluster=local has no key nodes; cpus, hours"),
    (["cluster=slurm", "cluster.nodes=0"], r"cluster.nodes must be a whole number of at least 1, got 0"),
    (["cluster=slurm", "cluster.hours=0"], r"cluster.hours must be a number above 0, got 0"),
    (["cluster=slurm", "trainer.devices=4"], r"say how many processes there are: leave trainer.devices=4 out"),
    (["cluster=slurm", "cluster.partition=gpu\ntouch x"], r"cluster.partition must be a name of letters, digits"),
    (["cluster=slurm", "cluster.account=a;b"], r"cluster.account must be a name of letters, digits"),
    (["cluster=slurm", "cluster.partition=$(x)"], r"cluster.partition must be a name of letters, digits"),
    (["cluster=slurm", "cluster.setup=[x]"], r"cluster=slurm has no key setup"),
    (["cluster=slurm", "cluster.additional_parameters={a:b}"], r"has no key additional_parameters"),
    (["cluster=slurm", "~cluster"], r"~cluster takes away what is not there: .* leave it out"),
    (["~cluster.gpus"], r"~cluster.gpus takes away what is not there"),
    (["cluster=slurm", "cluster.launcher=x"], r"has no key launcher"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_wrong_words_and_shells_are_refused(words, said):
    with pytest.raises(UsageError, match=said):
        cluster.translated(words)


def test_the_command_line_refuses_before_anything_is_made(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    for words, said in (
        (["cluster=slurm"], "cluster=slurm queues the runs of a sweep, be it of one run: add -m"),
        (["cluster=slurm", "method=hyper_sd,dmd", "-m", "--chain"], "leave one of them out"),
        (["cluster=slurm", "-m"], "pip install 'distillkit[slurm]'"),
        (["--cluster=slurm"], "is a word, not a flag"),
        (["cluster=slurm", "~cluster", "-m"], "~cluster takes away what is not there"),
    ):
        assert front.main(["fit", *TOY, *words]) == 2
        assert said in capsys.readouterr().err
    assert not any(Path().iterdir())


def test_a_sweep_goes_on_if_its_words_are_the_same(capsys, monkeypatch):
    """Each run gets --ckpt_path last; without it, or with other words, the folder is refused."""
    commands = []

    class Process:
        def __init__(self, command, stderr, start_new_session):
            commands.append(command)
            self.stderr, self.returncode = io.BytesIO(), 0

        __enter__ = __exit__ = lambda self, *_: self

    monkeypatch.setattr(sweeps.subprocess, "Popen", Process)
    again = ["--ckpt_path", "last"]
    for words, code in ((["seed_everything=1,2"], 0), (again, 2), (["seed_everything=1,2", *again], 0)):
        assert front.main(["fit", *TOY, *words, "-m", "--out", "s"]) == code
    assert "had other words (domain=toy" in capsys.readouterr().err
    assert [command[-4:] for command in commands[2:]] == [
        [*again, "--out", f"{Path('s').resolve()}/{n}"] for n in (0, 1)
    ]
    assert front.main(["fit", *TOY, "seed_everything=1,2", "-m", "--out", "s"]) == 2
    assert "the run folder s is not empty; give another one with --out, or go on there with" in capsys.readouterr().err
    Path("other").mkdir()
    Path("other", "config.yaml").touch()
    assert front.main(["fit", *TOY, "-m", "--out", "other", *again]) == 2 and len(commands) == 4


# With the package


def queue(*words, path: Path | None = None, **settings):
    """A sweep in a new interpreter, as submitit's jobs are."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "OMP_NUM_THREADS": "1"}
    env["PATH"] = os.pathsep.join([str(path), env["PATH"]] if path else [env["PATH"]])
    command = [sys.executable, "-m", "distillkit", "fit", *TOY, *words, "-m", "--out", "s"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, preexec_fn=heed_signals, **pipes, **settings)


@pytest.mark.slow
def test_runs_wait_in_the_queue_of_this_machine():
    pytest.importorskip("submitit")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    out, err = queue("method=dmd,sid", "cluster=local").communicate(timeout=300)
    assert re.search(r"2 runs in .*\n.*\n  0   done .*method=dmd\n  1   done .*method=sid\n", out), (out, err)
    assert all(Path("s", number, "student", "model.safetensors").is_file() for number in "01")


def test_slurm_is_asked_for_what_the_words_say(tmp_path):
    pytest.importorskip("submitit")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    programs = {"sbatch": f'cp "$1" {tmp_path}/asked; echo Submitted batch job 12'}
    programs |= {"sacct": 'printf "JobID|State\\n12_0|RUNNING\\n"', "srun": "true", "scontrol": "true"}
    (tmp_path / "bin").mkdir()
    for name, line in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    process = queue("cluster=slurm", "cluster.nodes=2", "cluster.gpus=4", "cluster.cpus=3", path=tmp_path / "bin")
    end = time.monotonic() + 120
    while not (tmp_path / "asked").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the jobs stay in the queue" in out, (out, err)
    lines = (tmp_path / "asked").read_text().splitlines()
    for line in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "time=1440", "job-name=distillkit"):
        assert f"#SBATCH --{line}" in lines
    (started,) = [line for line in lines if line.startswith("srun ")]
    assert "#SBATCH --cpus-per-task=3" in lines and " --cpus-per-task=3 " in started
