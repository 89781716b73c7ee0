"""CLAP of a user's folder: embeddings and scores are those of the package transformers."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import tiny_audio
import transformers

from distillkit.cli import front
from distillkit.evaluation import metrics
from distillkit.spec import Outside, check
from domains.music.clap import Clap, log_mel
from domains.music.data import Tones
from domains.music.evaluation import MusicEvaluator
from domains.music.folder import AudioFolder
from domains.music.prompts import PromptEvaluator
from domains.music.resample import resample
from tests.battery.conftest import build

TEXTS = ["a piano", "rain on a roof", "two dogs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_audio.clap_folder(tmp_path_factory.mktemp("clap") / "tiny")


def sounds(num, length=8192, channels=1):
    time = torch.arange(length) / 8000
    hertz = 200 * 1.3 ** torch.arange(num)[:, None, None]
    return (0.3 * torch.sin(6.2832 * hertz * time)).expand(-1, channels, -1)


def test_embeddings_and_score_are_those_of_the_package_transformers(folder):
    clap, x, prompt = Clap(str(folder), TEXTS), sounds(3), torch.tensor([2, 0, 1])
    model = transformers.ClapModel.from_pretrained(folder).eval()
    processor = transformers.ClapProcessor.from_pretrained(folder)
    inputs = processor(
        text=[TEXTS[i] for i in prompt], audio=list(resample(x[:, 0], 8000, 48000).numpy()),
        sampling_rate=48000, return_tensors="pt", padding=True,
    )  # fmt: skip
    inputs["is_longer"] = torch.zeros(3, 1, dtype=torch.bool)
    with torch.no_grad():
        out = model(**inputs)
    heard = clap.features(x, 8000)
    assert (heard - out.audio_embeds).abs().max() < 1e-5 and heard.std(0).max() > 1e-3
    cosine = (out.audio_embeds * out.text_embeds).sum(1)
    assert clap.score(heard, prompt) == pytest.approx(100 * float(cosine.clamp_min(0).mean()), abs=1e-3)
    assert clap.score(-heard, prompt) == pytest.approx(100 * float((-cosine).clamp_min(0).mean()), abs=1e-3)


@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_log_mels_are_those_of_the_package_transformers(truncation, padding):
    """Of noise, a loud low sine, clicks and silence, of all lengths up to what is heard."""
    hears = transformers.ClapFeatureExtractor(
        feature_size=20, sampling_rate=8_000, hop_length=100, max_length_s=1, fft_window_size=256, frequency_min=50,
        frequency_max=3_900, truncation=truncation, padding=padding,
    )  # fmt: skip
    noise = torch.randn(8_000, generator=torch.Generator().manual_seed(0))
    kinds = [0.1 * noise, torch.sin(torch.arange(8_000) * 0.1), (torch.arange(8_000) % 997 == 3).float(), 0 * noise]
    for length in (8_000, 7_999, 4_000, 3_999, 2_100, 200):
        mono = torch.stack(kinds)[:, :length]
        inputs = hears(list(mono.numpy()), sampling_rate=8_000, return_tensors="pt")["input_features"]
        ours = log_mel(mono.double(), hears)
        assert ours.shape == inputs.shape == (4, 4 if truncation == "fusion" else 1, 81, 20)
        assert (ours - inputs).abs().max() < 1e-4, length  # dB; float32, of powers rounded to complex64
    assert (ours[3] == -100).all()


def test_log_mels_have_gradients():
    hears = transformers.ClapFeatureExtractor(
        feature_size=5, sampling_rate=64, hop_length=8, max_length_s=1, fft_window_size=16, frequency_max=32,
        truncation="rand_trunc",
    )  # fmt: skip
    for length in (64, 27):
        mono = torch.randn(2, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: log_mel(x, hears), mono)


@pytest.mark.parametrize("length", [8_000, 32_000])
def test_the_gradient_of_an_embedding_is_its_slope(length, folder):
    """At another rate, of two channels, of one part or two; measured within 4e-4.

    There is noise and no silence: near the floor logarithms are steep, and slopes those of 1e-7.
    """
    clap = Clap(str(folder), TEXTS)
    x = 0.1 * torch.randn(2, 2, length, generator=torch.Generator().manual_seed(0))
    target = clap.embedded(torch.tensor([1, 2]))
    y = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad((clap.heard(y, 8_000) * target).sum(), y)
    assert torch.equal(grad[:, 0], grad[:, 1])
    for row in range(2):
        step = torch.zeros_like(x)
        step[row] = grad[row] / grad[row].norm()
        up, down = (float((clap.heard(x + side * 0.02 * step, 8_000).double() * target).sum()) for side in (1, -1))
        assert (up - down) / 0.04 == pytest.approx(float(grad[row].norm()), rel=2e-3)
    beyond = (20 * x).requires_grad_()  # what is cut has none
    (grad,) = torch.autograd.grad(clap.heard(beyond, 8_000)[:, 0].sum(), beyond)
    assert ((grad != 0) == (beyond.abs() <= 1)).float().mean() > 0.99


def test_embeddings_do_not_depend_on_company_or_chance(folder):
    clap, x = Clap(str(folder)), sounds(17, 2048)
    np.random.seed(0)
    together = clap.features(x, 8000)
    assert torch.equal(together, clap.features(x, 8000))
    assert (together[16:] - clap.features(x[16:], 8000)).abs().max() < 1e-6
    stereo = torch.cat([x[:1] * 1.5, x[:1] * 0.5], 1)
    assert (clap.features(stereo, 8000) - together[:1]).abs().max() < 1e-5


def test_a_long_sound_is_the_mean_of_its_even_parts(folder):
    clap, x = Clap(str(folder)), sounds(1, 48000 * 3)
    x = torch.cat([x[..., :72000] * 0.1, x[..., 72000:] * torch.linspace(-1, 1, 72000)], -1)
    parts = [clap.features(part, 48000) for part in x.split(72000, -1)]
    mean = torch.nn.functional.normalize(sum(parts))
    assert (clap.features(x, 48000) - mean).abs().max() < 1e-5
    assert (parts[0] - parts[1]).abs().max() > 1e-3


def test_evaluators_have_the_users_clap(folder):
    data = Tones(train=8, val=12, test=12, clap=str(folder))
    data.setup()
    batch = data.test[torch.arange(12)]
    evaluator = MusicEvaluator(data.train, [data.val, data.test], {}, data.rate, clap=Clap(str(folder)))
    found, clap = evaluator.thorough(batch["data"], batch), Clap(str(folder))
    ours, theirs = (clap.features(part[torch.arange(12)]["data"], 8000) for part in (data.test, data.val))
    assert found == {"clap_frechet": pytest.approx(metrics.frechet_distance(ours, theirs))}
    assert evaluator.floor(12)["clap_frechet"] >= 0 and evaluator.better["clap_frechet"] == "lower"
    assert (
        evaluator.describe()["clap"] == {"name": "tiny", "sha256": clap.facts["sha256"]}
        and len(clap.facts["sha256"]) == 64
    )
    assert MusicEvaluator(data.train, [data.val], {}, data.rate).thorough(batch["data"], batch) == {}
    assert data.evaluator().clap.root == folder


def test_the_captions_of_a_folder_are_scored(folder, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    x = sounds(6, 2048)
    for i in range(6):
        soundfile.write(tmp_path / f"{i}.wav", x[i, 0].numpy(), 8000, subtype="FLOAT")
    lines = [f"{i}.wav,{TEXTS[i % 2]}" for i in range(6)]
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *lines]))
    data = AudioFolder(str(tmp_path), rate=8000, frames=32, window=256, val=0.3, clap=str(folder))
    data.setup()
    evaluator, batch, clap = data.evaluator("val"), data.val[torch.arange(2)], Clap(str(folder), TEXTS[:2])
    assert evaluator.better["clap_score"] == "higher" and evaluator.clap.prompts == data.prompts == TEXTS[:2]
    found = evaluator.thorough(batch["data"], batch)
    assert found["clap_score"] == pytest.approx(clap.score(clap.features(batch["data"], 8000), batch["label"]))
    evaluator.clap.score = lambda heard, number: number.tolist()  # of this model many cosines are below 0
    assert evaluator.thorough(batch["data"], batch)["clap_score"] == batch["label"].tolist()
    assert set(evaluator.thorough(batch["data"], {})) == {"clap_frechet"}


def test_prompts_are_measured_by_the_users_clap(folder):
    x, y, prompt = sounds(6), sounds(6).flip(0) * 0.1, {"prompt": torch.arange(6) % 3}
    evaluator, clap = PromptEvaluator((1, 8192), 8000, Clap(str(folder), TEXTS)), Clap(str(folder), TEXTS)
    assert evaluator.paired(x, x, prompt)["clap_frechet"] == pytest.approx(0, abs=1e-6)
    heard = [clap.features(each, 8000) for each in (x, y)]
    assert evaluator.paired(x, y, prompt)["clap_frechet"] == pytest.approx(metrics.frechet_distance(*heard))
    assert evaluator.thorough(x, prompt) == {"clap_score": pytest.approx(clap.score(heard[0], prompt["prompt"]))}
    assert {"clap_frechet": "lower", "clap_score": "higher"}.items() <= evaluator.better.items()
    plain = PromptEvaluator((1, 8192), 8000)
    assert plain.thorough(x, prompt) == {} and "clap" not in plain.describe() and evaluator.seconds == 1.024


def test_what_is_no_clap_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="give the folder of one"):
        Clap(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="does not load as a ClapModel"):
        Clap(str(tmp_path)).features(sounds(1), 8000)
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "x.Y"}}')
    with pytest.raises(ValueError, match="auto_map"):
        Clap(str(tmp_path)).features(sounds(1), 8000)


def test_a_folder_of_a_stranger_asks_for_the_clap_model(folder):
    for kind in ("domains.music.prompts.Prompts", "domains.music.data.Tones"):
        with pytest.raises(Outside, match=str(folder)):
            check({"class_path": kind, "init_args": {"clap": str(folder)}})


@pytest.mark.parametrize("more", [["data=tones"], ["data=audio_folder", "data.path=sounds"]])
def test_the_command_line_says_the_folder(more, folder):
    data = build("domain=music", "method=pretrain", *more, f"data.clap={folder}").data
    assert data.clap == str(folder)


@pytest.mark.slow
def test_a_run_is_measured_by_clap(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["data.train=16", "data.val=24", "data.test=24", "data.batch_size=2", "trainer.max_steps=1"]
    asked = ["fit", "domain=music", "method=pretrain", f"data.clap={folder}", *small]
    assert front.main([*asked, "vars.callbacks.finish.num_samples=8", "--out", "run"]) == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    heard = {row["name"]: row["metrics"]["clap_frechet"] for row in found["rows"]}
    assert found["better"]["clap_frechet"] == "lower" and heard["real data"] < min(
        value for name, value in heard.items() if name != "real data"
    )
    assert found["protocol"]["evaluator"]["clap"]["name"] == "tiny"
