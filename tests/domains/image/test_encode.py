"""Latents of a data set, encoded once: the command, the folder, and training on it."""

import json
import os
import shutil
from functools import cached_property

import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

import tiny_pipelines
from helpers import trainer

from distillkit import runs
from distillkit.cli import front
from distillkit.errors import Failure
from distillkit.files import read_tensors, save_tensors
from distillkit.pipelines import latents as module
from distillkit.pipelines.codec import PipelineCodec
from distillkit.pipelines.latents import Shards, Writing, as_data, as_levels
from distillkit.pipelines.prompts import read_prompts
from domains.image.captioned import Captioned
from domains.image.data import ImageFolder
from domains.image.latents import Latents
from domains.image.pipelines import VAE
from tests.battery.conftest import build

TEXTS = ["a dog runs", "a cat sleeps", "a dog sleeps", "a cat on the moon"]
SIZE = {"height": 16, "width": 24}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A pipeline, another one, images with captions, and their latents in shards of three."""
    folder = tmp_path_factory.mktemp("encode")
    tiny_pipelines.stable_diffusion(folder / "sd")
    tiny_pipelines.stable_diffusion(folder / "other", seed=1)
    (folder / "images").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        pixels = torch.randint(0, 256, (16, 24, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / "images" / f"{i:02}.png")
        (folder / "images" / f"{i:02}.txt").write_text(TEXTS[i % 4])
    writing(folder, folder / "latents").run(torch.device("cpu"), 2)
    return folder


def images(room, **settings):
    data = Captioned(str(room / "images"), str(room / "sd"), SIZE, **settings)
    data.setup()
    return data


def writing(room, out, size=3, dtype="float32", **settings):
    return Writing(out, images(room, **settings), VAE(str(room / "sd")), size, dtype)


def latents(room, out="latents", pipeline="sd", **settings):
    data = Latents(str(room / out), str(room / pipeline), **settings)
    data.setup()
    return data


def facts_of(folder):
    return json.loads((folder / "facts.json").read_text())


def test_latents_are_what_the_codec_makes_of_the_data(room):
    data, ours, codec = images(room), latents(room), VAE(str(room / "sd"))
    assert ours.prompts == data.prompts == read_prompts(str(room / "latents")) == TEXTS
    assert ours.event_shape == (3, 16, 24) and ours.classes == {"prompt": 4}
    for name in ("train", "val", "test"):
        rows = torch.tensor([7, 0, 8, 3, 0]) if name == "train" else torch.arange(1)  # of several shards, in any order
        real, kept = getattr(data, name)[rows], getattr(ours, name)[rows]
        assert len(getattr(ours, name)) == len(getattr(data, name)) and torch.equal(kept["prompt"], real["prompt"])
        # one sample at a time, as the codec takes them: to the last bit
        assert torch.equal(kept["latent"], codec.encode(real)) and kept["latent"].std() > 0.03
        assert torch.equal(codec.encode(kept), kept["latent"])
        assert ("data" in kept) == (name != "train")
    assert torch.equal(kept["data"], real["data"])  # of 8 bits before and after
    asked, shown = ours.conditions(2), ours.real(2)
    assert torch.equal(asked["prompt"], shown["prompt"]) and shown["data"].shape == (2, 3, 16, 24)
    assert torch.equal(
        as_data(as_levels(torch.tensor([-1.5, -1.0, 1.0, 2.0]), torch.uint8)), torch.tensor([-1.0, -1.0, 1.0, 1.0])
    )


def test_an_interrupted_encoding_goes_on(room, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    saved = []

    def stop(file, tensors):
        if len(saved) == 2:
            raise Stop
        saved.append(file.name)
        save_tensors(file, tensors)

    monkeypatch.setattr(module, "save_tensors", stop)
    with pytest.raises(Stop):
        writing(room, tmp_path).run(torch.device("cpu"), 2)
    monkeypatch.undo()
    assert saved == ["train-00000.safetensors", "train-00001.safetensors"]
    with pytest.raises(ValueError, match="is not finished: give the command encode again"):
        latents(room, tmp_path)
    with (tmp_path / saved[1]).open("r+b") as file:  # damaged on the way
        file.seek(-1, 2)
        file.write(b"\x01")
    assert writing(room, tmp_path).run(torch.device("cpu"), 2) == 12 - 3  # all but the first shard
    assert facts_of(tmp_path) == facts_of(room / "latents")  # hashes of all shards among them
    assert writing(room, tmp_path).run(torch.device("cpu"), 2) == 0
    with pytest.raises(
        Failure, match=r"holds other latents, or the data have changed \(dtype\): give another folder with --out"
    ):
        writing(room, tmp_path, dtype="float16")
    with pytest.raises(Failure, match=r"holds other latents, or the data have changed \(data"):
        writing(room, tmp_path, seed=1)
    image = room / "images" / "03.png"
    before = image.stat()
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # drawn anew since
    with pytest.raises(Failure, match=r"the data have changed \(files\)"):
        writing(room, tmp_path)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert writing(room, tmp_path).run(torch.device("cpu"), 2) == 0


def test_half_precision_and_mirror_images(room, tmp_path):
    made = writing(room, tmp_path, dtype="float16", flip=True)
    made.run(torch.device("cpu"), 4)
    half, full = (latents(room, out).train[torch.arange(10)]["latent"] for out in (tmp_path, "latents"))
    assert half.dtype == torch.float16 and len(latents(room, tmp_path).train) == 20
    assert ((half.float() - full).abs() <= 2**-11 * full.abs() + 2**-25).all()  # rounding to float16
    mirrored = VAE(str(room / "sd")).encode({"data": images(room).train[torch.arange(1)]["data"].flip(-1)})
    assert torch.equal(latents(room, tmp_path).train[torch.tensor([10])]["latent"], mirrored.half())


def test_classes_and_wrong_sizes(room, tmp_path):
    for i in range(12):
        home = tmp_path / "images" / ("cat" if i % 2 else "dog")
        home.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * i,) * 3).save(home / f"{i:02}.png")
    data = ImageFolder(str(tmp_path / "images"), 16)
    data.setup()
    Writing(tmp_path / "latents", data, VAE(str(room / "sd"))).run(torch.device("cpu"), 4)
    ours, rows = latents(room, tmp_path / "latents"), torch.arange(6)
    assert ours.classes == {"label": 2} and torch.equal(ours.train[rows]["label"], data.train[rows]["label"])
    assert not (tmp_path / "latents" / "prompts.jsonl").exists()
    odd = ImageFolder(str(tmp_path / "images"), 17)
    odd.setup()
    with pytest.raises(Failure, match=r"latents of the data, \[3, 17, 17\], stand for \[3, 1"):
        Writing(tmp_path / "odd", odd, VAE(str(room / "sd"))).run(torch.device("cpu"), 4)


def test_what_is_refused(room, tmp_path):
    with pytest.raises(
        ValueError, match="were made by another autoencoder than that of .*other: encode the data again"
    ):
        latents(room, pipeline="other")
    with pytest.raises(
        ValueError, match=r"of shape \[3, 16, 24\], the teacher makes \[3, 32, 32\]: say the size of the"
    ):
        latents(room, size={"height": None, "width": None})
    assert latents(room, size=SIZE).event_shape == (3, 16, 24)
    with pytest.raises(ValueError, match="say teacher=diffusers teacher.path=DIR"):
        Latents(str(room / "latents"), None)
    with pytest.raises(ValueError, match=r"holds no facts.json: give a folder that `python -m distillkit encode`"):
        latents(room, "images")
    facts = facts_of(room / "latents")
    for change, said in (
        ({"format": 2}, "of another version"),
        ({"counts": {**facts["counts"], "train": -3}}, "the number of train must be"),
        ({"size": "3"}, "size must be"),
        ({"classes": {"../x": 3}}, "is damaged"),
        ({"classes": None}, "is damaged"),
    ):
        (tmp_path / "facts.json").write_text(json.dumps({**facts, **change}))
        with pytest.raises(ValueError, match=said):
            latents(room, tmp_path)
    for shards in (None, {"train": []}):
        (tmp_path / "facts.json").write_text(json.dumps({**facts, "shards": shards}))
        with pytest.raises(Failure, match="facts.json is damaged: remove the folder"):
            writing(room, tmp_path)
    shutil.copytree(room / "latents", tmp_path / "damaged")
    shard = tmp_path / "damaged" / "train-00000.safetensors"
    save_tensors(shard, read_tensors(shard) | {"prompt": torch.tensor([0, 4, 1])})  # 4 would be the negative prompt
    with pytest.raises(ValueError, match="they have 4 classes of 'prompt', but hold class 4"):
        latents(room, tmp_path / "damaged")
    shard = tmp_path / "train-00000.safetensors"
    found = read_tensors(room / "latents" / shard.name)
    save_tensors(shard, {name: value[:2] for name, value in found.items()})
    with pytest.raises(ValueError, match="is damaged: it should hold 3 latents: run the command encode again"):
        Shards(tmp_path, "train", facts)


def test_the_autoencoder_is_not_read_in_training(room, monkeypatch):
    def fail(codec):
        raise AssertionError("the autoencoder was read")

    broken = cached_property(fail)
    broken.__set_name__(PipelineCodec, "vae")
    monkeypatch.setattr(PipelineCodec, "vae", broken)
    words = ["domain=image", "method=lcm", "teacher=diffusers", f"teacher.path={room / 'sd'}", "teacher.steps=4"]
    words += [
        "data=latents",
        f"data.path={room / 'latents'}",
        "data.batch_size=2",
        "teacher.height=16",
        "teacher.width=24",
    ]
    own = build(*words)
    own.model.require(own.data)
    own.data.setup()
    own.model.check(own.data)
    run = trainer(max_steps=2)
    run.fit(own.model, own.data)
    assert run.global_step == 2 and not own.model.bad_steps.any()
    assert own.model.teacher.classes == own.data.classes and own.model.teacher.event_shape == (4, 8, 12)
    metrics = own.data.evaluator()
    real = own.data.real(2)
    assert "nearest_train" not in metrics.better and "frechet" in metrics(
        real["data"].flip(-1), {"prompt": real["prompt"]}
    )
    assert metrics.floor(2) == {}
    with pytest.raises(AssertionError, match="the autoencoder was read"):  # so that the test can fail
        VAE(str(room / "sd")).encode({"data": torch.zeros(1, 3, 8, 8)})


def test_the_command(room, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", runs.OUT):
        monkeypatch.delenv(name, raising=False)
    teacher = ["teacher=diffusers", f"teacher.path={room / 'sd'}", "teacher.height=16", "teacher.width=24"]
    words = ["encode", "domain=image", *teacher, "data=captioned", f"data.path={room / 'images'}"]
    assert front.main([*words, "--out", "made", "--shard", "3"]) == 0
    assert "12 samples in made, 12 of them encoded now: data=latents data.path=made" in capsys.readouterr().out
    assert facts_of(tmp_path / "made")["shards"] == facts_of(room / "latents")["shards"]
    assert front.main([*words, "--out", "made", "--shard", "3", "data.workers=2"]) == 0  # words may follow flags
    assert "0 of them encoded now" in capsys.readouterr().out
    for argv, code, said in (
        (
            [*words, "--out", "made"],
            1,
            "holds other latents, or the data have changed (size): give another folder with --out",
        ),
        (words, 2, "--out"),
        (["encode", "domain=image", "data=digits", "--out", "x"], 2, "say teacher=diffusers teacher.path=DIR"),
        ([*words, "data.flop=1", "--out", "x"], 2, "flop"),
        ([*words[:-2], "data=latents", "data.path=made", "--out", "x"], 2, "Latents has no samples to encode"),
        ([*words[:-2], "data=prompts", f"data.path={room / 'images'}", "--out", "x"], 2, "no samples to encode"),
        ([*words[:-1], "data.path=nowhere", "--out", "x"], 2, "is not a folder"),
    ):
        assert front.main(argv) == code
        complaint = capsys.readouterr().err
        assert said in complaint and complaint.startswith("error: ")
    assert not (tmp_path / "x").exists()
