"""Folders of sounds: clips and their places, classes, parts, and what is left out."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from distillkit.cli import front
from distillkit.data import StepLoader
from domains.music.codec import Mel
from domains.music.folder import AudioFolder, is_probed, key
from domains.music.notes import midi, note

pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")

RATE = 8_000
SOUNDS = Path(os.environ.get("DISTILLKIT_TEST_DATA", "")) / "audio"


def ramp(seconds):
    """Samples that say their own place: 0.1 and a step for each."""
    return (0.1 + np.arange(round(seconds * RATE)) / 2**18).astype(np.float32)


def place(clip):
    """The place of a clip's first sample in `ramp`."""
    return round((float(clip[0, 0]) - 0.1) * 2**18)


def sound(path, x=None, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, ramp(1.0) if x is None else x, rate, subtype="FLOAT")
    return path


def small(root, **settings):
    """Clips of 64 ms, 512 samples."""
    data = AudioFolder(str(root), **{"rate": RATE, "frames": 8, "window": 256} | settings)
    data.setup()
    return data


def everything(part):
    return part[torch.arange(len(part))]


def test_clips_of_a_file_stay_together(tmp_path):
    for i in range(6):
        sound(tmp_path / f"{i}.wav")
    data = small(tmp_path)
    assert data.event_shape == (1, 512) and data.classes == {} and data.names == {}
    assert [len(part) for part in (data.train, data.val, data.test)] == [4 * 15, 15, 15]  # 8000 samples of 512
    seen = [{*part.paths} for part in (data.train, data.val, data.test)]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 6
    batch = everything(data.val)
    assert set(batch) == {"data"} and batch["data"].shape == (15, 1, 512) and batch["data"].dtype == torch.float32
    assert [place(clip) for clip in batch["data"]] == [512 * k for k in range(15)]
    assert torch.equal(batch["data"][3, 0], torch.from_numpy(ramp(1.0))[3 * 512 : 4 * 512])
    assert len(small(tmp_path, stride=0.032).val) == 30 and len(small(tmp_path, stride=5.0).val) == 1
    again, other = small(tmp_path), small(tmp_path, seed=3)
    assert again.train.paths == data.train.paths != other.train.paths


def test_training_clips_begin_anywhere_in_their_stride_and_always_there(tmp_path):
    for i in range(6):
        sound(tmp_path / f"{i}.wav")
    data = small(tmp_path)
    places = torch.tensor([place(clip) for clip in everything(data.train)["data"]]).view(4, 15)
    late = places - 512 * torch.arange(15)
    assert late.min() >= 0 and (late[:, :14] < 512).all() and places.max() <= 8_000 - 512
    assert late[:, 14].max() <= 8_000 - 512 - 14 * 512  # not beyond the file's end
    assert len({*late.flatten().tolist()}) > 40 and 150 < late[:, :14].float().mean() < 360  # uniform: 256
    (tmp_path / "6.wav").write_bytes((tmp_path / "0.wav").read_bytes())  # places do not depend on the other files
    more = small(tmp_path)
    kept = {(p.name, p.start): place(data.moved(p)) for p in data.train._places}
    assert all(place(more.moved(p)) == kept[p.name, p.start] for p in more.train._places if (p.name, p.start) in kept)
    first, again = (list(StepLoader(small(tmp_path).train, 4, seed=1)) for _ in range(2))
    assert all(torch.equal(a["data"], b["data"]) for a, b in zip(first, again, strict=True))
    still = everything(small(tmp_path, random_crop=False).train)["data"]
    assert {place(clip) % 512 for clip in still} == {0}


def test_short_files_go_on_with_silence_and_beginnings_are_the_clips_own(tmp_path):
    for i in range(3):
        sound(tmp_path / f"{i}.wav", ramp(0.03))
    data = small(tmp_path, given=64, channels=2)
    batch = everything(data.train)
    assert len(data.train) == 1 and batch["data"].shape == (1, 2, 512) and batch["first"].shape == (1, 2, 64)
    for channel in batch["data"][0]:
        assert torch.equal(channel, torch.cat([torch.from_numpy(ramp(0.03)), torch.zeros(512 - 240)]))
    assert torch.equal(batch["first"], batch["data"][..., :64])
    with pytest.raises(ValueError, match="given must leave something of the 512 samples"):
        small(tmp_path, given=512)
    for channels, said in ((0, "at least 1"), (3, "at most 2"), (8, "at most 2")):
        with pytest.raises(ValueError, match=f"channels must be {said}, got {channels} .mono or stereo"):
            small(tmp_path, channels=channels)


def test_where_it_is_silent_another_place_is_drawn(tmp_path):
    x = np.zeros(8_000, np.float32)
    x[4_000:] = ramp(0.5)
    for i in range(3):
        sound(tmp_path / f"{i}.wav", x)
    data = small(tmp_path)
    for part in (data.train, data.val):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no other clip stands in
            clips = everything(part)["data"]
        assert clips.shape == (15, 1, 512) and (clips.abs().amax((1, 2)) >= 0.01).all()
        assert torch.equal(clips, everything(part)["data"])
    with pytest.raises(ValueError, match=r"0\.wav is silent from 0\.00 s on, and wherever else was tried"):
        (found,) = [p for part in (data.train, data.val, data.test) for p in part._places if p.name == "0.wav"][:1]
        data.decode(found._replace(spare=0))


def test_folders_and_captions_are_classes(tmp_path):
    for i in range(4):
        sound(tmp_path / "snare" / f"{i}.wav")
        sound(tmp_path / "bell" / f"ü{i}.wav")
    sound(tmp_path / "bell" / "._0.wav")
    sound(tmp_path / ".cache" / "1.wav")
    (tmp_path / "bell" / "notes.txt").write_text("where these are from")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of these is named
        data = small(tmp_path)
    assert data.classes == {"label": 2} and data.names == {"label": ["bell", "snare"]} and data.prompts == []
    batch = everything(data.train)
    for label, found in zip(batch["label"].tolist(), data.train._places, strict=True):
        assert data.names["label"][label] == found.path.parent.name
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("[bs]*/[!.]*.wav"))
    lines = [f"{name},{'high' if '1' in name or '2' in name else 'low'}" for name in names[:-1]]
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *lines]), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"left out: snare/3.wav \(has no caption in captions.csv\)"):
        data = small(tmp_path)
    assert data.names == {"label": ["high", "low"]} and data.prompts == ["high", "low"] and data.pitches is None
    for label, found in zip(data.train.label.tolist(), data.train._places, strict=True):
        assert data.names["label"][label] == ("high" if found.path.stem[-1] in "12" else "low")


def test_names_say_classes(tmp_path):
    for instrument in ("oboe", "bass-clarinet"):
        for pitch in ("A4", "Cs3", "B3", "As3"):
            sound(tmp_path / instrument / f"{instrument}_{pitch}_1_forte.wav")
    sound(tmp_path / "noise.wav")
    pattern = r"(?P<instrument>.+)_(?P<pitch>[A-GX]s?\d)_"
    with pytest.warns(UserWarning, match=r"left out: noise.wav \(is not named as data.pattern says\)"):
        data = small(tmp_path, pattern=pattern)
    assert data.classes == {"instrument": 2, "pitch": 4}
    assert data.names == {"instrument": ["bass-clarinet", "oboe"], "pitch": ["Cs3", "As3", "B3", "A4"]}
    assert data.pitches == [49, 58, 59, 69] and data.prompts == []
    batch = everything(data.train)
    for i, found in enumerate(data.train._places):
        instrument, pitch = found.path.name.split("_")[:2]
        assert data.names["instrument"][batch["instrument"][i]] == instrument
        assert data.names["pitch"][batch["pitch"][i]] == pitch
    asked, there = data.conditions(5), {*zip(data.test.instrument.tolist(), data.test.pitch.tolist(), strict=True)}
    assert {*zip(asked["instrument"].tolist(), asked["pitch"].tolist(), strict=True)} <= there
    (tmp_path / "noise.wav").rename(tmp_path / "oboe_X2_.wav")
    with pytest.warns(UserWarning, match=r"oboe_X2_.wav \(has the pitch 'X2', which is no note such as A4 or Cs3\)"):
        small(tmp_path, pattern=pattern)
    with pytest.raises(ValueError, match="holds no sound that can be used.*is not named as data.pattern says"):
        small(tmp_path, pattern="(?P<x>nothing)")


def test_the_pitches_of_names_are_heard(tmp_path):
    """A file named by an octave too low is heard to be wrong; the others are in tune."""
    time = np.arange(4_096) / RATE
    for name, hertz in (("A3", 220.0), ("E4", 329.628), ("A4", 440.0)):
        for i in range(4):
            wave = sum(np.sin(2 * np.pi * hertz * k * time + i) / k for k in (1, 2, 3))
            sound(tmp_path / f"saw_{name}_{i}.wav", (0.2 * wave).astype(np.float32))
    data = small(tmp_path, frames=64, val=0.3, pattern=r"_(?P<pitch>[A-G]\d)_")
    evaluator, batch = data.evaluator("val"), everything(data.train)
    evaluator.extractor = None, {}
    found = evaluator(batch["data"], batch)
    assert found["pitch_agreement"] == 1 and found["pitch_error"] < 2
    lower = batch | {"pitch": torch.where(batch["pitch"] == 2, 0, batch["pitch"])}  # A3 in place of A4
    share = (batch["pitch"] != 2).double().mean().item()
    assert evaluator(batch["data"], lower)["pitch_agreement"] == pytest.approx(share)


@pytest.mark.parametrize(
    "pattern,why",
    [("(", "is no regular expression"), ("[a-z]+", "names no class"), ("(?P<data>.)", "cannot name a class 'data'")],
)
def test_patterns_are_refused_at_once(tmp_path, pattern, why):
    with pytest.raises(ValueError, match=why):
        AudioFolder(str(tmp_path), pattern=pattern)


def test_notes_have_midi_numbers():
    notes = {"A4": 69, "Cs3": 49, "C#3": 49, "Db3": 49, "C4": 60, "C-1": 0, "B3": 59, "Cb4": 59, "60": 60, "a4": 69}
    assert {name: key(name) for name in notes} == notes
    assert [midi(note(number)) for number in range(128)] == [*range(128)]
    assert (note(69), note(49), note(60), note(59), note(0)) == ("A4", "Cs3", "C4", "B3", "C-1")
    assert [key(name) for name in ("H4", "A", "4A", "", "As")] == [None] * 5


def test_what_is_left_out_is_named_once(tmp_path):
    for i in range(3):
        sound(tmp_path / f"{i}.wav")
    sound(tmp_path / "silent.wav", np.zeros(4_000, np.float32))
    sound(tmp_path / "low.wav", ramp(1.0)[::2], 4_000)
    (tmp_path / "text.wav").write_text("none")
    (tmp_path / "cover.jpg").write_bytes(b"x")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = small(tmp_path)
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2 and len(data.train.paths) == 2
    assert "left out: silent.wav (is silent: no second of it" in said[0] and "text.wav (holds no sound" in said[0]
    assert "1 .jpg (cover.jpg)" in said[0]
    assert said[1].endswith("which are below the 8000 Hz of the clips, in low.wav (4000 Hz)")
    assert (tmp_path / ".distillkit-sounds.json").is_file()


def test_too_few_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no sound that can be used: give a folder with .wav"):
        small(tmp_path)
    sound(tmp_path / "one.wav", ramp(3.0))
    with pytest.raises(ValueError, match="too few sounds to train, validate and test on, 1 that can be used: give at"):
        small(tmp_path)


def test_the_mean_of_log_mels_is_told_and_wanted(tmp_path):
    for i in range(4):
        sound(tmp_path / f"{i}.wav", np.sin(np.arange(8_000) * (i + 1) / 10).astype(np.float32))
    data = small(tmp_path, frames=16, window=512)
    codec = Mel(sample_rate=RATE, size=512, num=16, mean=None, std=None)
    logs = codec.logarithms(everything(data.train)["data"])
    with pytest.raises(ValueError, match="say vars.codec.mean=-") as caught:
        codec.check(data)
    told = dict(word.split("=") for word in str(caught.value).split() if "=" in word)
    assert float(told["vars.codec.mean"]) == pytest.approx(float(logs.mean()), abs=0.0051)
    assert float(told["vars.codec.std"]) == pytest.approx(float(logs.std()), abs=0.0051)
    made = Mel(sample_rate=RATE, size=512, num=16, **{key.rpartition(".")[2]: float(v) for key, v in told.items()})
    made.check(data)
    assert float(made.encode(everything(data.train)).std()) == pytest.approx(0.5, abs=0.02)


def test_the_command_line_tells_the_mean_of_log_mels(tmp_path, monkeypatch, capsys):
    for i in range(4):
        sound(tmp_path / "sounds" / f"{i}.wav", ramp(1.1))
    monkeypatch.chdir(tmp_path)
    words = ["fit", "domain=music", "method=pretrain", "data=audio_folder", "data.path=sounds", "data.rate=8000"]
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(front.main([*words, "data.frames=32", "data.batch_size=1", "--trainer.max_steps=1"]))
    assert caught.value.code == 2
    assert "say vars.codec.mean=-" in capsys.readouterr().err


@pytest.mark.skipif(not SOUNDS.is_dir(), reason="DISTILLKIT_TEST_DATA names no folder with it")
@pytest.mark.slow
def test_real_folders(tmp_path):
    def folder(name, **settings):
        (tmp_path / name).symlink_to(SOUNDS / name)  # the index may not be written beside them
        home = tmp_path / f"{name}_links"
        home.mkdir()
        for file in [path for path in (SOUNDS / name).rglob("*") if path.suffix in (".mp3", ".wav", ".ogg")]:
            link = home / file.relative_to(SOUNDS / name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        data = AudioFolder(str(home), **settings)
        data.setup()
        return data

    notes = folder("orchestra_notes", pattern=r"(?P<instrument>.+)_(?P<pitch>[A-G]s?\d)_")
    assert sum(len(part.paths) for part in (notes.train, notes.val, notes.test)) == 680
    assert notes.classes == {"instrument": 3, "pitch": 73} and "A4" in notes.names["pitch"]
    digits = folder("fsdd", rate=8_000, frames=32, pattern=r"(?P<digit>\d)_(?P<speaker>[a-z]+)_")
    assert sum(len(part.paths) for part in (digits.train, digits.val, digits.test)) == 600
    assert digits.classes == {"digit": 10, "speaker": 6}
    drums = folder("drum_machines")
    assert sum(len(part.paths) for part in (drums.train, drums.val, drums.test)) == 46
    loops = folder("music", channels=2)
    assert len(loops.train) + len(loops.val) + len(loops.test) > 300
    assert loops.train[torch.tensor([0, 100])]["data"].shape == (2, 2, 16_384)


def test_an_index_that_says_what_no_sound_has_is_refused():
    told = {"reader": "soundfile", "rate": 8000, "samples": 9000, "peak": 0.5, "fault": None}
    assert is_probed(told) and is_probed({"fault": "is empty"})
    for name, value in {"reader": [], "rate": 0, "samples": 10**15, "peak": float("nan"), "fault": 3}.items():
        assert not is_probed(told | {name: value}), name
        assert not is_probed({key: kept for key, kept in told.items() if key != name}), name
