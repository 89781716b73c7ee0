"""Latents of sounds, encoded once: the command, 16 bits beside them, and training on them."""

import json
import wave
from functools import cached_property

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("av")
pytest.importorskip("soundfile")

import tiny_audio
from tiny_audio import RATE, TEXTS

from distillkit import runs
from distillkit.cli import front
from distillkit.files import read_tensors, save_tensors
from distillkit.pipelines import latents as module
from distillkit.pipelines.codec import PipelineCodec
from distillkit.pipelines.latents import Writing, as_data, as_levels
from domains.music.captioned import Captioned
from domains.music.data import Tones
from domains.music.latents import Latents
from domains.music.pipelines.stable_audio import Oobleck
from domains.music.pipelines.stable_audio_3 import Same

SIZE = {"seconds": 0.006}  # 96 samples, which 12 of 16 latents stand for


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Pipelines, sounds with captions, and their latents in shards of seven."""
    folder = tmp_path_factory.mktemp("encode")
    tiny_audio.stable_audio(folder / "stable_audio")
    tiny_audio.stable_audio(folder / "other", seed=1)
    tiny_audio.stable_audio_3(folder / "three")
    tiny_audio.audioldm2(folder / "mel")
    tiny_audio.captioned(folder / "sounds")
    writing(folder, folder / "latents").run(torch.device("cpu"), 4)
    return folder


def sounds(room, pipeline="stable_audio", **settings):
    data = Captioned(str(room / "sounds"), str(room / pipeline), SIZE, **settings)
    data.setup()
    return data


def writing(room, out, **settings):
    return Writing(out, sounds(room, **settings), Oobleck(str(room / "stable_audio"), 0.006), 7)


def latents(room, out="latents", pipeline="stable_audio", **settings):
    data = Latents(str(room / out), str(room / pipeline), **settings)
    data.setup()
    return data


def facts_of(folder):
    return json.loads((folder / "facts.json").read_text())


def test_sixteen_bits_are_kept_exactly():
    every = torch.arange(-32768, 32768)
    assert torch.equal(as_levels(every / 32768, torch.int16), every.to(torch.int16))
    assert torch.equal(as_data(every.to(torch.int16)), every / 32768)
    x = 2 * torch.rand(10_000, generator=torch.Generator().manual_seed(0)) - 1
    assert (as_data(as_levels(x, torch.int16)) - x).abs().max() <= 2**-16
    assert as_levels(torch.tensor([-1.5, 1.0, 2.0]), torch.int16).tolist() == [-32768, 32767, 32767]


def test_latents_are_what_the_codec_makes_of_the_sounds(room):
    data, ours, codec = sounds(room), latents(room, size=SIZE), Oobleck(str(room / "stable_audio"), 0.006)
    assert ours.prompts == data.prompts == TEXTS and ours.classes == {"prompt": 3}
    assert ours.event_shape == data.event_shape == (2, 96) and ours.rate == RATE
    for name in ("train", "val", "test"):
        rows = torch.tensor([17, 0, 8, 29, 0]) if name == "train" else torch.arange(3)  # of several shards
        real, kept = getattr(data, name)[rows], getattr(ours, name)[rows]
        assert len(getattr(ours, name)) == len(getattr(data, name)) and torch.equal(kept["prompt"], real["prompt"])
        assert torch.equal(kept["latent"], codec.encode(real)) and kept["latent"].shape[1:] == (4, 16)
        assert torch.equal(codec.encode(kept), kept["latent"]) and kept["latent"].std() > 0.01
        assert ("data" in kept) == (name != "train")
    assert torch.equal(kept["data"], real["data"]) and kept["data"].std() > 0.01  # of 16 bits before and after
    shard = read_tensors(room / "latents" / "val-00000.safetensors")
    assert shard["data"].dtype == torch.int16 and int(shard["data"][0, 0, 0]) % 1000 == 0  # of the file itself
    asked, shown = ours.conditions(4), ours.real(4)
    assert torch.equal(asked["prompt"], shown["prompt"]) and torch.equal(shown["data"], data.real(4)["data"])
    assert ours.left_out() == {} and ours.pictured == 4


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
        writing(room, tmp_path).run(torch.device("cpu"), 4)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="is not finished: give the command encode again"):
        latents(room, tmp_path)
    made = writing(room, tmp_path, clap="elsewhere", workers=1)  # which change no sample
    assert made.run(torch.device("cpu"), 5) == 36 - 14 and saved == [
        "train-00000.safetensors",
        "train-00001.safetensors",
    ]
    assert facts_of(tmp_path) == facts_of(room / "latents")  # hashes of all shards among them


def test_what_is_refused(room, tmp_path):
    with pytest.raises(
        ValueError, match="were made by another autoencoder than that of .*other: encode the data again"
    ):
        latents(room, pipeline="other")
    for pipeline in ("three", "mel"):
        with pytest.raises(ValueError, match="were made by another autoencoder"):
            latents(room, pipeline=pipeline)
    with pytest.raises(
        ValueError, match=r"of shape \[2, 96\], the teacher makes \[2, 128\]: say the size of the teacher"
    ):
        latents(room, size={"seconds": None})
    with pytest.raises(ValueError, match="say teacher=diffusers teacher.path=DIR"):
        Latents(str(room / "latents"), None)
    tones = Tones(4, 4, 4)
    tones.setup()
    for data, codec, said in (
        (tones, Oobleck(str(room / "stable_audio"), 0.006), r"shape \[1, 8192\] at 8000 Hz, .* \[2, 96\] at 16000 Hz"),
        (sounds(room), Oobleck(str(room / "stable_audio"), 0.005), r"shape \[2, 96\] at 16000 Hz, .* \[2, 80\] at"),
        (sounds(room), Same(str(room / "three"), 0.002), r"\[2, 32\] at 16000 Hz: say data=captioned"),
    ):
        with pytest.raises(ValueError, match=said):
            Writing(tmp_path / "odd", data, codec)
    data = sounds(room)
    data.rate = 8000
    with pytest.raises(ValueError, match=r"\[2, 96\] at 8000 Hz, .* \[2, 96\] at 16000 Hz"):
        Writing(tmp_path / "odd", data, Oobleck(str(room / "stable_audio"), 0.006))
    assert not (tmp_path / "odd").exists()


def test_from_the_command_line(room, tmp_path, monkeypatch, capsys):
    """Encode, then train and sample; training itself does not encode."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", runs.OUT):
        monkeypatch.delenv(name, raising=False)
    teacher = ["domain=music", "teacher=diffusers", f"teacher.path={room / 'stable_audio'}"]
    data = ["data=captioned", f"data.path={room / 'sounds'}", "data.val=0.3", "data.test=0.3"]
    assert front.main(["encode", *teacher, "teacher.seconds=0.006", *data, "--out", "made", "--shard", "8"]) == 0
    assert "36 samples in made, 36 of them encoded now: data=latents data.path=made" in capsys.readouterr().out
    assert front.main(["encode", *teacher, "teacher.seconds=0.006", *data, "--out", "made", "--shard", "8"]) == 0
    assert "0 of them encoded now" in capsys.readouterr().out
    for argv, said in (
        ([*teacher[:2], f"teacher.path={room / 'mel'}", *data], "makes samples and reads none"),
        ([*teacher, "data=tones"], "say data=captioned"),
        ([*teacher, "teacher.seconds=1", *data], "set teacher.seconds"),
    ):
        assert front.main(["encode", *argv, "--out", "x"]) == 2
        complaint = capsys.readouterr().err
        assert said in complaint and complaint.startswith("error: ")
    assert not (tmp_path / "x").exists()

    def fail(codec, batch):
        assert "latent" in batch, "sounds were encoded"
        return encode(codec, batch)

    encode = PipelineCodec.encode
    monkeypatch.setattr(PipelineCodec, "encode", fail)
    asked = [
        "method=lcm",
        "data=latents",
        "data.path=made",
        "data.batch_size=2",
        "teacher.steps=2",
        "trainer.max_steps=2",
    ]
    assert front.main(["fit", *teacher, *asked, "--out", "run"]) == 2
    assert "say the size of the teacher as for the command encode" in capsys.readouterr().err
    asked += ["teacher.seconds=0.006", "vars.callbacks.finish.num_samples=4", "vars.callbacks.watch.unlike=true"]
    assert front.main(["fit", *teacher, *asked, "--out", "run"]) == 0
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert [row["name"] for row in result["rows"]][-1] == "real data" and result["headline"] == "frechet"
    assert "num_train" not in result["protocol"]["evaluator"] and "nearest_train" not in result["better"]
    pipeline = str(room / "stable_audio")
    assert (
        front.main(["sample", "run", "--pipeline", pipeline, "--prompt", "a dog runs", "-n", "2", "--out", "sounds"])
        == 0
    )
    with wave.open(str(tmp_path / "sounds" / "sound_1.wav")) as file:
        assert file.getparams()[:4] == (2, 2, RATE, 96)


def test_the_autoencoder_is_read_for_sounds_alone(room, monkeypatch):
    """The data of latents, and what they are compared with, come from the folder."""

    def broken(codec):
        raise AssertionError("the autoencoder was read")

    lazy = cached_property(broken)
    lazy.__set_name__(PipelineCodec, "vae")
    monkeypatch.setattr(PipelineCodec, "vae", lazy)
    data = latents(room)
    metrics, real = data.evaluator(), data.real(3)
    assert "frechet" in metrics(real["data"].flip(-1), {"prompt": real["prompt"]}) and metrics.floor(3)
    assert data.codec.encode(data.train[torch.arange(2)]).shape == (2, 4, 16)
    with pytest.raises(AssertionError, match="the autoencoder was read"):  # so that the test can fail
        data.codec.encode({"data": real["data"]})
