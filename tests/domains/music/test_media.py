"""Spectrograms, sound files and what is measured without real sounds."""

import math
import wave

import numpy as np
import pytest
import torch

from domains.music import media
from domains.music.mel import BANDS, FLOOR, log_mel

RATE = 16_000


def tone(hertz, seconds=0.5, loud=1.0):
    return loud * torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * RATE)) / RATE)


@pytest.mark.parametrize("hertz", [440.0, 2000.0])
def test_a_tone_lies_in_its_band(hertz):
    sound = torch.stack([tone(hertz), torch.zeros(RATE // 2)])[None]
    mels = log_mel(sound, RATE)
    assert mels.shape == (1, 2, BANDS, 32) and (mels[0, 1] == math.log(FLOOR)).all()
    step = 2595 * math.log10(1 + RATE / 2 / 700) / (BANDS + 1)  # between the middles of bands
    assert abs(int(mels[0, 0, :, 16].argmax()) - (2595 * math.log10(1 + hertz / 700) / step - 1)) <= 1
    quieter = log_mel(sound / 10, RATE)
    band = mels[0, 0, :, 16].argmax()
    assert float((mels - quieter)[0, 0, band, 16]) == pytest.approx(math.log(10), abs=1e-4)
    assert -1 < float(mels[0, 0, band, 16]) < 1  # a full-scale sine is near 0


def test_files_hold_the_sound(tmp_path):
    left, right = tone(440.0, 0.01, 0.5), tone(880.0, 0.01, 0.25)
    loud = torch.stack([2 * left, 8 * right])
    first, second = media.save(torch.stack([torch.stack([left, right]), loud]), {}, tmp_path, rate=RATE)
    assert [first.name, second.name] == ["sound_0.wav", "sound_1.wav"]
    for path, expected in ((first, torch.stack([left, right])), (second, loud / loud.abs().max())):
        with wave.open(str(path)) as file:
            assert file.getparams()[:4] == (2, 2, RATE, 160)
            found = np.frombuffer(file.readframes(160), "<i2").reshape(160, 2).T / 32767
        assert np.abs(found - expected.numpy()).max() < 0.6 / 32767  # half a level, and float32


def test_pictures_are_spectrograms():
    sounds = torch.stack([tone(440.0), tone(3000.0)])[:, None]
    shown = np.asarray(media.picture(sounds, rate=RATE)).astype(int)
    assert shown.shape == (2 * (2 * BANDS + 2), 512, 3)
    low, high = (shown[i * 130 : i * 130 + 128, 256].sum(-1).argmax() for i in range(2))
    assert low > 64 > high  # low notes at the bottom
    assert (shown[128:130] == 96).all() and (
        np.asarray(media.picture(torch.zeros(1, 2, 8000)))[:128] == [0, 0, 4]
    ).all()
    assert media.compare({"student": sounds, "teacher": sounds}, rate=RATE).height == 2 * shown.shape[0]
    assert media.picture(torch.full((1, 1, 100), float("nan")), rate=RATE).size[1] == 130
    with pytest.raises(ValueError, match="a picture needs samples"):
        media.picture(torch.zeros(2, 100))


def chords(num, seed, spread=0.1):
    """[N, 1, T]: two notes with random loudness."""
    loud = 0.3 * torch.exp(spread * torch.randn(num, 2, generator=torch.Generator().manual_seed(seed)))
    return (loud[:, :1] * tone(440.0) + loud[:, 1:] * tone(3000.0))[:, None]


def test_students_are_compared_with_the_teachers_sounds():
    pytest.importorskip("diffusers")
    from domains.music.prompts import PromptEvaluator

    evaluator = PromptEvaluator((1, RATE // 2), RATE)
    teacher, alike, other = chords(24, 0), chords(24, 1), chords(24, 2).flip(0) * 0.5
    same, quiet = (evaluator(x, {}) | evaluator.paired(x, teacher, {}) for x in (alike, other))
    assert evaluator.look.cache_info().misses == 3  # the teacher's sounds are looked at once
    assert quiet["distance"] > 5 * same["distance"] and evaluator.paired(teacher, teacher, {}) == {"distance": 0.0}
    assert same["loudness"] - quiet["loudness"] == pytest.approx(20 * math.log10(2), abs=0.5)
    assert same["loudness"] == pytest.approx(20 * math.log10(0.3), abs=0.5)  # two sines of 0.3: a mean square of 0.3^2
    assert evaluator.better.keys() <= same.keys() and evaluator.headline == "distance" and evaluator.floor() == {}
    with pytest.raises(ValueError, match="NaN or infinity"):
        evaluator(teacher * float("nan"), {})
    with pytest.raises(ValueError, match="samples have shape"):
        evaluator(teacher[..., 1:], {})
