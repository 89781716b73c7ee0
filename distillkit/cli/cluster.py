"""`cluster=slurm`: the runs of a sweep wait in a queue, asked by Hydra's submitit launcher.

The keys of conf/cluster/NAME.yaml are numbers and names. None is a line for a shell: those of the
launcher (`setup`, `additional_parameters`) are left as they are.
"""

import re
from collections.abc import Sequence
from typing import Any

from distillkit.cli import catalogue
from distillkit.errors import UsageError, did_you_mean, optional

WORD = re.compile(r"\+{0,2}cluster(?:\.(\w+))?=(.*)", re.DOTALL)
TAKEN = re.compile(r"~cluster(?=[.=@]|$)")  # away
NAME = re.compile(r"[\w.,:+-]+")  # a line break would end SLURM's comment and begin a command
WHOLE = {"nodes": 1, "gpus": 0, "cpus": 1, "memory": 1, "requeue": 0}  # the least value of each
TO_LAUNCHER = {
    "nodes": "nodes",
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_task",
    "memory": "mem_gb",
    "partition": "partition",
    "account": "account",
    "requeue": "max_num_timeout",
}


def named(words: Sequence[str]) -> str | None:
    """The first word that says something about a cluster."""
    return next((word for word in words if WORD.fullmatch(word)), None)


def refuse_one(words: Sequence[str]) -> None:
    """Refuse a cluster for a run that is no sweep.

    Raises:
        UsageError: there is such a word.
    """
    if word := named(words):
        raise UsageError(f"{word} queues the runs of a sweep, be it of one run: add -m")


def translated(words: Sequence[str]) -> list[str]:
    """The words of a sweep with those about a cluster as Hydra and the trainer take them.

    Raises:
        UsageError: a choice, key or value is wrong, or another word says the same.
    """
    if taken := next(filter(TAKEN.match, words), None):
        raise UsageError(
            f"{taken} takes away what is not there: a sweep without cluster=... runs here, so leave it out"
        )
    found = [(match, word) for word in words if (match := WORD.fullmatch(word))]
    if not found:
        return list(words)
    chosen = [match[2] for match, _ in found if match[1] is None]
    known = catalogue.groups(words)["cluster"]
    if not chosen:
        raise UsageError(f"{found[0][1]} needs the cluster that it is about: say cluster={' or cluster='.join(known)}")
    if (name := chosen[-1]) not in known:
        raise UsageError(f"no cluster {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}")
    settings = catalogue.read_choice("cluster", name, words)
    for match, _ in found:
        if match[1] == "launcher" or (match[1] and match[1] not in settings):
            keys = [key for key in settings if key != "launcher"]
            raise UsageError(f"cluster={name} has no key {match[1]}{did_you_mean(match[1], keys)}; {', '.join(keys)}")
    settings |= {match[1]: match[2] for match, _ in found if match[1]}
    settings = {key: checked(key, value) for key, value in settings.items() if value not in (None, "null")}

    launcher = {TO_LAUNCHER[key]: value for key, value in settings.items() if key in TO_LAUNCHER}
    launcher["name"] = "distillkit"
    if "hours" in settings:
        launcher["timeout_min"] = max(1, round(60 * settings["hours"]))
    rest, trainer, srun = [word for word in words if not WORD.fullmatch(word)], {}, []
    if "gpus" in settings:
        if "cpus" in settings:  # srun does not take them over from sbatch; the launcher hands this on without naming it
            srun = [f"++hydra.launcher.srun_args=['--cpus-per-task={settings['cpus']}']"]
        launcher["tasks_per_node"] = max(1, settings["gpus"])
        trainer = {"devices": max(1, settings["gpus"]), "num_nodes": settings.get("nodes", 1)}
    for key in trainer:
        if said := next((word for word in rest if word.lstrip("+").startswith(f"trainer.{key}=")), None):
            raise UsageError(f"cluster.nodes and cluster.gpus say how many processes there are: leave {said} out")
    return [
        *rest,
        *(f"trainer.{key}={value}" for key, value in trainer.items()),
        f"hydra/launcher={settings['launcher']}",
        *(f"hydra.launcher.{key}={quoted(value)}" for key, value in launcher.items()),
        *srun,
    ]


def quoted(value: Any) -> Any:
    """The value as Hydra takes it in a sweep, where a comma without quotes begins another one."""
    return f"'{value}'" if "," in str(value) else value


def checked(key: str, value: Any) -> Any:
    """The value of a key as a number or a name.

    Raises:
        UsageError: it is neither.
    """
    text = str(value)
    if key in WHOLE:
        if not text.isdecimal() or int(text) < WHOLE[key]:
            raise UsageError(f"cluster.{key} must be a whole number of at least {WHOLE[key]}, got {text}")
        return int(text)
    if key == "hours":
        if not re.fullmatch(r"\d*\.?\d+", text) or not float(text):
            raise UsageError(f"cluster.hours must be a number above 0, got {text}")
        return float(text)
    if not NAME.fullmatch(text):
        raise UsageError(f"cluster.{key} must be a name of letters, digits and . , : + -, got {text}")
    return text


def needs_launcher() -> None:
    """Import what queues runs.

    Raises:
        UsageError: a package is missing.
    """
    for module in ("submitit", "hydra_plugins.hydra_submitit_launcher"):
        optional(module, "slurm", "runs are queued with")
