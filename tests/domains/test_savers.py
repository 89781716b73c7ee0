"""What takes less memory, on published networks: from the command line, with the same weights."""

import csv
import math

import pytest
import tiny_lidiff
import tiny_resshift
import torch
from helpers import UNMEASURED

from distillkit import runs
from distillkit.cli import front
from distillkit.data import DistillData, TensorData
from distillkit.methods.base import Distiller
from domains.lidar.lidiff.convert import convert as convert_lidiff
from domains.lidar.lidiff.network import Residual
from domains.protein.convert import convert as convert_proteina
from domains.protein.proteina.layers import PairUpdate
from domains.super_resolution.resshift.network import Upsample
from domains.threed.trellis.networks import Block
from tests.domains.protein import test_proteina
from tests.domains.threed import test_trellis

EPS = torch.finfo(torch.bfloat16).eps  # rounding moves a weight by half of it, relative to the weight
FIT = ["fit", "method=dmd", *UNMEASURED, "~vars.callbacks.watch", "trainer.max_steps=2", "data.batch_size=2"]
FIT += ["model.fake_score.updates=1", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu"]


class Features(DistillData):
    """Features of images, from which TRELLIS makes a structure."""

    domain, event_shape, classes, context = "threed", (2, 4, 4, 4), {}, ("cond",)
    provides = frozenset()
    build_evaluator = media = None

    def load(self):
        return (TensorData({"cond": torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(0))}),) * 3


def resshift(folder):
    files = tiny_resshift.release(folder)[0]
    words = ["domain=super_resolution", "teacher=resshift", "data.crop=64", f"+teacher.config={files.pop('config')}"]
    return words + [f"teacher.{key}={path}" for key, path in files.items()]


def trellis(folder):
    words = ["domain=threed", "teacher=trellis", f"teacher.path={test_trellis.release(folder)}"]
    return [*words, "data._target_=tests.domains.test_savers.Features", "~data.shapes", "~data.side"]


def lidiff(folder):
    made = convert_lidiff(tiny_lidiff.write(folder / "diff_net.ckpt", tiny_lidiff.denoiser()), folder / "teacher")
    return ["domain=lidar", "teacher=lidiff", f"teacher.path={made}", "data.num_full=192", "data.num_part=24"]


def proteina(folder):
    made = convert_proteina(test_proteina.write(folder / "tri.ckpt", test_proteina.TRI), folder / "teacher")
    words = ["domain=protein", "teacher=proteina", f"teacher.path={made}"]
    return words + [f"data.chains.{part}=8" for part in ("train", "val", "test")]


# by name: the words of a tiny release, and a part that is in blocks alone
PUBLISHED = {
    "resshift": (resshift, Upsample),
    "trellis": (trellis, Block),
    "lidiff": (lidiff, Residual),
    "proteina": (proteina, PairUpdate),
}


@pytest.fixture(
    params=["trellis", *(pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED if name != "trellis")]
)
def published(request, tmp_path, monkeypatch, capsys):
    """`run(*words)`: method, weights, losses, and passes with gradients through the part."""
    make, part = PUBLISHED[request.param]
    own, forward, words, left = [], part.forward, make(tmp_path), []
    monkeypatch.setattr(part, "forward", lambda *args: own.append(torch.is_grad_enabled()) or forward(*args))
    monkeypatch.setattr(Distiller, "on_train_end", lambda self: left.append(self))

    def run(*more):
        monkeypatch.delenv(runs.OUT, raising=False)
        own.clear()
        out = tmp_path / f"run{len(left)}"
        assert front.main([*FIT, *words, *more, "--out", str(out)]) == 0, capsys.readouterr().err
        state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        *_, last = csv.DictReader((out / "metrics.csv").read_text().splitlines())
        losses = {role: float(last[f"{role}/loss"]) for role in ("fake_score", "student")}
        return left[-1], state, losses, sum(own)

    return run


def test_blocks_are_computed_again_and_weights_stay_the_same_to_the_bit(published):
    _, plain, losses, passes = published()
    _, again, same, more = published("model.checkpointing=true")
    assert more == 2 * passes > 0 and losses == same
    assert plain.keys() == again.keys() and all(torch.equal(value, again[name]) for name, value in plain.items())


def test_a_teacher_in_half_precision_trains_a_student_in_full(published):
    _, _, losses, _ = published()
    method, state, found, _ = published("teacher.dtype=bfloat16")
    assert {p.dtype for p in method.teacher.denoiser.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in state.values() if value.is_floating_point()} <= {torch.float32, torch.float64}
    # Either loss is a mean square: of a sample's error, or of a difference of two outputs in units
    # of the student's distance from the teacher. Rounded weights move outputs by half of EPS.
    roots = [[math.sqrt(each[role]) for role in losses] for each in (losses, found)]
    assert all(abs(a - b) <= EPS * max(1, a) for a, b in zip(*roots, strict=True))
