"""The battery finds every method by itself: whatever lies in conf/method is put through all proofs.

A preset, another method with other settings, has the same class: what is `per_class` was proved
    there.

So are the methods of an installed package that announces its configuration folder. Of any other
folder:

    python -m pytest PATH/tests/battery --conf conf --method my_method
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything

from distillkit.cli import config
from distillkit.cli.matrix import compatibility
from distillkit.data import DistillData
from distillkit.methods.base import Distiller

FOREIGN: list[str] = []  # what --conf adds to every command line
METHODS = config.groups()["method"]
DOMAINS = config.groups()["domain"]
TINY = ["network.width=16", "network.depth=2", "data.batch_size=32", "data.num_samples=256"]
FEW_PAIRS = dict.fromkeys(("reflow", "pairs"), ["model.num_pairs=256", "model.steps=4"])  # of a run that proves no law


def pytest_addoption(parser):
    parser.addoption("--conf", action="append", default=[], help="configuration folder of methods outside the project")
    parser.addoption("--method", action="append", default=[], help="put this method alone through the battery")


def pytest_configure(config):
    folders = [f"file://{Path(folder).absolute()}" for folder in config.getoption("--conf", [])]
    FOREIGN[:] = [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []


def pytest_generate_tests(metafunc):
    """`method` is each method there is, or each that was asked for; where classes are proved, none that is a preset."""
    if "method" in metafunc.fixturenames:
        there, asked = config.groups(FOREIGN)["method"], metafunc.config.getoption("--method", [])
        if strange := sorted(set(asked) - set(there)):
            raise pytest.UsageError(f"no method {strange[0]!r}: --conf FOLDER says where it is; there are: {there}")
        chosen, per_class = asked or there, metafunc.definition.get_closest_marker("per_class")
        metafunc.parametrize("method", [method for method in chosen if not (per_class and preset(method))])


def file_of(method: str) -> Path:
    """Its yaml."""
    (file,) = [file for top in config.conf_dirs(FOREIGN) if (file := top / "method" / f"{method}.yaml").is_file()]
    return file


def preset(method: str) -> bool:
    """Whether it is another method with other settings: its yaml builds on that one's."""
    entries = (yaml.safe_load(file_of(method).read_text()) or {}).get("defaults", ())
    return any(isinstance(entry, str) and entry != "_self_" for entry in entries)


def compose(*words: str) -> dict:
    """The configuration LightningCLI would get for these words."""
    return config.hand_over(config.compose([*FOREIGN, *words])[0])


def build(*words: str, seed: int = 0) -> SimpleNamespace:
    """`model` and `data` for these words, built and type-checked as the command line does."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Distiller, "model")
    parser.add_subclass_arguments(DistillData, "data")
    chosen = compose(*words)
    seed_everything(seed, verbose=False)
    made = parser.instantiate(
        parser.parse_object({key: json.loads(json.dumps(chosen[key])) for key in ("model", "data")})
    )
    return SimpleNamespace(model=made.model, data=made.data, config=chosen)


def plane(method: str) -> list[str]:
    """The words for a method on the plane; one that needs classes has the modes of a mixture."""
    refused = compatibility("toy", method, tuple(FOREIGN))
    return ["domain=toy", f"method={method}", *(["teacher=labelled"] if refused else [])]


def tiny(method: str, *words: str, seed: int = 0) -> SimpleNamespace:
    """A method on the plane with a network of a few hundred weights."""
    return build(*plane(method), *TINY, *FEW_PAIRS.get(method, []), *words, seed=seed)


def weights(model: Distiller) -> dict[str, torch.Tensor]:
    """A copy of everything a checkpoint would hold."""
    return {name: value.clone() for name, value in copy.copy(model.state_dict()).items()}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
