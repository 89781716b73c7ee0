"""Notes, chords and rhythms: what the formulas say is in the samples."""

import math

import pytest
import torch

from domains.music import tones as music
from domains.music.clip import CHORD, CLASSES, EIGHTH, LOWEST, RATE, RHYTHMS, SAMPLES, TIMBRES, frequency
from domains.music.data import Tones

SEEDS = torch.arange(8)


def made(timbre="sine", pitch=12, rhythm="note", seeds=SEEDS, going_on=False):
    asked = (TIMBRES.index(timbre), pitch, RHYTHMS.index(rhythm))
    return music.tones(*(torch.full([len(seeds)], number) for number in asked), seeds, going_on)[:, 0]


def drawn(seeds=SEEDS):
    """The eighth in seconds, the level and the delay in seconds of each clip."""
    u = torch.stack([torch.rand(8, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])
    return EIGHTH[0] + (EIGHTH[1] - EIGHTH[0]) * u[:, 0], 10 ** ((12 * u[:, 1] - 12) / 20), 0.1 * (1 - u[:, 2])


def strength(x, hertz):
    """Magnitudes [N] of a frequency in 0.2 seconds after the first eighth of a second of sounds."""
    part = x[:, 1_800:3_400] * torch.hann_window(1_600)
    angle = 2 * math.pi * hertz * torch.arange(1_600) / RATE
    return torch.hypot(part @ angle.cos(), part @ angle.sin())


def test_a4_is_440_hertz():
    assert frequency(69) == 440 and frequency(81) == 880
    assert LOWEST + 12 == 69 and strength(made(), 440.0).min() > 20 * strength(made(), 466.2).max()


@pytest.mark.parametrize("timbre, ratios", [("sine", (0, 0)), ("saw", (1 / 2, 1 / 3)), ("square", (0, 1 / 3))])
def test_overtones_have_the_strengths_of_their_waves(timbre, ratios):
    x = made(timbre)
    for k, ratio in zip((2, 3), ratios, strict=True):
        torch.testing.assert_close(
            strength(x, 440.0 * k) / strength(x, 440.0), torch.full([8], float(ratio)), atol=3e-3, rtol=0
        )


def test_a_plucked_string_loses_its_overtones():
    x = made("pluck", seeds=torch.tensor([2]))[0].unfold(0, 1_600, 1_600)
    third = strength(torch.nn.functional.pad(x, (1_800, 0)), 1_320.0) / strength(
        torch.nn.functional.pad(x, (1_800, 0)), 440.0
    )
    assert (third[1:4].diff() < 0).all() and third[4] < third[1] / 10


def test_a_note_begins_after_its_delay_at_its_level_and_fades():
    eighth, level, delay = drawn()
    for x, own, wait in zip(made(), level, delay, strict=True):
        first = int((x.abs() > 1e-6).float().argmax())
        assert abs(first / RATE - wait) < 3e-3
        whole = x[first + 400 : first + 4_400].unfold(0, 400, 400).square().mean(1).sqrt()
        expected = music.LOUD * own * torch.exp(-(0.075 + 0.05 * torch.arange(10)))
        torch.testing.assert_close(whole, expected, rtol=0.03, atol=0)


def test_a_chord_has_three_notes_and_an_arpeggio_has_four_in_turn():
    chord = made(rhythm="chord")
    heard = torch.stack([strength(chord, frequency(69 + key)) for key in CHORD])
    torch.testing.assert_close(heard[0], strength(made(), 440.0) * 3**-0.5, rtol=0.02, atol=0)
    assert (heard[:3].amax(0) < 1.05 * heard[:3].amin(0)).all() and (heard[3] < heard[0] / 20).all()
    eighth, _, delay = drawn()
    for x, length, wait in zip(made(rhythm="arpeggio"), eighth, delay, strict=True):
        for turn, key in enumerate(CHORD):
            middle = int(RATE * (wait + (turn + 0.5) * length))
            if middle + 400 < SAMPLES:
                part = x[middle - 400 : middle + 400] * torch.hann_window(800)
                spectrum = torch.fft.rfft(part, 16_384).abs()
                assert abs(int(spectrum.argmax()) * RATE / 16_384 / frequency(69 + key) - 1) < 0.01


def test_a_pulse_strikes_on_every_eighth():
    eighth, _, delay = drawn()
    for x, length, wait in zip(made(rhythm="pulse"), eighth, delay, strict=True):
        gaps = [wait + k * length for k in range(1, 5) if wait + k * length < 1.0]
        loud = x.unfold(0, 40, 1).abs().amax(1)
        for time in gaps:  # silence between the release of one and the attack of the next
            place = int(RATE * time)
            assert loud[place - 24 : place + 8].min() < 0.3 * loud[place - 600 : place - 300].max()


def test_clips_follow_from_their_number_and_parts_differ():
    data = Tones(train=800, val=8, test=8)
    data.setup()
    rows = torch.tensor([5, 700, 5])
    batch = data.train[rows]
    assert batch["data"].shape == (3, 1, SAMPLES) and torch.equal(batch["data"][0], batch["data"][2])
    assert torch.equal(data.train[rows[1:2]]["data"][0], batch["data"][1]) and batch["data"].abs().max() < 1
    assert not torch.equal(data.val[rows[:1]]["data"], batch["data"][:1])
    triples = {tuple(int(getattr(data.train, name)[i]) for name in CLASSES) for i in range(384)}
    assert len(triples) == 384


def test_music_that_goes_on_may_begin_later():
    assert not torch.equal(made(going_on=True), made())
    first = [
        int((x.abs() > 1e-6).float().argmax()) for x in made(rhythm="pulse", going_on=True, seeds=torch.arange(32))
    ]
    assert sum(start < 400 for start in first) > 24
