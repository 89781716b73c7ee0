"""Metrics of music: the evaluator on real, rebuilt, wrong and degenerate sounds."""

import json
import math

import pytest
import torch

from distillkit.evaluation.metrics import Points
from distillkit.evaluation.samples import Diverged
from domains.music import evaluation, features
from domains.music.clip import shuffled
from domains.music.codec import Mel
from domains.music.data import Tones
from domains.music.evaluation import MusicEvaluator
from domains.music.measures import level

NUM = 96


@pytest.fixture(scope="module")
def data():
    made = Tones(train=100, val=384, test=384)  # every triple of classes once
    made.setup()
    return made


@pytest.fixture(scope="module")
def evaluator(data):
    return data.evaluator()


@pytest.fixture(scope="module")
def real(data, evaluator):
    """Test clips and their metrics."""
    batch = data.test[shuffled(384, NUM)]
    return batch, evaluator(batch["data"], batch)


@pytest.fixture(scope="module")
def codec():
    return Mel(sample_rate=8000, mean=-7.97, std=1.97)


@pytest.fixture(scope="module")
def rebuilt(real, evaluator, codec):
    """The same clips through the codec, and their metrics."""
    x = codec.decode(codec.encode(real[0]), {})
    return x, evaluator(x, real[0])


def test_the_shipped_classifier_is_used_and_told_of(evaluator):
    described = evaluator.describe()
    assert described["features"]["name"] == "tones classifier" and len(described["features"]["sha256"]) == 64
    assert min(described["features"]["held_out_accuracy"].values()) > 0.9
    assert json.loads(json.dumps(described)) == described
    assert {
        "sample_rate": 8000,
        "seconds": 1.024,
        "pitch_agreement": "50 cents",
        "onset_f": "50 ms",
    }.items() <= described.items()


def test_every_metric_has_a_direction_and_real_data_do_well(evaluator, real):
    floor = evaluator.floor(NUM)
    assert floor == real[1] and {*floor, "pair_spectral"} == set(evaluator.better)
    assert min(floor[f"{name}_agreement"] for name in ("timbre", "pitch", "rhythm")) > 0.97
    assert floor["pitch_error"] < 0.2 and floor["onset_f"] > 0.97 and floor["outside"] == 0
    assert floor["log_spectral"] < 1.5 and -33 < floor["loudness"] < -20
    assert all(math.isfinite(value) for value in floor.values())


def test_the_codec_costs_little_beside_a_bad_model(evaluator, real, rebuilt, codec):
    """A sound through Griffin and Lim is near; that of a blurred spectrogram is not."""
    batch, good = real
    through = rebuilt[1]
    assert through["frechet"] < 1.3 * good["frechet"] and through["coverage"] > 0.8 * good["coverage"]
    assert min(through[f"{name}_agreement"] for name in ("timbre", "pitch", "rhythm")) > 0.94
    assert through["pitch_error"] < 15 and through["onset_f"] > 0.95
    mels = codec.encode(batch)
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(mels, (1,) * 4, mode="replicate"), 3, 1)
    found = evaluator(codec.decode(blurred, {}), batch)
    assert found["frechet"] > 1.7 * through["frechet"] and found["onset_f"] < through["onset_f"]
    assert found["log_spectral"] > 1.5 * through["log_spectral"]


def test_wrong_notes_rhythms_and_timbres_are_heard(evaluator, real):
    batch, good = real
    wrong = {name: (batch[name] + 1) % num for name, num in evaluator.classes.items()}
    found = evaluator(batch["data"], wrong)
    assert max(found[f"{name}_agreement"] for name in ("timbre", "pitch", "rhythm")) < 0.05
    assert found["pitch_error"] == pytest.approx(100, abs=2) and found["onset_f"] < 0.8
    same = ("frechet", "coverage", "diversity", "log_spectral", "loudness")
    assert all(found[name] == good[name] for name in same)
    half = batch["pitch"].clone()
    half[: NUM // 3] = (half[: NUM // 3] + 12) % 24
    found = evaluator(batch["data"], batch | {"pitch": half})
    assert found["pitch_agreement"] == pytest.approx(2 / 3, abs=0.02) and found["pitch_error"] < 1  # a median


def test_other_laws_are_seen(evaluator, real, data):
    batch, good = real
    low = batch["pitch"] < 12
    found = evaluator(batch["data"][low].repeat(2, 1, 1)[:NUM], {})
    assert found["frechet"] > 1.5 * good["frechet"] and found["coverage"] < 0.8 * good["coverage"]
    assert "pitch_error" not in found and "onset_f" not in found and "timbre_agreement" not in found
    one = evaluator(batch["data"][:1].expand_as(batch["data"]), batch)
    assert one["diversity"] == pytest.approx(0, abs=1e-3) and one["coverage"] < 0.1
    assert one["frechet"] > 5 * good["frechet"]
    quiet = evaluator(batch["data"] / 10, batch)
    assert quiet["loudness"] == pytest.approx(good["loudness"] - 20, abs=1e-3)
    assert quiet["log_spectral"] > 3 and quiet["frechet"] > 2 * good["frechet"]
    train = data.train[torch.arange(NUM)]
    assert evaluator(train["data"], {})["nearest_train"] < 0.01 * good["nearest_train"]


def test_diversity_is_the_mean_distance_of_different_samples(evaluator, real):
    points = Points(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)))
    expected = torch.pdist(points.points_ND).mean().item()
    assert evaluation.spread_of(points) == pytest.approx(expected)
    assert evaluation.spread_of(Points(torch.zeros(1, 3))) == 0


def test_pairs_are_compared_one_by_one(evaluator, real, rebuilt):
    batch, x = real[0], real[0]["data"]
    assert evaluator.paired(x, x, batch) == {"pair_spectral": 0}
    assert evaluator.paired(x, rebuilt[0], batch)["pair_spectral"] < 4
    assert evaluator.paired(x, x.roll(1, 0), batch)["pair_spectral"] > 6
    loud = torch.randn(2, 1, 8192, generator=torch.Generator().manual_seed(0)) * 0.2
    assert evaluator.paired(loud, loud / 10, {})["pair_spectral"] == pytest.approx(20, abs=0.2)
    assert 0 < evaluator.paired(loud, loud * 0, {})["pair_spectral"] < 60  # silence has a floor


@pytest.mark.parametrize("kind", ["silence", "constant", "clipped noise"])
def test_degenerate_sounds_have_finite_metrics(evaluator, real, kind):
    noise = 3 * torch.randn(8, 1, 8192, generator=torch.Generator().manual_seed(0))
    x = {"silence": noise * 0, "constant": noise * 0 + 1, "clipped noise": noise}[kind]
    batch = {name: value[:8] for name, value in real[0].items()}
    found = evaluator(x, batch)
    assert all(math.isfinite(value) for value in found.values())
    assert found["frechet"] > 5 * real[1]["frechet"] and found["pitch_agreement"] < 0.3
    assert found["loudness"] == pytest.approx(float(level(x.clamp(-1, 1)).mean()))  # of what is heard
    if kind == "silence":
        assert found["onset_f"] == 0 and found["loudness"] == pytest.approx(-100)
    if kind == "clipped noise":
        assert found["outside"] == pytest.approx(0.714, abs=0.01)  # 2 Phi(-1.1 / 3)


def test_what_is_no_sample_is_refused(evaluator, real):
    x = real[0]["data"][:4].clone()
    x[:3, 0, 5] = torch.nan
    with pytest.raises(Diverged, match="3 of 4 samples hold NaN"):
        evaluator(x, {})
    with pytest.raises(ValueError, match="give samples in data space"):
        evaluator(torch.zeros(4, 1, 64, 32), {})


def test_without_classes_parts_of_the_spectrogram_are_compared(data, real):
    evaluator = MusicEvaluator(data.train, [data.val, data.test], {}, data.rate)
    floor, batch = evaluator.floor(NUM), real[0]
    assert {*floor, "pair_spectral"} == set(evaluator.better) and "pitch_agreement" not in floor
    assert evaluator(batch["data"] * 0, {})["frechet"] > 2 * floor["frechet"]
    assert evaluator.describe()["features"]["name"].startswith("averages")
    prompts = MusicEvaluator(data.train, [data.val], {"prompt": 7}, data.rate)
    assert prompts.classes == {} and prompts.describe()["features"] == evaluation.AVERAGES


def test_a_classifier_is_fitted_where_the_shipped_one_cannot_read(monkeypatch, data):
    monkeypatch.setattr(features, "STEPS", 2)
    evaluator = MusicEvaluator(data.train, [data.val, data.test], {"label": 4}, data.rate, pitches=None)
    evaluator.reference = evaluator.real = Renamed(data.val)
    evaluator.train = Renamed(data.train)
    facts = evaluator.describe()["features"]
    assert "2 steps" in facts["name"] and len(facts["sha256"]) == 64
    floor = evaluator.floor(16)
    assert 0 <= floor["class_agreement"] <= 1 and "pitch_error" not in floor
    assert {*floor, "pair_spectral"} == set(evaluator.better)


class Renamed:
    """Sounds whose timbre is their label."""

    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return min(len(self.clips), 32)

    def __getitem__(self, rows):
        batch = self.clips[rows]
        return {"data": batch["data"], "label": batch["timbre"]}


def test_pitches_of_other_data_are_their_midi_numbers(data):
    """Notes alone: there is no class that says what else sounds."""
    evaluator = MusicEvaluator(Notes(), [Notes()], {"pitch": 3}, 16_000, pitches=[40, 69, 90])
    evaluator.extractor = None, evaluation.AVERAGES
    batch = Notes()[torch.arange(6)]
    found = evaluator(batch["data"], batch)
    assert found["pitch_error"] < 0.5 and found["pitch_agreement"] == 1 and "onset_f" not in found


class Notes:
    """Sawtooths of E2, A4 and F sharp 6 at 16 kHz, in stereo."""

    def __len__(self):
        return 6

    def __getitem__(self, rows):
        pitch = rows % 3
        hertz = 440 * 2 ** ((torch.tensor([40, 69, 90])[pitch] - 69) / 12)
        k = torch.arange(1, 6)
        phase = hertz[:, None, None] * k[:, None] * torch.arange(8000) / 16_000
        x = (torch.sin(2 * math.pi * phase) / k[:, None]).sum(1, keepdim=True) * (0.1 + 0.05 * rows[:, None, None])
        return {"data": x.expand(-1, 2, -1), "pitch": pitch}


def test_conditions_are_classes_that_held_out_clips_have(data):
    asked = data.conditions(NUM)
    kept = set(zip(*(data.test[torch.arange(384)][name].tolist() for name in asked), strict=True))
    triples = list(zip(*(value.tolist() for value in asked.values()), strict=True))
    assert set(asked) == set(data.classes) and set(triples) <= kept and len(set(triples)) == NUM
    assert all(
        len(value.unique()) >= min(12, num)
        for (_, num), value in zip(data.classes.items(), asked.values(), strict=True)
    )
    given = Tones(train=1, val=2, test=5, given=2048)
    first = given.conditions(7)["first"]
    assert first.shape == (7, 1, 2048) and torch.equal(first[:2], first[5:])
    assert torch.equal(given.test[shuffled(5, 7)]["first"], first)


def test_the_onsets_of_a_sound_with_a_given_beginning_are_not_judged(evaluator, real):
    batch = real[0] | {"first": real[0]["data"][..., :2048]}
    assert "onset_f" not in evaluator(batch["data"], batch)
