"""The classifier in whose features sounds are compared: shipped, fitted, saved and loaded."""

import hashlib
import json
import re

import pytest
import torch

from distillkit.evaluation.extractor import load_extractor, packed
from domains.music import features, ship
from domains.music.clip import CLASSES, RATE
from domains.music.data import Tones


@pytest.fixture(scope="module")
def net():
    return load_extractor(features.Classifier, features.SHIPPED)


@pytest.fixture(scope="module")
def test():
    data = Tones(train=8, val=1, test=96, seed=1)
    data.setup()
    return data.test


def test_the_shipped_classifier_knows_sounds_that_it_never_saw(net, test):
    assert min(features.accuracy(net, test).values()) > 0.97
    assert net.config == {"channels": 1, "classes": CLASSES, "rate": RATE, "width": 16}
    assert features.SHIPPED.stat().st_size < 300_000
    card = features.SHIPPED.with_name("README.md").read_text()
    assert hashlib.sha256(features.SHIPPED.read_bytes()).hexdigest() in card


def test_it_forgives_the_codec_and_noise_that_nobody_hears(net, test):
    rng = torch.Generator().manual_seed(0)
    rebuilt = features.through_codec(test, RATE, rng)
    right = {
        name: (seen.argmax(1) == rebuilt[name]).double().mean()
        for name, seen in net.logits(net(rebuilt["data"])).items()
    }
    assert min(right.values()) > 0.95
    batch = test[torch.arange(96)]
    moved = (net(features.varied(batch["data"], rng)) - net(batch["data"])).norm(dim=1)
    apart = torch.pdist(net(batch["data"]))
    assert moved.mean() < 0.25 * apart.mean()


def test_it_sees_sounds_of_any_length_and_several_channels():
    net = features.Classifier(2, {"label": 3}, 44_100).eval()
    for length in (400, 44_100, 44_100 * 5):
        found = net(torch.zeros(2, 2, length))
        assert found.shape == (2, 64) and found.isfinite().all()
    assert net.logits(found)["label"].shape == (2, 3)
    assert features.window(44_100) == 4096 and features.window(RATE) == 1024


def test_a_spectrogram_has_a_tone_in_its_band():
    x = torch.sin(2 * torch.pi * 1000 * torch.arange(8192) / RATE)[None, None]
    mels = features.spectrogram(x, RATE)
    assert mels.shape == (1, 1, 64, 33)
    edges = 700 * (10 ** (torch.linspace(0, 2595 * torch.tensor(1 + 4000 / 700).log10().item(), 66) / 2595) - 1)
    band = (edges[1:-1] - 1000).abs().argmin()
    assert (mels[0, 0, :, 4:-4].argmax(0) == band).all()
    left, middle, right = edges[band : band + 3]
    f = 1000 + RATE / 1024 * torch.tensor([-1, 0, 1])  # where Hann's window leaves 1/2, 1 and 1/2 of a full-scale sine
    weights = torch.minimum((f - left) / (middle - left), (right - f) / (right - middle))
    expected = (weights @ torch.tensor([0.5, 1.0, 0.5])).log().item()
    assert mels[0, 0, band, 4:-4].tolist() == pytest.approx([expected] * 25, abs=1e-3)
    assert features.spectrogram(0 * x, RATE).unique().item() == pytest.approx(torch.tensor(1e-3).log().item())


def test_gain_and_noise_lie_in_their_ranges():
    x = torch.ones(400, 1, 2000) * 0.1
    varied = features.varied(x, torch.Generator().manual_seed(0))
    gain = 20 * (varied.mean((1, 2)) / 0.1).log10()
    noise = 20 * varied.std(2).log10()[:, 0]
    assert -6.1 < gain.min() < -5.5 and 5.5 < gain.max() < 6.1 and abs(gain.mean()) < 0.5
    assert -90.5 < noise.min() < -88 and -52 < noise.max() < -49.5


def test_one_fit_leaves_the_global_generator_and_is_repeatable():
    data = Tones(train=24, val=1, test=1)
    data.setup()
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        fitted = features.train_classifier(data.train, {"timbre": 4}, RATE, 2)
    assert torch.equal(before, torch.random.get_rng_state())
    again = features.train_classifier.__wrapped__(data.train, {"timbre": 4}, RATE, 2)
    assert packed(fitted) == packed(again) and not any(p.requires_grad for p in fitted.parameters())
    other = features.train_classifier.__wrapped__(data.train, {"timbre": 4}, RATE, 2, seed=1)
    assert packed(fitted) != packed(other)


def test_the_script_writes_weights_and_card(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ship, "Tones", lambda given=0: Tones(train=16, val=8, test=8, given=given))
    ship.main(["--out", str(tmp_path / "new"), "--steps", "1"])
    net = load_extractor(features.Classifier, tmp_path / "new" / "model.safetensors")
    card = (tmp_path / "new" / "README.md").read_text()
    assert json.loads(capsys.readouterr().out)["sha256"] in card and "--steps 1" in card
    assert re.search(r"timbre \d\.\d{3}, pitch \d\.\d{3}, rhythm \d\.\d{3} on the validation", card)
    assert net.config["classes"] == CLASSES
    prose = [line for line in card.splitlines() if "Accuracy" not in line and not line.startswith("    ")]
    assert max(map(len, prose)) <= 125
    with pytest.raises(ValueError, match="python -m domains.music.ship --out"):
        load_extractor(features.Classifier, tmp_path / "model.safetensors")
