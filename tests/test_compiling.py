"""Compiled networks: the same weights under the same names, and runs that go on without.

PyTorch itself runs what was traced (`eager`), which is quick and the same to the bit. Machine code
is tried in the slow lane, where there is a compiler of C++.
"""

import copy
import os
import shutil

import pytest
import torch
from helpers import CLASSES, UNMEASURED, ForkedShard, trainer

from distillkit import compiling, runs
from distillkit.cli import front
from distillkit.compiling import compile_networks
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.flow import forward_derivative
from distillkit.diffusion.process import VarianceExploding
from distillkit.methods.dmd import DMD
from distillkit.methods.scm import SCM
from distillkit.networks.dit import DiT
from distillkit.students.makers import Lora
from distillkit.teachers.base import Teacher
from tests.battery.conftest import weights
from tests.networks.test_adapters import NETWORKS, wake
from tests.test_checkpointing import SHAPE, Images, fitted, gradients, inputs_of


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def frames():
    """Number of functions that were compiled."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_a_network_computes_the_same(name):
    plain, inputs = wake(NETWORKS[name][0]()), inputs_of(name)
    other = copy.deepcopy(plain)
    compile_networks([other])
    for found, expected in zip(gradients(other, *inputs), gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert frames() > 0 and list(other.state_dict()) == list(plain.state_dict())
    assert copy.deepcopy(other)._compiled_call_impl is None


def test_forward_mode_is_not_traced():
    plain, (x, time, cond) = wake(NETWORKS["dit"][0]()), inputs_of("dit")
    other = copy.deepcopy(plain)
    compile_networks([other])
    with torch.no_grad():
        rates = [forward_derivative(lambda y, t, net=net: net(y, t, cond), x, time, x) for net in (other, plain)]
    assert torch.equal(*rates) and frames() == 0


def model(kind=DMD, **settings):
    """A method on a small transformer, in all that takes less memory."""
    torch.manual_seed(0)
    network = wake(DiT(SHAPE, 16, 2, 2, classes=CLASSES))
    teacher = Teacher(Denoiser(network, VarianceExploding(), "edm", 1.0), SHAPE, CLASSES, dtype="bfloat16")
    return kind(teacher, checkpointing=True, schedule="constant", student_maker=Lora(2), **settings)


@pytest.mark.slow
def test_a_run_trains_the_same_weights_and_goes_on_without(tmp_path):
    expected, last = fitted(model(), steps=6), tmp_path / "4.ckpt"
    for first in (True, False):
        run = trainer(4)
        run.fit(model(compile=first), Images(batch_size=8))
        run.save_checkpoint(last)
        made = frames()
        other = model(compile=not first)
        trainer(6).fit(other, Images(batch_size=8), ckpt_path=last, weights_only=True)
        found = weights(other)
        assert found.keys() == expected.keys() and (made > 0 if first else frames() > made)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_method_in_forward_mode_trains_the_same_weights():
    plain, compiled = (fitted(model(SCM, tangent_warmup=0, compile=given), steps=2) for given in (False, True))
    assert frames() > 0
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)


def test_what_does_not_compile_is_refused_before_the_run(monkeypatch):
    with pytest.raises(ValueError, match=r"spread over processes are not compiled: leave model\.compile out"):
        compiling.check_compiler(ForkedShard())
    monkeypatch.setattr(compiling, "BACKEND", lambda graph, inputs: 1 / 0)
    with pytest.raises(ValueError, match=r"nothing compiles on this machine \(.*division by zero.*leave model"):
        fitted(model(compile=True))


@pytest.fixture
def machine_code(traced, monkeypatch):
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("there is no compiler of C++")
    monkeypatch.setattr(compiling, "BACKEND", "inductor")


@pytest.mark.slow
def test_machine_code_trains_nearly_the_same_weights(machine_code):
    plain, compiled = (fitted(model(compile=given)) for given in (False, True))
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)


SMALL = ["fit", "domain=toy", "network.width=16", "network.depth=2", "data.batch_size=32", "data.num_samples=256"]
SMALL += [*UNMEASURED, "~vars.callbacks.watch", "trainer.accelerator=cpu", "model.schedule=constant"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["dmd"], ["scm", "model.tangent_warmup=0"], ["meanflow"]], ids=lambda words: words[0]
)
def test_a_run_of_the_command_line_in_machine_code_stops_and_goes_on(words, machine_code, tmp_path, monkeypatch):
    """With derivatives in forward mode too."""

    def run(out, steps, compile):
        torch._dynamo.reset()  # as a new interpreter
        monkeypatch.delenv(runs.OUT, raising=False)
        more = [f"method={words[0]}", *words[1:], f"model.compile={compile}", f"trainer.max_steps={steps}"]
        assert front.main([*SMALL, *more, "--out", str(tmp_path / out), "--ckpt_path", "last"]) == 0
        return torch.load(tmp_path / out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    plain = run("plain", 6, "false")
    assert frames() == 0
    once = run("once", 6, "true")
    assert frames() > 0
    run("twice", 3, "true")
    twice = run("twice", 6, "true")
    assert plain.keys() == once.keys() and all(torch.equal(value, once[name]) for name, value in twice.items())
    for name, value in plain.items():
        torch.testing.assert_close(once[name], value, rtol=1e-3, atol=1e-4)
