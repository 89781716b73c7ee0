"""The example scripts, shortened."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from helpers import Command

import distillkit
from distillkit.cli import config, front

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


CLUSTER = Path(__file__).parents[1] / "examples" / "cluster"


def trainer_of(words: list[str]) -> dict:
    """The trainer of a command `distillkit fit ...`, which starts or goes on."""
    verb, *rest = words[words.index("distillkit") + 1 :]
    call = front.split(rest)
    assert verb == "fit" and call.out and call.value("--ckpt_path") == "last" and len(call.flags) == 1
    handed = config.hand_over(config.compose(call.words)[0])
    assert handed["model"] and handed["data"]
    return handed["trainer"]


def test_a_job_of_slurm():
    script = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.+))?$", text, re.M))
    (command,) = re.findall(r"^srun (.+)$", text.replace("\\\n", " "), re.M)
    made = trainer_of(shlex.split(command))
    assert made["num_nodes"] == int(asked["nodes"]) and made["devices"] == int(asked["ntasks-per-node"])
    assert asked["gpus-per-node"] == asked["ntasks-per-node"] and asked["signal"].startswith("USR1@")
    assert asked["cpus-per-task"] and '--cpus-per-task="$SLURM_CPUS_PER_TASK"' in command  # srun inherits none


@pytest.mark.parametrize(("code", "restarts", "again"), [(0, 0, 0), (1, 0, 0), (130, 0, 1), (137, 3, 1), (130, 20, 0)])
def test_a_job_of_slurm_goes_on_after_a_signal(code, restarts, again, tmp_path):
    for name, line in {"srun": f"exit {code}", "scontrol": f'echo "$@" >> {tmp_path}/asked'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(restarts)}
    assert subprocess.run(["bash", CLUSTER / "slurm.sh"], env=env, check=False).returncode == code
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert asked == "requeue 17\n" * again


def test_a_job_of_kubernetes():
    job = yaml.safe_load((CLUSTER / "trainjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    spec = job["spec"]
    made = trainer_of(spec["trainer"]["command"])
    assert spec["trainer"]["command"][:3] == ["torchrun", "-m", "distillkit"]
    assert made["num_nodes"] == spec["trainer"]["numNodes"]
    assert made["devices"] == spec["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    (patched,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = patched["template"]["spec"]["template"]["spec"]
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert mounts.keys() == volumes.keys() and "persistentVolumeClaim" in volumes["runs"]
    out = front.split(spec["trainer"]["command"][4:]).out
    assert mounts["runs"] in Path(out).parents  # what a pod leaves elsewhere is lost
    assert mounts["shared"] == Path("/dev/shm") and volumes["shared"] == {"emptyDir": {"medium": "Memory"}}
