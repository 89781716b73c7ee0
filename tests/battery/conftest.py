"""The battery finds every method by itself: whatever lies in conf/method is put through all proofs."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything

from distillkit import config
from distillkit.data import DistillData
from distillkit.methods.base import Distiller

METHODS = config.groups()["method"]
DOMAINS = config.groups()["domain"]
TINY = ["network.width=16", "network.depth=2", "data.batch_size=32", "data.num_samples=256"]


def compose(*words: str) -> dict:
    """The configuration LightningCLI would get for these words."""
    return config.hand_over(config.compose(list(words))[0])


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


def tiny(method: str, *words: str, seed: int = 0) -> SimpleNamespace:
    """A method on the plane with a network of a few hundred weights."""
    return build("domain=toy", f"method={method}", *TINY, *words, seed=seed)


def weights(model: Distiller) -> dict[str, torch.Tensor]:
    """A copy of everything a checkpoint would hold."""
    return {name: value.clone() for name, value in copy.copy(model.state_dict()).items()}


@pytest.fixture(params=METHODS)
def method(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
