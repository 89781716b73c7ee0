"""The settings in which runs differ, named as words of the command line set them."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

APART = {  # not of what is trained: the seed, where it went on, what is shown and measured underway
    "seed_everything",
    "ckpt_path",
    "weights_only",
    *(
        f"trainer.{key}"
        for key in (
            "logger",
            "callbacks",
            "default_root_dir",
            "profiler",
            "val_check_interval",
            "check_val_every_n_epoch",
            "num_sanity_val_steps",
            "limit_val_batches",
            "log_every_n_steps",
            "enable_checkpointing",
            "enable_progress_bar",
            "enable_model_summary",
        )
    ),
}
GROUPS = {  # keys of Lightning's configuration that a group of words of its own chooses
    ("model", "teacher"): ("teacher",),
    ("model", "student_maker"): ("student",),
    ("model", "fake_score_maker"): ("fake_score",),
}
MISSING = "-"  # of a key that a run does not have


def differing(configs: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """For each config.yaml its values of the keys in which they differ.

    Keys below a class are compared among runs of that class alone, since other classes have other
    keys. A key is left out if one before it has the same values, such as a data set's own mention
    of the teacher.
    """
    values: dict[str, dict[int, str]] = {}
    differ = set()
    for key, found in _leaves(dict(enumerate(configs)), ()):
        values.setdefault(key, {}).update(found)
        if len({*found.values()}) > 1:
            differ.add(key)
    columns = {}
    for key, found in values.items():
        if key in differ and found not in columns.values():
            columns[key] = found
    return [{key: found[i] for key, found in columns.items() if i in found} for i in range(len(configs))]


def _leaves(nodes: dict[int, Any], path: tuple[str, ...]) -> Iterator[tuple[str, dict[int, str]]]:
    """Keys with the values of the runs in `nodes`, the class of a group before what is in it."""
    if ".".join(path) in APART:
        return
    groups = {i: node for i, node in nodes.items() if isinstance(node, dict)}
    if path and (len(groups) < len(nodes) or any("class_path" in node for node in groups.values())):
        yield typed(path), {i: _text(node) for i, node in nodes.items()}
    kinds: dict[str, list[int]] = {}
    for i, node in groups.items():
        kinds.setdefault(str(node.get("class_path")), []).append(i)
    for alike in kinds.values():
        inside = {i: _arguments(groups[i]) for i in alike}
        for key in dict.fromkeys(str(key) for arguments in inside.values() for key in arguments):
            yield from _leaves({i: inside[i].get(key, MISSING) for i in alike}, (*path, key))


def _arguments(node: dict[str, Any]) -> dict[str, Any]:
    found = node.get("init_args") if "class_path" in node else node
    return found if isinstance(found, dict) else {}


def typed(path: tuple[str, ...]) -> str:
    """The word that sets a key: `method` for the class of `model`, `teacher.path` for that path."""
    if path == ("model",):
        return "method"
    return ".".join((*GROUPS.get(path[:2], path[:2]), *path[2:]))


def _text(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return value if isinstance(value, str) else json.dumps(value, default=str, separators=(",", ":"))
