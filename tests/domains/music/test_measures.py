"""Measures of sounds against closed forms, and on the embedded sounds, whose formulas are known."""

import math

import pytest
import torch

from domains.music import measures
from domains.music.clip import EIGHTH, LOWEST, RATE, RHYTHMS, frequency
from domains.music.codec import Mel
from domains.music.data import Tones
from domains.music.evaluation import PERIODS, VOICES
from domains.music.measures import level, log_spectral_distance, onset_f, onsets, pitch

SECONDS = 1.024


def tone(*midi, rate=RATE, seconds=1.0, overtones=(1.0,), channels=1):
    """Notes together, [1, C, T]."""
    time = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    waves = [
        strength * torch.sin(2 * math.pi * (k + 1) * frequency(note) * time)
        for note in midi
        for k, strength in enumerate(overtones)
    ]
    return (0.1 * sum(waves)).float()[None, None].expand(-1, channels, -1)


def test_level_in_closed_form():
    square = torch.tensor([1.0, -1.0]).repeat(50)[None, None]
    assert level(square).item() == pytest.approx(0, abs=1e-6)
    assert level(0.1 * square).item() == pytest.approx(-20, abs=1e-5)
    assert level(torch.cat([square, 0 * square], 1)).item() == pytest.approx(-3.0103, abs=1e-4)  # stereo, one silent
    assert level(0 * square).item() == pytest.approx(-100)


def test_log_spectral_distance_in_closed_form():
    mels = torch.zeros(2, 1, 4, 3)
    other = mels.clone()
    other[0] = math.log(10)  # 20 dB everywhere
    other[1, 0, 0, 0] = -math.log(10)  # in one of four bands of one of three frames
    assert log_spectral_distance(mels, other).tolist() == pytest.approx([20, 20 / 2 / 3], rel=1e-6)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("midi", [57, 60.25, 69, 80])
@pytest.mark.parametrize("overtones", [(1,), (1, 1 / 2, 1 / 3, 1 / 4), (1, 0, 1 / 3, 0, 1 / 5)])
def test_the_pitch_of_a_note_is_its_frequency(rate, midi, overtones):
    found = pitch(tone(midi, rate=rate, overtones=overtones), rate, 45, 93)
    assert abs(found.item() - midi) < 0.005  # half a cent


def test_the_pitch_of_a_chord_is_its_root():
    chords = [tone(root, root + 4, root + 7, overtones=sound) for root in (57, 66, 80) for sound in ((1,), (1, 1 / 2))]
    found = pitch(torch.cat(chords), RATE, 45, 93, (0, 4, 7))
    assert (found - torch.tensor([57, 57, 66, 66, 80, 80])).abs().max() < 0.05
    stereo = torch.cat([tone(60), tone(64), tone(67)], 1)
    assert abs(pitch(stereo, RATE, 45, 93, (0, 4, 7)).item() - 60) < 0.05


def test_pitches_of_what_has_none_are_finite():
    noise = torch.randn(1, 1, 8000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    for x in (torch.zeros(1, 1, 8000), torch.ones(1, 1, 8000), noise, torch.zeros(1, 1, 100)):
        assert 44.9 < pitch(x, RATE, 45, 93).item() < 93.1


def clicks(times, rate=RATE, seconds=SECONDS):
    """Notes of 0.1 s at these times, [1, 1, T]."""
    time = torch.arange(round(rate * seconds)) / rate
    ages = time - torch.tensor(times)[:, None]
    envelope = ((ages >= 0) & (ages < 0.1)) * (1 - ages / 0.1)
    return (0.3 * (envelope * torch.sin(2 * math.pi * 440 * ages)).sum(0))[None, None]


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_onsets_are_where_notes_begin(rate):
    times = [0.05, 0.3, 0.62, 0.9]
    found = onsets(clicks(times, rate), rate)
    assert found.shape == (1, 4)
    assert (found[0] - torch.tensor(times)).abs().max() < 0.025
    assert (onsets(clicks(times, rate) * 0.05, rate) - found).abs().max() < 0.01  # loudness does not matter


def test_what_does_not_begin_has_no_onsets():
    both = onsets(torch.cat([clicks([0.2, 0.5]), clicks([0.4])]), RATE)
    assert both.shape == (2, 2) and both.isfinite().sum(1).tolist() == [2, 1]
    assert onsets(torch.zeros(2, 1, 8192), RATE).shape == (2, 0)
    assert len(onsets(torch.ones(1, 1, 8192), RATE)[0]) == 1  # after the silence before it


def test_onset_f_in_closed_form():
    """Of what is found 2 hits / (found + expected), at the tempo and beginning that fit best."""
    inf = math.inf

    def f(*times, periods=EIGHTH):
        return onset_f(torch.tensor([times]), periods, SECONDS).item()

    even = (0.06, 0.31, 0.56, 0.81)
    assert f(*even) == 1 and f(*even, inf, inf) == 1
    assert f(0.06, 0.35, 0.56, 0.81) == 1  # 40 ms late
    assert f(0.06, 0.43, 0.56, 0.81) == pytest.approx(2 * 3 / (4 + 4))  # halfway: one missed, one too much
    assert f(0.06, 0.56, 0.81) == pytest.approx(2 * 3 / (3 + 4))
    assert f(0.06) == pytest.approx(2 * 1 / (1 + 3))  # at 0.333 s the fewest are expected
    assert f(inf) == 0 and onset_f(torch.zeros(2, 0), EIGHTH, SECONDS).tolist() == [0, 0]
    assert f(0.06, periods=PERIODS["note"]) == 1
    assert f(*even, periods=PERIODS["note"]) == pytest.approx(2 / (4 + 1))
    assert f(*(0.05 * k for k in range(20))) < 0.45  # everywhere is no rhythm
    fast = torch.arange(0.01, 1.0, 0.15)
    assert onset_f(fast[None], EIGHTH, SECONDS).item() < 0.8  # 200 eighths a minute too many


@pytest.fixture(scope="module")
def batch():
    data = Tones(train=1, val=1, test=384)
    data.setup()
    return data.test[torch.arange(0, 384, 4) + torch.arange(96) % 4]


@pytest.fixture(scope="module")
def rebuilt(batch):
    codec = Mel(sample_rate=RATE, mean=-7.97, std=1.97)
    return codec.decode(codec.encode(batch), {})


def cents(x, batch):
    found = torch.zeros(len(x))
    for kind, name in enumerate(RHYTHMS):
        rows = batch["rhythm"] == kind
        found[rows] = pitch(x[rows], RATE, LOWEST - 12, LOWEST + 35, VOICES[name])
    return 100 * (found - LOWEST - batch["pitch"])


def f_of(x, batch):
    return torch.cat(
        [onset_f(onsets(x[batch["rhythm"] == kind], RATE), PERIODS[name], SECONDS) for kind, name in enumerate(RHYTHMS)]
    )


def test_embedded_sounds_have_the_pitch_and_rhythm_of_their_classes(batch):
    assert sorted(batch["rhythm"].bincount().tolist()) == [24] * 4 and len(batch["pitch"].unique()) == 24
    off = cents(batch["data"], batch)
    assert off.abs().max() < 2 and off.abs().median() < 0.2
    assert f_of(batch["data"], batch).mean() > 0.98


def test_the_codec_keeps_pitch_and_rhythm(batch, rebuilt):
    off = cents(rebuilt, batch).abs()
    assert off.median() < 15 and (off <= measures.NEAR).double().mean() > 0.96
    assert f_of(rebuilt, batch).mean() > 0.97


def test_sounds_out_of_tune_are_heard_to_be(batch):
    faster = torch.nn.functional.interpolate(batch["data"], scale_factor=2 ** (-1 / 12), mode="linear")  # a semitone up
    off = cents(faster, batch)
    assert (off - 100).abs().median() < 1
    assert (cents(batch["data"], batch | {"pitch": batch["pitch"] + 12}) + 1200).abs().max() < 2  # an octave is wrong


def test_other_rhythms_are_heard_to_be(batch):
    order = torch.argsort(batch["rhythm"], stable=True)
    x, rhythm = batch["data"][order], batch["rhythm"][order]
    wrong = f_of(x, {"rhythm": (rhythm + 2) % 4})
    assert wrong.mean() < 0.5
