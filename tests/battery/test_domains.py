"""The contract of every domain, at each of its stages.

Data, evaluator, media, and a student from beginning to end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import UNMEASURED

import distillkit
from distillkit import runs
from distillkit.capabilities import imported
from distillkit.checkpointing import checkpoint_blocks
from distillkit.cli import config, front
from distillkit.cli.matrix import compatibility
from distillkit.evaluation.pictures import save_files
from distillkit.methods.leaves_teacher import TeacherDistiller
from distillkit.spec import from_spec
from distillkit.teachers.base import BaseTeacher, Teacher
from tests.battery.conftest import METHODS, Case, World, composed, loaded, preset, takes

FEW_TRAINED = {
    "num_samples": 64,
    "train": 64,
    "num_pairs": 8,
    "guard": 0,
    "num_steps": 2,
}  # of what takes such an argument


@pytest.fixture(scope="module")
def data(world):
    return loaded(json.dumps(json.loads(composed(*world.words, f"method={method_of(world)}"))["data"]))


@pytest.fixture(scope="module")
def held_out(data):
    """As many test samples as a small evaluation takes, and their conditions."""
    few = next(num for num in (24, 96) if data.evaluator().headline not in too_few(data, num))
    batch = data.test[torch.arange(min(few, len(data.test)))]
    return batch["data"], {name: batch[name] for name in (*data.classes, *data.context)}


def too_few(data, num: int) -> list[str]:
    """The metrics that so many samples are too few for."""
    return getattr(data.evaluator(), "too_few", lambda num: [])(num)


def method_of(world: World) -> str:
    """The first method that leaves a student there."""
    return next(
        method
        for method in METHODS
        if not preset(method)
        and compatibility(world.domain, method) is None
        and not issubclass(Case(method, world.domain).kind, TeacherDistiller)
    )


def test_data_are_as_they_say(data):
    """Shapes, types and ranges of all three parts, and the same sample whenever it is asked for."""
    for part in (data.train, data.val, data.test):
        assert len(part)
        batch, again = (part[torch.arange(min(16, len(part)))] for _ in range(2))
        assert set(batch) >= {"data", *data.classes, *data.context}
        assert {len(value) for value in batch.values()} == {min(16, len(part))}
        assert all(torch.equal(value, again[name]) for name, value in batch.items())
        samples = batch["data"]
        assert samples.ndim == 1 + len(data.event_shape)
        sizes = zip(samples.shape[1:], data.event_shape, strict=True)
        assert all(size <= most if "mask" in batch else size == most for size, most in sizes)
        if hasattr(data, "num_tokens"):
            assert samples.dtype == torch.int64 and samples.min() >= 0 and samples.max() < data.num_tokens
        else:
            assert samples.dtype == torch.float32 and samples.isfinite().all() and samples.std() > 0
        for name, count in data.classes.items():
            assert batch[name].dtype == torch.int64 and ((batch[name] >= 0) & (batch[name] < count)).all()
        assert all(len({*names}) == data.classes[name] for name, names in data.names.items())


def test_the_teacher_takes_less_memory(world, data):
    """Blocks computed again give the same gradients, weights in bfloat16 nearly the same output."""
    spec = json.loads(composed(*world.words, f"method={method_of(world)}"))["model"]["init_args"].get("teacher")
    teacher = from_spec(spec) if spec else pytest.skip("its method has no teacher")
    batch = data.test[torch.arange(2)]
    cond, t = teacher.condition(batch), torch.full((2,), 0.5 * getattr(teacher.process, "t_max", 1.0))
    x = batch["data"]
    if isinstance(teacher, Teacher):
        eps = torch.randn(teacher.shape(2, cond), generator=torch.Generator().manual_seed(0))
        x = teacher.process.add_noise(teacher.codec.encode(batch), eps, t)
    plain, again = teacher.new_denoiser(), teacher.new_denoiser()
    found = checkpoint_blocks(again)
    assert (found > 0) == (world.domain != "toy")  # whose network has no blocks
    for denoiser in (plain, again):
        output_of(denoiser, x, t, cond).square().sum().backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert one.grad is other.grad is None or torch.equal(one.grad, other.grad)
    if not found:
        return  # a teacher that is a formula
    half = from_spec({**spec, "init_args": {**spec.get("init_args", {}), "dtype": "bfloat16"}})
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.new_denoiser().parameters()} == {torch.float32}
    with torch.no_grad():
        whole, rounded = (output_of(each.denoiser, x, t, cond) for each in (teacher, half))
    error = (whole - rounded).square().mean().sqrt() / whole.std()
    assert 0 < error < 0.05  # 8 binary digits are 0.004


def output_of(denoiser, *inputs) -> torch.Tensor:
    """A denoiser's output; of tokens the network's, in float32."""
    out = denoiser(*inputs)
    return out if isinstance(out, torch.Tensor) else out.output.float()


def test_conditions_are_those_of_the_data(data):
    cond = data.conditions(5)
    assert set(cond) == {*data.classes, *data.context} and all(len(value) == 5 for value in cond.values())
    shown = data.real(5)
    assert len(shown["data"]) == 5 and all(torch.equal(shown[name], cond[name]) for name in data.classes)


@pytest.mark.per_family
def test_real_data_are_nearer_to_the_floor_than_noise_is(data, held_out):
    samples, cond = held_out
    evaluator = data.evaluator()
    if samples.is_floating_point():
        noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0))
        noise = noise * cond["mask"].reshape(*cond["mask"].shape, *[1] * (noise.ndim - 2)) if "mask" in cond else noise
    else:
        noise = torch.randint(data.num_tokens, samples.shape, generator=torch.Generator().manual_seed(0))
    real, lost = (evaluator(x, cond) for x in (samples, noise))
    floor, headline = evaluator.floor(len(samples)), evaluator.headline
    assert all(np.isfinite(float(value)) for found in (real, floor) for value in found.values())
    assert real.get("outside", 0) == 0
    assert abs(real[headline] - floor[headline]) < (lost[headline] - floor[headline]) / 2


def test_the_protocol_is_plain_data(data, held_out):
    evaluator = data.evaluator()
    described = evaluator.describe()
    assert json.loads(json.dumps(described)) == described and described
    assert evaluator.better[evaluator.headline] == "lower"
    assert set(evaluator.better.values()) <= {"lower", "higher", "target"}
    assert {evaluator.headline} <= {*evaluator(*held_out)} <= {*evaluator.better}


def test_media_show_and_save(data, held_out, tmp_path):
    some = held_out[0][:4], {name: value[:4] for name, value in held_out[1].items()}
    picture = data.media.picture(*some)
    assert len(np.unique(np.asarray(picture))) > 1, "a picture of one grey"
    both = data.media.compare({"one": some[0], "other": some[0]}, some[1])
    assert both.width >= picture.width / 4 and both.height > 16
    saved = save_files(data.media, *some, tmp_path)
    assert all(path.is_file() and path.stat().st_size for path in saved)
    if hasattr(data.media, "film"):
        data.media.film(*some, tmp_path / "film.gif")
        assert (tmp_path / "film.gif").stat().st_size
    if hasattr(data.media, "sounds"):
        assert all(path.with_suffix(".png").is_file() for path in data.media.sounds(*some, tmp_path / "sounds"))


def test_media_show_what_a_lost_model_makes(data, held_out):
    """A run that is watched draws its samples, whatever they have become."""
    samples, cond = held_out[0][:1], {name: value[:1] for name, value in held_out[1].items()}
    for lost in (torch.nan, torch.inf, -torch.inf, 1e30) if samples.is_floating_point() else ():
        assert data.media.compare({"lost": torch.full_like(samples, lost), "real": samples}, cond).width > 0


def fewer(node: Any, key: str = "") -> Iterator[str]:
    """Words that let everything in a configuration train on little, whatever it is."""
    if isinstance(node, dict) and "class_path" in node:
        kind, arguments = imported(node["class_path"]), node.get("init_args", {})
        wanted = FEW_TRAINED.items() if not issubclass(kind, BaseTeacher) else ()
        for name, value in wanted:
            if name in takes(kind) and not (name == "num_steps" and arguments.get("times")):  # which say how many
                yield f"++{key}.{name}={value}"
        for name, inner in arguments.items():
            yield from fewer(inner, f"{key}.{name}")


@pytest.mark.per_family
def test_a_student_from_beginning_to_end(world, data, tmp_path, monkeypatch, capsys):
    """`fit` -> load -> `sample` -> `evaluate` -> `export`, each by the door."""
    monkeypatch.delenv(runs.OUT, raising=False)
    monkeypatch.chdir(tmp_path)

    def door(*words: object, code: int = 0) -> None:
        assert front.main([*map(str, words)]) == code, capsys.readouterr().err

    words = [*world.words, f"method={method_of(world)}"]
    chosen = config.hand_over(config.compose(words)[0])
    small = [*fewer(chosen["data"], "data"), *fewer(chosen["model"], "model"), "data.batch_size=4"]
    quick = [*UNMEASURED, "trainer.max_steps=2", "trainer.val_check_interval=null"]
    door("fit", *words, *small, *quick, "--out", "run")
    student = distillkit.load_student("run")
    made = student.sample(2, data.conditions(2) if student.context else None, seed=1)
    assert made.shape[0] == 2 and (not made.is_floating_point() or made.isfinite().all())
    door("sample", "run", "-n", 2, "--seed", 1, "--out", "samples")
    with np.load(Path("samples", "samples.npz"), allow_pickle=False) as arrays:
        assert len(arrays["samples"]) == 2
    headline = data.evaluator().headline
    num = next(num for num in (2, 4, 8, 16, 32, 64, 128) if headline not in too_few(data, num))
    door("evaluate", "run", "--num-samples", num)
    rows = json.loads(Path("run", "evaluation.json").read_text())["rows"]
    assert rows[0]["name"] == "student" and headline in rows[0]["metrics"]
    assert all(np.isfinite(value) for row in rows for value in row["metrics"].values())
    refused = bool(student.not_exported)
    door("export", "run", "--format", "safetensors", "--out", "student.safetensors", code=2 if refused else 0)
    assert Path("student.safetensors").is_file() != refused
