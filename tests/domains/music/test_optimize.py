"""`optimize` of music from the command line: texts, weights, vocoders, files that are damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_audio

from distillkit.cli import front
from distillkit.codec import Codec
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.spec import to_spec
from distillkit.students.few_step import FewStepStudent
from domains.music.codec import Mel
from domains.music.data import Tones
from domains.music.media import save_wav
from domains.music.network import MelUNet
from domains.music.vocoder import HifiGan
from domains.music.wave_unet import WaveUNet
from tests.battery.conftest import build

TEXT = "text=a plucked string"
ASK = ["-n", "2", "--steps", "4", "--seed", "1"]
SHAPE = (1, 8_192)  # of data=tones


def saved(folder, network, shape, data, codec=None, **more):
    """A folder of a student of two steps with random weights."""
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    denoiser = Denoiser(network, VarianceExploding(), "edm", 0.5)
    student = FewStepStudent(denoiser, [2.0, 0.5], shape, codec=codec or Codec(), **more)
    return student.save(folder, domain="music", run={"data": to_spec(data)})


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    return tiny_audio.clap_folder(tmp_path_factory.mktemp("clap") / "tiny")


@pytest.fixture(scope="module")
def waves(tmp_path_factory):
    """A student of waveforms, whose data know no CLAP model."""
    folder = tmp_path_factory.mktemp("waves") / "student"
    return saved(folder, WaveUNet(SHAPE, 8, (1, 2), attention=False), SHAPE, Tones(8, 8, 8))


def optimized(student, out, *words):
    """The content of control.json."""
    assert front.main(["optimize", *map(str, [student, *words, "--out", out, "--device", "cpu"])]) == 0
    return json.loads((out / "control.json").read_text())


def complaint(capsys, *words):
    code = front.main(["optimize", *map(str, words)])
    err = capsys.readouterr().err.splitlines()
    assert code == 2 and len(err) == 1 and err[0].startswith("error: "), (code, err)
    return err[0]


def test_waveforms_move_towards_a_text(waves, clap, tmp_path):
    report = optimized(waves, tmp_path / "out", "--control", TEXT, *ASK, "--data", f"clap={clap}")
    assert report["controls"][TEXT] == {"name": "text", "unit": "1 - cosine", "weight": 1.0}
    for row in report["samples"]:
        told = row["errors"][TEXT]
        assert told["decoded"] == told["heard"] == pytest.approx(min(row["loss"]), abs=1e-5)
        assert told["decoded"] < told["before"] - 1e-3
    assert {"samples.npz", "control.json", "sound_0.wav"} <= {file.name for file in (tmp_path / "out").iterdir()}


def test_a_pipelines_student_is_asked_for_a_text(clap, tmp_path):
    pipeline = tmp_path / "pipeline"
    tiny_audio.stable_audio(pipeline)
    (tmp_path / "prompts.txt").write_text("a cat runs\na dog sleeps\n")
    words = ["domain=music", "teacher=diffusers", "data=prompts", "method=dmd", f"data.path={tmp_path / 'prompts.txt'}"]
    words += [f"teacher.path={pipeline}", "teacher.seconds=0.006", "data.batch_size=2", f"data.clap={clap}"]
    own = build(*words, "model.num_steps=2")
    own.model.export(tmp_path / "student", domain="music", run={"data": to_spec(own.data)})
    trusted = [word for path in (pipeline, tmp_path / "prompts.txt", clap) for word in ("--trust", path)]
    report = optimized(tmp_path / "student", tmp_path / "out", "--control", TEXT, *ASK, "--lr", "0.05", *trusted)
    for row in report["samples"]:
        told = row["errors"][TEXT]
        assert told["decoded"] == pytest.approx(told["heard"], abs=1e-5) and told["decoded"] < told["before"]


def test_losses_count_by_their_weights(waves, clap, tmp_path):
    asked = ["0.25*intensity=-30", f"300*{TEXT}", "melody=A4 C5"]
    words = [word for text in asked for word in ("--control", text)]
    report = optimized(waves, tmp_path / "out", *words, "-n", "1", "--steps", "0", "--data", f"clap={clap}")
    assert [each["weight"] for each in report["controls"].values()] == [0.25, 300.0, 1.0]
    alone = optimized(waves, tmp_path / "melody", "--control", "melody=A4 C5", "-n", "1", "--steps", "0")
    errors = report["mean"]
    expected = 0.25 * errors[asked[0]]["decoded"] + 300 * errors[asked[1]]["decoded"] + alone["samples"][0]["loss"][0]
    assert report["samples"][0]["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_a_vocoder_that_goes_on_from_a_beginning(tmp_path):
    """What is found is measured on the sound made of it, which begins with the given one."""
    codec = Mel(size=64, num=8, hop=16, vocoder=HifiGan(str(tiny_audio.vocoder_folder(tmp_path / "vocoder"))))
    data, shape = Tones(8, 8, 8, given=1_024), (1, 8, 512)
    network = MelUNet(shape, 8, (1, 2), attention=False, classes=data.classes, given=64, codec=codec)
    student = saved(tmp_path / "student", network, shape, data, codec, classes=data.classes, context=["first"])
    words = ["--control", "intensity=-30", *ASK, "--trust", tmp_path / "vocoder"]
    report = optimized(student, tmp_path / "out", *words)
    data.setup()
    samples, told = np.load(tmp_path / "out" / "samples.npz"), report["mean"]["intensity=-30"]
    assert np.array_equal(samples["samples"][..., :1_024], samples["first"])
    assert told["decoded"] < told["before"] and told["heard"] != told["decoded"]


def test_a_clap_model_outside_of_a_strangers_folder_is_asked_for(clap, waves, tmp_path, capsys):
    """And so is a vocoder; the one that is typed needs no further yes."""
    data = Tones(8, 8, 8, clap=str(clap))
    student = saved(tmp_path / "student", WaveUNet(SHAPE, 8, (1, 2), attention=False), SHAPE, data)
    words = [student, "--control", TEXT, "-n", "1", "--steps", "0"]
    assert f"--trust {clap}" in complaint(capsys, *words, "--out", tmp_path / "x")
    report = optimized(*words[:1], tmp_path / "said", *words[1:], "--trust", clap)
    other = tiny_audio.clap_folder(tmp_path / "other")
    placed = optimized(*words[:1], tmp_path / "placed", *words[1:], "--data", f"clap={other}")
    assert placed["mean"] == report["mean"]
    codec = Mel(size=64, num=8, hop=16, vocoder=HifiGan(str(tiny_audio.vocoder_folder(tmp_path / "vocoder"))))
    shape = (1, 8, 512)
    spoken = saved(tmp_path / "spoken", MelUNet(shape, 8, (1, 2), attention=False), shape, Tones(8, 8, 8), codec)
    said = complaint(capsys, spoken, "--control", "loop", "--out", tmp_path / "x")
    assert f"--trust {tmp_path / 'vocoder'}" in said and not (tmp_path / "x").exists()


def test_texts_and_places_that_cannot_be_had_are_one_sentence(waves, clap, tmp_path, capsys):
    out = ["--out", tmp_path / "x"]
    assert "say --data clap=DIR" in complaint(capsys, waves, "--control", TEXT, *out)
    ask = [waves, *out, "--control"]
    assert "say it, such as text=" in complaint(capsys, *ask, "text=", "--data", f"clap={clap}")
    said = complaint(capsys, *ask, TEXT, "--data", f"clap={tmp_path / 'none'}")
    assert f"{tmp_path / 'none'} holds no CLAP model: give the folder of one" in said
    assert "must be NAME=PATH, such as path=DIR, got 'clap'" in complaint(capsys, *ask, "loop", "--data", "clap")
    assert "must be NAME=PATH" in complaint(capsys, *ask, "loop", "--data", "seed=3")
    assert "clap is empty" in complaint(capsys, *ask, "loop", "--data", "clap=")
    said = complaint(capsys, *ask, "loop", "--data", f"path={clap}")
    assert "--data path is not what Tones reads: there are clap" in said
    assert not (tmp_path / "x").exists()


def test_damaged_files_are_one_sentence(waves, tmp_path, capsys):
    ask = [waves, "--out", tmp_path / "x", "--control"]
    whole = save_wav(torch.zeros(1, 8_192), tmp_path / "quiet.wav", 8_000)
    (tmp_path / "cut.wav").write_bytes(whole.read_bytes()[:30])
    (tmp_path / "empty.wav").touch()
    (tmp_path / "bad.mid").write_bytes(b"MThd\x00\x00")
    (tmp_path / "bad.csv").write_text("0,-20\n0.5,x\n")
    (tmp_path / "nan.csv").write_text("0,-20\n0.5,nan\n")
    for text, words in (
        ("structure=cut.wav", "cut.wav"), ("inpaint=empty.wav@0.2-0.4", "is empty"), ("melody=quiet.wav", "silent"),
        ("melody=bad.mid", "does not read as a MIDI file"), ("intensity=bad.csv", "'x' is not a finite number"),
        ("intensity=nan.csv", "'nan' is not a finite number"), ("structure=none.wav", "there is no file"),
    ):  # fmt: skip
        name, _, file = text.partition("=")
        assert words in complaint(capsys, *ask, f"{name}={tmp_path / file}"), text
    assert not (tmp_path / "x").exists()
