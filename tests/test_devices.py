"""Samples, evaluation and the end of a run compute on the device that they should."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import Command, at
from torch import nn

from distillkit import devices
from distillkit.callbacks.finish import Finish
from distillkit.cli import front
from distillkit.files import write_yaml
from tests.battery.conftest import build

NUM = 16
ROUNDING = 1e-3  # of samples of order one: the largest difference of two devices
# What may leave the device: samples; weights that are written or hashed, and the whole model in the
# end; counts and learned numbers; what exact laws draw from, and what NumPy, SciPy and exact sums
# take.
LEAVE = {
    "devices.py:alone",
    *("files.py:<dictcomp>", "files.py:hash_tensors", "base.py:_apply", "exact.py:<lambda>"),
    *("base.py:check_steps", "base.py:skipped", "learned.py:<dictcomp>"),
    *("exact.py:draw", "evaluation.py:_chains", "look.py:motion_apart", "metrics.py:_mean"),
    "measures.py:_array",
    "metrics.py:__new__",  # what each sample adds to a margin
}
WORLDS = {
    "image": ["domain=image", "method=dmd", "model.num_steps=2"],
    "toy": ["domain=toy", "method=dmd", "model.num_steps=2"],
    "text": ["domain=discrete", "method=lsd", "model.num_steps=4", "model.guard=0"],
    "world": ["domain=discrete", "data=world", "teacher=potts", "method=lsd", "model.num_steps=4"],
    "protein": ["domain=protein", "method=dmd"],
    "structure": ["domain=threed", "stage=structure", "method=sid"],
    "features": ["domain=threed", "stage=features", "method=sid"],
    "clip": ["domain=video", "stage=clip", "method=sid"],
    "continuation": ["domain=video", "stage=continuation", "method=sid"],
    "photos": ["domain=super_resolution", "method=dmd"],
    "scenes": ["domain=lidar", "method=dmd"],
    "ranges": ["domain=lidar", "stage=range", "method=dmd"],
}


@pytest.mark.parametrize("name", ["cuda:99", "meta", "nonsense", "mps"])
def test_a_device_that_does_not_compute_here_is_refused(name):
    with pytest.raises(argparse.ArgumentTypeError, match=f"{name} does not compute on this machine: give cpu"):
        devices.named(name)


def test_a_device_is_refused_before_anything_is_loaded(capsys):
    for verb in ("sample", "evaluate"):
        assert front.main([verb, "no/such/folder", "--device", "cuda:99"]) == 2
        assert "argument --device: cuda:99 does not compute" in capsys.readouterr().err


def test_apples_device_has_no_float64():
    assert devices.able(torch.device("mps")) == devices.able(torch.device("cpu")) == torch.device("cpu")
    assert devices.able(torch.device("cuda:1")) == torch.device("cuda:1")


class Memory:
    """A function of rows on a GPU that holds so many of them."""

    def __init__(self, most: int):
        self.most, self.calls = most, []

    def __call__(self, rows: slice) -> torch.Tensor:
        self.calls.append(rows.stop - rows.start)
        if self.calls[-1] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.arange(rows.start, rows.stop)


def test_a_chunk_that_does_not_fit_is_halved():
    small, large = Memory(30), Memory(1000)
    assert devices.in_chunks(small, 100, 64).tolist() == devices.in_chunks(large, 100, 64).tolist() == [*range(100)]
    assert small.calls == [64, 32, 16, 16, 16, 16, 16, 16, 4] and large.calls == [64, 36]
    with pytest.raises(torch.OutOfMemoryError):
        devices.in_chunks(Memory(0), 100, 64)


def test_a_chunk_that_takes_more_than_half_of_the_free_memory_is_halved(monkeypatch):
    """A row is 1 MiB, and twice that while it is made; half of what is free are 20 MiB."""
    calls, asked, numbers = [], [], 2**18

    def make(rows: slice) -> torch.Tensor:
        calls.append(rows.stop - rows.start)
        x = torch.full((rows.stop - rows.start, numbers), float(rows.start))
        return (x + 1)[:, :1].clone()

    def made(free: int | None, num: int = 64, size: int = numbers) -> list[int]:
        calls.clear()
        asked.clear()
        monkeypatch.setattr(devices, "free", lambda device: asked.append(device) or free)
        assert len(devices.in_chunks(make, num, 32, size, torch.device("cpu"))) == num
        return [*calls]

    assert made(40 * 2**20) == [32, 16, *[8] * 8]
    assert made(2**30) == made(None) == [32, 32] and len(asked) == 1  # the first chunk shows that they fit
    assert made(40 * 2**20, size=0) == [32, 32] and not asked
    assert made(2**20, num=3) == [3, 1, 1, 1]  # one row is tried all the same
    with devices.dividing(lambda make, num, *rest: devices.alone(make, slice(0, num), *rest), processes=2):
        assert made(40 * 2**20) == [32, 16, 8, *[4] * 16]  # another process wants the other half


def test_processes_that_sample_together_make_as_many_passes(monkeypatch):
    """Networks that are spread would wait for a process that has made its own already."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(devices, "free", lambda device: 1)
    large = Memory(1000)
    devices.in_chunks(large, 100, 64, 2**20, torch.device("cpu"))
    assert large.calls == [64, 36]
    with pytest.raises(torch.OutOfMemoryError):
        devices.in_chunks(Memory(30), 100, 64)


def test_samples_do_not_depend_on_their_chunks(monkeypatch):
    """Their noise is by seed and row; sums of other batches round otherwise."""
    own = build("domain=image", "method=dmd", "model.num_steps=2")
    teacher, student = own.model.teacher, own.model.product().eval()
    cond = teacher.condition(own.data.conditions(40))

    def made(chunk: int) -> list[torch.Tensor]:
        solved = teacher.generate(40, cond, 3, "euler", teacher.grid(3), chunk=chunk)
        churned = teacher.generate(40, cond, 3, "ancestral", teacher.grid(3), chunk=chunk)
        return [solved, churned, student.sample(40, cond, 3, batch_size=chunk)]

    whole = made(40)
    for one, other in zip(whole, made(7), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    monkeypatch.setattr(devices, "LARGE", 1)
    monkeypatch.setattr(devices, "free", lambda device: 2**22)  # too little for forty
    for one, other in zip(whole, made(40), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_no_rows_are_one_call():
    assert len(devices.in_chunks(lambda rows: torch.zeros(rows.stop - rows.start, 3), 0, 64)) == 0


# The pretend device


def ended(argv: list[str]) -> None:
    """A run ends on the device, then its student samples and is measured there and on the CPU."""
    from tests import pretend

    run, words = Path(argv[0]), argv[1:]
    seen = set()  # devices of the inputs of every layer
    nn.modules.module.register_module_forward_pre_hook(
        lambda layer, inputs: seen.update(x.device.type for x in inputs if isinstance(x, torch.Tensor))
    )
    own = build(*words)
    own.model.teacher.best = {**own.model.teacher.best, "steps": 3}
    write_yaml(run / "config.yaml", own.config)
    place = torch.device(pretend.NAME, 0)
    model = at(own.model)
    vars(model._trainer).update(
        is_global_zero=True,
        fast_dev_run=False,
        default_root_dir=run,
        loggers=[],
        datamodule=own.data,
        strategy=SimpleNamespace(root_device=place),
    )
    Finish(NUM).on_fit_end(model._trainer, model)
    assert model.device.type == "cpu" and seen <= {pretend.NAME}, seen
    assert json.loads((run / "evaluation.json").read_text())["protocol"]["device"] == str(place)
    assert torch.get_device_module(place).waits % 2 == 0 < torch.get_device_module(place).waits
    moved()

    both = ("cpu", pretend.NAME)
    for name in both:
        seen.clear()
        assert not front.main(["sample", str(run), "-n", "8", "--device", name, "--out", str(run / f"by-{name}")])
        assert not front.main(
            ["evaluate", str(run), "--num-samples", str(NUM), "--device", name, "--out", str(run / f"{name}.json")]
        )
        assert seen <= {name}, seen
        moved()
    samples = [np.load(run / f"by-{name}" / "samples.npz")["samples"] for name in both]
    assert np.abs(samples[0] - samples[1]).max() < ROUNDING
    rows = [json.loads((run / f"{name}.json").read_text())["rows"] for name in both]
    for one, other in zip(*rows, strict=True):
        assert one["metrics"] == pytest.approx(other["metrics"], rel=2e-2, abs=ROUNDING)


def moved() -> None:
    """Refuse tensors of more than one number that went to the CPU for no good reason."""
    from tests import pretend

    away = {copy.where for copy in pretend.copies if copy.to == "cpu" and copy.size > 1}
    assert away <= LEAVE, away - LEAVE
    pretend.copies.clear()


@pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="this PyTorch makes no devices in Python")
@pytest.mark.parametrize(
    "world", [name if name == "toy" else pytest.param(name, marks=pytest.mark.slow) for name in WORLDS]
)
def test_a_run_ends_on_the_device_of_its_training(world, tmp_path):
    command = Command(tmp_path, *WORLDS[world], work=ended)
    assert command.wait(900) == 0, command.stdout[-2000:] + command.stderr[-6000:]


# The script that compares a GPU with the CPU


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("gpu", Path(__file__).parents[1] / "benchmarks" / "gpu.py")
    spec.loader.exec_module(made := importlib.util.module_from_spec(spec))
    return made


def test_a_row_fails_where_the_devices_differ(benchmark, monkeypatch, capsys):
    drift, cpu = iter(range(100)), torch.device("cpu")
    rows = {
        "same": lambda place: {"x": torch.ones(3)},
        "near": lambda place: {"x": torch.full((3,), 1000 + 0.5 * next(drift))},
        "far": lambda place: {"x": float(next(drift))},
        "tokens": lambda place: {"x": torch.arange(10) + next(drift)},
        "lost": lambda place: {"x": torch.tensor([1.0, torch.nan])},
        "raises": lambda place: 1 / 0,
    }
    passed = {name: benchmark.compared(name, values, 1e-3, cpu).passed for name, values in rows.items()}
    assert passed == {"same": True, "near": True, "far": False, "tokens": False, "lost": False, "raises": False}
    for name in ("same", "raises"):
        monkeypatch.setattr(benchmark, "checks", lambda *_, name=name: [(name, rows[name], 1e-3)])
        assert benchmark.main(["--device", "cpu"]) == (name == "raises")
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_word_that_no_row_has_is_refused(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "checks", lambda *_: [("image: samples", lambda place: 1 / 0, 1e-3)])
    with pytest.raises(SystemExit) as error:
        benchmark.main(["--device", "cpu", "--only", "samples", "nosuch"])
    assert error.value.code == 2 and "'nosuch' in its name; some are image: samples" in capsys.readouterr().err


@pytest.mark.slow
def test_the_cpu_passes_against_itself(benchmark):
    assert benchmark.main(["--device", "cpu"]) == 0


def test_several_processes_that_differ_from_one_fail(benchmark, monkeypatch, tmp_path):
    """The first call is of one process with as many micro-batches, the second of several."""
    asked, runs, cpu = [], benchmark.Runs(tmp_path), torch.device("cpu")
    for drift, passed in ((0.0, True), (1e-3, False)):
        found = iter((torch.ones(2), torch.ones(2) + drift))
        monkeypatch.setattr(runs, "weights", lambda words, *_, found=found: asked.append(words) or {"x": next(found)})
        row = benchmark.compared("spread", runs.spread(["trainer=shard"], cpu), benchmark.SPREAD, cpu)
        assert row.passed == passed
    toy = ["domain=toy", "method=dmd"]
    assert asked[0] == [*toy, "trainer.devices=1", "trainer.accumulate_grad_batches=2"]
    assert asked[1] == [*toy, "trainer.devices=2", "trainer=shard"]


if __name__ == "__main__":
    sys.exit(ended(sys.argv[1:]))


def test_the_peak_counts_what_is_made_and_alive_at_once():
    old = torch.zeros(1000)
    with devices.Peak([old]) as peak:
        old.add_(1)
        kept, gone = torch.zeros(250), torch.zeros(500)
        part = kept[:10]
        del gone
        again = torch.zeros(100)
        assert peak.bytes == 4 * 750
        peak.restart()
        assert peak.bytes == 4 * 350
        more = torch.zeros(50)
    assert peak.bytes == 4 * 400 and len(part) + len(again) + len(more) == 160


@pytest.mark.parametrize(
    ("said", "expected"),
    [({}, "cuda:0"), ({"LOCAL_RANK": "3"}, "cuda:3"), ({"SLURM_LOCALID": "5"}, "cuda:1")],
)
def test_every_process_has_a_gpu_of_its_own_before_training(said, expected, monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.own() == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.own() == "cpu"
