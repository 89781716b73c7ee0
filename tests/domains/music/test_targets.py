"""What is asked of music, as people write it: every bad input is one sentence."""

from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
import torch

from domains.music import targets
from domains.music.data import Tones

TIMES = [k * 0.032 for k in range(32)]
ANY = targets.IGNORED


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def wav(folder, seconds=1.1, rate=8_000, channels=1, name="a.wav", hertz=440.0, **settings):
    time = np.arange(int(seconds * rate)) / rate
    path = folder / name
    soundfile.write(
        path, np.stack([0.25 * (c + 1) * np.sin(2 * np.pi * hertz * time) for c in range(channels)], 1), rate
    )
    return path


def midi(folder, notes, channel=0, tempo=500_000, changes=()):
    """A file of `(beat, key, velocity)` events at 480 ticks a beat; `changes` of tempo likewise."""
    file, track = mido.MidiFile(ticks_per_beat=480), mido.MidiTrack()
    events = [(0, mido.MetaMessage("set_tempo", tempo=tempo))]
    events += [(beat, mido.MetaMessage("set_tempo", tempo=to)) for beat, to in changes]
    events += [
        (beat, mido.Message("note_on", channel=channel, note=key, velocity=velocity)) for beat, key, velocity in notes
    ]
    now = 0
    for beat, message in sorted(events, key=lambda event: event[0]):
        ticks = round(beat * 480)
        track.append(message.copy(time=ticks - now))
        now = ticks
    file.tracks.append(track)
    file.save(folder / "a.mid")
    return str(folder / "a.mid")


def smpte(folder):
    """A file of one note whose header counts 25 frames a second, of 40 ticks each."""
    path = folder / "film.mid"
    content = bytearray(Path(midi(folder, [(0, 69, 90), (1, 69, 0)])).read_bytes())
    content[12:14] = bytes([256 - 25, 40])
    path.write_bytes(content)
    return path


def test_levels_are_numbers_ramps_and_curves(tmp_path):
    assert targets.levels("-20.5", TIMES).tolist() == [-20.5] * 32
    assert torch.allclose(targets.levels("ramp:-40:-9", TIMES), torch.arange(32) - 40.0)
    each = written(tmp_path, "each.txt", "dB\n" + "\n".join(map(str, range(-40, -8))))
    assert targets.levels(str(each), TIMES).tolist() == list(range(-40, -8))
    timed = written(tmp_path, "timed.CSV", "\ufeffseconds,dB\n0.064, -40\n\n0.128,-20\n")
    found = targets.levels(str(timed), TIMES)
    assert found[:6].tolist() == pytest.approx([-40, -40, -40, -30, -20, -20]) and (found[4:] == -20).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a loudness is a level in dB such as -30"),
        ("loud", "a loudness is a level in dB such as -30"),
        ("tune.mid", "a loudness is a level in dB such as -30"),
        ("-1e300", "'-1e300' is not a finite number"),
        ("ramp:-40:1e39", "'1e39' is not a finite number"),
        ("nan", "'nan' is not a finite number"),
        ("ramp:-40", "a ramp goes from one level to another"),
        ("ramp:-40:up", "'up' is not a finite number, in 'ramp:-40:up'"),
        ("no.csv", "there is no file"),
        ("empty.csv", "is empty"),
        ("header.csv", "must have lines `dB`, or lines `seconds, dB`"),
        ("mixed.csv", "all of the same kind"),
        ("three.csv", "all of the same kind"),
        ("few.csv", "has 3 values for 32 frames"),
        ("word.csv", "'loud' is not a finite number, in .*word.csv, line 2"),
        ("nan.csv", "'nan' is not a finite number, in .*nan.csv, line 1"),
        ("back.csv", "the seconds in .*back.csv must rise"),
        ("bytes.csv", "is not a table of numbers"),
    ],
)
def test_bad_levels_are_one_sentence(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "empty": "", "header": "seconds,dB\n", "mixed": "-1\n0.1,-2\n", "three": "1,2,3\n", "few": "-1\n-2\n-3\n",
        "word": "-1\nloud\n", "nan": "nan\n-1\n", "back": "0.2,-1\n0.1,-2\n",
    }.items():  # fmt: skip
        written(tmp_path, f"{name}.csv", content)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=message) as error:
        targets.levels(text, TIMES)
    assert "\n" not in str(error.value)


def test_notes_have_names():
    names = {"A4": 69, "a4": 69, "A3": 57, "C": 60, "C#5": 73, "Cs5": 73, "Db5": 73, "B-1": 11, "Cb4": 59}
    assert {name: targets.pitch(name) for name in names} == names
    assert targets.melody("A4 - C5 Eb", TIMES).tolist() == [9] * 8 + [ANY] * 8 + [0] * 8 + [3] * 8
    assert targets.melody("A4 C5 E5", TIMES[:4]).tolist() == [9, 9, 0, 4]
    for text, message in (
        ("", "a melody needs a note"), ("- -", "a melody needs a note"), ("A4 H4", "'H4' is no note"),
        ("A4 " * 40, "more notes \\(40\\) than frames \\(32\\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            targets.melody(text, TIMES)


def test_the_highest_note_of_a_midi_file_is_the_melody(tmp_path):
    """Two beats of half a second, the second twice as fast: the map of tempos counts."""
    notes = [(0, 57, 90), (0, 60, 90), (1, 60, 0), (2, 57, 0), (2.5, 76, 80), (3, 76, 0)]
    found = targets.melody(midi(tmp_path, notes, changes=[(1, 250_000)]), TIMES)
    starts = {0: 0, 0.5: 57 % 12, 0.75: ANY, 0.875: 76 % 12, 1.0: ANY}
    wanted = [[note for start, note in starts.items() if start <= time + 1e-9][-1] for time in TIMES]
    assert found.tolist() == wanted


def test_bad_midi_is_one_sentence(tmp_path):
    for notes, channel in (([], 0), ([(40, 60, 90)], 0), ([(0, 60, 90)], 9)):
        with pytest.raises(ValueError, match="has no note in the first 0.992 seconds"):
            targets.melody(midi(tmp_path, notes, channel), TIMES)
    for path, message in (
        (str(written(tmp_path, "text.mid", "no music")), "does not read as a MIDI file"),
        (str(written(tmp_path, "empty.mid", "")), "is empty"),
        (str(tmp_path / "no.midi"), "^there is no file"),
        (str(smpte(tmp_path)), "counts time in frames of film"),
    ):
        with pytest.raises(ValueError, match=message):
            targets.melody(path, TIMES)


def test_forms_are_letters():
    assert targets.form("aba", 32).tolist() == [0] * 11 + [1] * 11 + [0] * 10
    assert targets.form("BCD", 3).tolist() == [0, 1, 2]
    for text in ("", "A", "AAA", "A-B", "AB1"):
        with pytest.raises(ValueError, match="two different ones at least"):
            targets.form(text, 32)
    with pytest.raises(ValueError, match="more parts"):
        targets.form("ABAB", 3)


def test_spans_are_seconds():
    assert targets.span("a@b.wav@0.2-0.6", 1.0) == (targets.Path("a@b.wav"), 0.2, 0.6)
    assert targets.span("a.wav@.5-", 1.0)[1:] == (0.5, 1.0) and targets.span("a.wav@-0.3", 1.0)[1:] == (0.0, 0.3)
    for text in ("a.wav", "a.wav@", "a.wav@0.5", "a.wav@.-.", ""):
        with pytest.raises(ValueError, match="say the sound and the seconds of it to fill in"):
            targets.span(text, 1.0)
    for text in ("a.wav@0.6-0.2", "a.wav@0.5-1.2", "a.wav@1-"):
        with pytest.raises(ValueError, match="must lie within 0-1 seconds"):
            targets.span(text, 1.0)


def test_sounds_are_read_at_the_rate_and_with_the_channels_of_the_model(tmp_path):
    wave = targets.sound(wav(tmp_path), 8_000, 1, 8_192)
    time = torch.arange(8_192) / 8_000
    assert wave.shape == (1, 8_192) and (wave[0] - 0.25 * (2 * np.pi * 440 * time).sin()).abs().max() < 1e-3
    faster = targets.sound(wav(tmp_path, rate=44_100), 8_000, 1, 8_192)
    assert (faster - wave)[:, 200:-200].abs().max() < 1e-3
    stereo = wav(tmp_path, channels=2)
    assert torch.allclose(targets.sound(stereo, 8_000, 1, 8_192), 1.5 * wave, atol=1e-3)
    left, right = targets.sound(stereo, 8_000, 2, 8_192)
    assert torch.allclose(right, 2 * left, atol=1e-3)
    assert torch.equal(*targets.sound(wav(tmp_path), 8_000, 2, 8_192))


def test_bad_sounds_are_one_sentence(tmp_path):
    broken = tmp_path / "nan.wav"
    soundfile.write(broken, np.full(9_000, np.nan), 8_000, subtype="FLOAT")
    for path, message in (
        (tmp_path / "no.wav", "there is no file"),
        (tmp_path / f"{'a' * 300}.wav", "there is no file"),
        (written(tmp_path, "empty.wav", ""), "is empty"),
        (written(tmp_path, "text.wav", "no music"), "text.wav holds no sound in a format"),
        (broken, "nan.wav holds NaN or infinity"),
        (wav(tmp_path, hertz=0.0, name="silent.wav"), "silent.wav is silent"),
        (wav(tmp_path, seconds=0.5, name="short.wav"), "lasts 0.5 seconds, the model's sounds 1.02"),
        (wav(tmp_path, rate=4_000, name="low.wav"), "has 4000 samples a second, the model 8000"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            targets.sound(path, 8_000, 1, 8_192)
        assert "\n" not in str(error.value)


def test_classes_have_names_notes_and_numbers():
    data = Tones(8, 8, 8)
    known = {"timbre=saw": ("timbre", 1), "timbre=3": ("timbre", 3), "pitch=A4": ("pitch", 12), "pitch=0": ("pitch", 0)}
    assert {text: targets.class_of(text, data) for text in known} == known
    for text, message in (
        ("saw", "such as timbre=0, of timbre, pitch, rhythm; got 'saw'"),
        ("timbre=oboe", r"timbre has the classes 0 to 3 \(sine, saw, square, pluck\), got 'oboe'"),
        ("pitch=A6", r"pitch has the classes 0 to 23 \(.*A4.*\), got 'A6'"),
        ("timbre=4", "timbre has the classes 0 to 3"),
    ):
        with pytest.raises(ValueError, match=message):
            targets.class_of(text, data)
    with pytest.raises(ValueError, match="the model's data have none"):
        targets.class_of("timbre=0", None)
