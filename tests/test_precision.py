"""A run on a GPU is in bfloat16 where that is safe, says so once, and keeps what it used."""

from __future__ import annotations

import pytest
import torch

from distillkit import precision
from distillkit.cli import doctor
from distillkit.methods.consistency import Consistency
from distillkit.methods.dmd import DMD
from distillkit.methods.flow_map import FlowMap
from distillkit.methods.mdt_dist import MDTDist
from distillkit.methods.rcm import RCM
from distillkit.methods.scm import SCM
from distillkit.methods.twinflow import TwinFlow


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU, or without one."""

    def has(gpu: bool, bfloat16: bool = True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16 or including_emulation
        )

    return has


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_what_a_run_takes_by_itself(machine, accelerator):
    machine(gpu=True)
    assert precision.default(accelerator, precise=False) == "bf16-mixed"
    assert precision.default(accelerator, precise=True) == "32-true"
    machine(gpu=True, bfloat16=False)  # where it is emulated it is slow
    assert precision.default(accelerator, precise=False) == "32-true"
    machine(gpu=False)
    assert precision.default(accelerator, precise=False) == "32-true"


@pytest.mark.parametrize("accelerator", ["cpu", "mps", "tpu"])
def test_a_run_elsewhere_is_in_full_precision_beside_a_gpu(machine, accelerator):
    machine(gpu=True)
    assert precision.default(accelerator, precise=False) == "32-true" and not precision.on_gpu(accelerator)


def test_what_is_differentiated_in_its_input_is_precise():
    assert all(kind.precise for kind in (SCM, RCM, FlowMap, TwinFlow, MDTDist))
    assert not DMD.precise and not Consistency.precise


@pytest.fixture
def products():
    """Leaves the flags as they were."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield lambda: (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_products_are_rounded_unless_precision_is_full(products):
    for rounded in ("bf16-mixed", "bf16-true", "16-true"):
        precision.set_products(rounded)
        assert products() == ("high", True)
        precision.set_products("32-true")
        assert products() == ("highest", False)


def test_doctor_says_what_runs_take(machine, monkeypatch):
    machine(gpu=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "one")
    assert doctor._torch_build().endswith("GPUs: one; runs take bf16-mixed by themselves")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert doctor._torch_build().endswith("GPUs: none")
