"""Spectrograms, sound files and what is measured without real sounds."""

import base64
import math
import re
import shutil
import subprocess
import wave
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from distillkit import runs
from distillkit.cli import front, prompts
from distillkit.codec import Codec
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.evaluation.samples import Diverged
from distillkit.rollouts import rolled_out
from distillkit.teachers.base import Teacher
from domains.music import media
from domains.music.codec import Mel
from domains.music.continuation import LastSound
from domains.music.data import MusicData
from domains.music.mel import BANDS, FLOOR, log_mel
from domains.music.network import MelUNet

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


# Files


LEVEL = 1 / 32768  # of 16 bits


def read_by_wave(path):
    with wave.open(str(path)) as file:
        channels, width, rate, num = file.getparams()[:4]
        assert width == 2
        return np.frombuffer(file.readframes(num), "<i2").reshape(num, channels).T / 32768, rate


def read_by_soundfile(path):
    sound, rate = pytest.importorskip("soundfile").read(str(path), always_2d=True)
    return sound.T, rate


def read_by_av(path):
    """FFmpeg's libraries."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as file:
        (stream,) = file.streams
        assert (file.format.name, stream.codec_context.name) == ("wav", "pcm_s16le")
        frames = [frame.to_ndarray().reshape(-1, stream.channels) for frame in file.decode(stream)]
        return np.concatenate(frames).T / 32768, stream.rate


READERS = [read_by_wave, read_by_soundfile, read_by_av]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("rate, channels", [(8_000, 1), (22_050, 1), (44_100, 2), (48_000, 2)])
def test_files_hold_the_sound(read, rate, channels, tmp_path):
    """Readers find what was saved; what is louder than 1 is made quieter as a whole."""
    quiet = torch.rand(channels, rate // 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    quiet[:, :2] = torch.tensor([1.0, -1.0])
    loud = quiet * torch.tensor([[1.0], [8.0]])[-channels:]
    paths = media.save(torch.stack([quiet, loud, quiet / 4]), {}, tmp_path, rate=rate)
    assert [path.name for path in paths] == ["sound_0.wav", "sound_1.wav", "sound_2.wav"]
    for path, expected in zip(paths, (quiet, loud / 8, quiet / 4), strict=True):
        found, found_rate = read(path)
        assert found_rate == rate and found.shape == expected.shape
        error = np.abs(found - expected.numpy())
        assert error.max() <= LEVEL and error[expected.numpy() < 1].max() < 0.501 * LEVEL


def test_files_of_16_bits_are_saved_as_they_are(tmp_path):
    every = torch.arange(-32768, 32768) / 32768
    for i in range(2):  # the second time from the file
        media.save(every[None, None], {}, tmp_path / str(i), rate=RATE)
        every = torch.tensor(read_by_wave(tmp_path / str(i) / "sound_0.wav")[0][0], dtype=torch.float32)
    assert torch.equal(every, torch.arange(-32768, 32768) / 32768)


@pytest.mark.parametrize(
    "program, words",
    [("sox", ["--i"]), ("ffprobe", ["-v", "error", "-show_streams", "-of", "compact"])],
)
def test_other_programs_know_the_files(program, words, tmp_path):
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    (path,) = media.save(torch.zeros(1, 2, 4410), {}, tmp_path, rate=44_100)
    said = subprocess.run([program, *words, str(path)], capture_output=True, text=True, check=True).stdout
    assert "44100" in said and ("Channels       : 2" in said or "channels=2" in said)


def test_a_sound_that_went_on_is_one_file(tmp_path):
    asked = {"first": torch.zeros(1, 1, 100)}
    parts = iter(torch.stack([tone(hertz, 0.1) for hertz in (440.0, 880.0, 220.0)])[:, None, None])
    whole = rolled_out(lambda *_: next(parts), LastSound(), asked, 3, 0)
    (path,) = media.save(whole, asked, tmp_path, rate=RATE)
    assert read_by_wave(path)[0].shape == (1, 1600 + 2 * 1500)
    assert media.picture(whole, asked, rate=RATE).width > 300


# Pictures


INK = np.array(media.INK)


def spectrograms(picture):
    """The pixels without margins, and the rows of Hz and the columns of seconds with marks."""
    pixels = np.asarray(picture).astype(int)
    inside = (slice(0, pixels.shape[0] - media.BELOW - media.GAP), slice(media.LEFT, pixels.shape[1] - media.GAP))
    hertz = np.flatnonzero((pixels[:, media.LEFT - 2] == INK).all(-1))
    seconds = np.flatnonzero((pixels[inside[0].stop + 1] == INK).all(-1)) - media.LEFT
    return pixels[inside], hertz, seconds


@pytest.mark.parametrize("seconds", [0.05, 0.5, 1.0])
def test_pixels_are_bands_and_frames_enlarged(seconds):
    sound = tone(440.0, seconds, 0.3)
    shown, _, _ = spectrograms(media.picture(sound[None, None], rate=RATE))
    frames = log_mel(sound[None, None], RATE).shape[-1]
    zoom = max(1, media.WIDTH // frames)
    assert shown.shape == (media.ZOOM * BANDS, zoom * frames, 3)
    small = shown[:: media.ZOOM, ::zoom]
    assert (small.repeat(media.ZOOM, 0).repeat(zoom, 1) == shown).all() and len(np.unique(small)) > 20


@pytest.mark.parametrize("hertz, place", [(440, 4), (880, 3), (1760, 2), (3520, 1), (7040, 0)])
def test_notes_lie_at_their_marks(hertz, place):
    shown, marks, _ = spectrograms(media.picture(tone(float(hertz))[None, None], rate=RATE))
    assert len(marks) == 6  # from 220 Hz to 7040 Hz
    brightest = shown[:, 100].sum(-1).argmax()
    assert 0 <= marks[place] - brightest <= media.ZOOM  # low notes at the bottom


def test_clicks_lie_at_their_times():
    sound = torch.zeros(RATE)
    sound[[3200, 9600]] = 1.0  # at 0.2 and at 0.6 seconds
    shown, _, marks = spectrograms(media.picture(sound[None, None], rate=RATE))
    assert len(marks) == 6  # 0, 0.2 ... 1 second
    bright = shown.sum((0, 2))
    for mark, near in ((marks[1], slice(0, 130)), (marks[3], slice(130, 260))):
        middle = np.flatnonzero(bright[near] == bright[near].max()).mean() + near.start
        assert abs(middle - mark) <= 3  # a frame is 5 pixels wide


def test_colours_are_levels():
    """Ten times quieter is a quarter of the way to black; of two channels the loudest is seen."""
    silent, loud, quiet = torch.zeros(8000), tone(440.0, 0.5, 0.5), tone(440.0, 0.5, 0.05)
    black, one, tenth, both = (
        media.spectrogram(x, RATE) for x in (silent[None], loud[None], quiet[None], torch.stack([silent, loud]))
    )
    assert (black == media.COLOURS[0]).all() and (both == one).all()
    column = one[:, 150].sum(1).argmax(), 150
    levels = [int(np.flatnonzero((x[column] == media.COLOURS).all(1))[0]) for x in (one, tenth)]
    assert levels[0] > 230 and levels[0] - levels[1] == pytest.approx(255 / 4, abs=2)
    assert (media.spectrogram(torch.full((1, 8000), math.nan), RATE) == media.COLOURS[0]).all()


def test_sounds_stand_in_rows():
    sounds = torch.stack([tone(440.0), tone(3520.0), tone(880.0)])[:, None]
    alone, three = (media.picture(x, rate=RATE) for x in (sounds[:1], sounds))
    inner, cell = alone.width - media.LEFT, alone.height - media.BELOW
    assert three.size == (media.LEFT + 2 * inner, 2 * cell + media.BELOW)
    assert (
        np.asarray(three)[cell : cell + 128, media.LEFT : media.LEFT + 300]
        == media.spectrogram(sounds[2], RATE)[:, :300]
    ).all()
    both = media.compare({"student": sounds, "teacher": sounds.flip(0)}, rate=RATE)
    assert both.height == 2 * alone.height and both.width > media.LEFT + 3 * inner
    upper, lower = np.split(np.asarray(both), 2)
    left = both.width - 3 * inner
    first, last = slice(left, left + 300), slice(left + 2 * inner, left + 2 * inner + 300)
    assert (upper[:128, first] == lower[:128, last]).all() and (upper[:128, first] != upper[:128, last]).any()
    with pytest.raises(ValueError, match="a picture needs samples"):
        media.picture(torch.zeros(2, 100), rate=RATE)


def test_long_sounds_stay_narrow():
    long = torch.stack([tone(440.0, 40.0), tone(880.0, 40.0)])
    assert media.spectrogram(long, RATE).shape == (128, media.WIDEST, 3)
    shown, _, marks = spectrograms(media.picture(long[None], rate=RATE))
    assert list(marks) == [round(i * 5 / 40 * 511) for i in range(9)]


def test_the_codec_says_the_rate(tmp_path):
    """Where a student's data cannot be had, the command line asks `of`."""
    sound = tone(440.0)[None, None]
    student = SimpleNamespace(config={"domain": "music"}, codec=Mel(RATE))
    waves = SimpleNamespace(config={"domain": "music", "shown": {"rate": RATE}}, codec=Codec())
    for asked in (waves, student):
        shown = prompts.media(asked, False)
        (path,) = shown.save(sound, {}, tmp_path)
        assert read_by_wave(path)[1] == RATE
    for damaged in (None, RATE, {}, {"rate": 0}, {"rate": "fast"}, {"rate": 10**9}, {"rate": True}):
        waves.config["shown"] = damaged
        with pytest.raises(ValueError, match="does not say the sample rate of its sounds"):
            prompts.media(waves, False)
    assert (np.asarray(shown.picture(sound, {})) == np.asarray(media.picture(sound, rate=RATE))).all()


def test_each_file_has_a_picture_beside_it(tmp_path):
    sounds = torch.stack([tone(440.0), tone(880.0)])[:, None]
    paths = media.at(RATE).sounds(sounds, {}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"sound_{i}.{kind}" for i in (0, 1) for kind in ("png", "wav")
    ]
    assert [path.suffix for path in paths] == [".wav"] * 2
    with Image.open(tmp_path / "sound_1.png") as shown:
        assert (np.asarray(shown) == np.asarray(media.picture(sounds[1:], rate=RATE))).all()


# A run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step with a random teacher."""
    folder = tmp_path_factory.mktemp("run")
    shape, classes = (1, 64, 32), {"timbre": 4, "pitch": 24, "rhythm": 4}
    network = MelUNet(shape, channels=8, multipliers=(1,), attention=False, patch=(4, 4), classes=classes)
    denoiser = Denoiser(network, VarianceExploding(), "edm", 0.5)
    Teacher(denoiser, shape, classes, codec=Mel(mean=-7.97, std=1.97, steps=1)).save(folder / "teacher", domain="music")
    words = ["domain=music", "method=dmd", "teacher=folder", f"teacher.path={folder / 'teacher'}"]
    words += ["trainer.max_steps=1", "data.batch_size=2", "vars.callbacks.finish.num_samples=0"]
    words += ["vars.callbacks.watch.samples=2"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MusicData, "pictured", 4)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", runs.OUT):
            patched.delenv(name, raising=False)
        assert front.main(["fit", *words, "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_a_run_leaves_sounds_of_each_model(run):
    for model in ("student", "teacher_best", "teacher_same_steps", "real"):
        names = {path.name for path in (run / "samples" / model).iterdir()}
        assert names == {f"sound_{i}.{kind}" for i in range(4) for kind in ("png", "wav")}
        assert (run / "samples" / f"{model}.png").is_file()
    assert not list((run / "samples").glob("*.wav"))
    for i in range(3):
        kept = run / "student" / f"sound_{i}.wav"
        assert kept.read_bytes() == (run / "samples" / "student" / kept.name).read_bytes()
    card = (run / "student" / "README.md").read_text(encoding="utf-8")
    assert "[sound\\_2.wav](<sound_2.wav>)" in card and "sound_3" not in card


def test_the_report_plays_them(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    players = re.findall(r'<audio controls src="data:audio/wav;base64,([^"]*)" aria-label="([^"]*)"></audio>', page)
    assert len(players) == 16
    at = [label for _, label in players].index("Student: sound 1")
    assert base64.b64decode(players[at][0]) == (run / "samples" / "student" / "sound_1.wav").read_bytes()


def test_sample_names_the_files(run, tmp_path, capsys):
    assert front.main(["sample", str(run / "student"), "-n", "2", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for i in range(2):
        assert f"file: {tmp_path / 'out' / f'sound_{i}.wav'}" in said
        assert read_by_wave(tmp_path / "out" / f"sound_{i}.wav")[1] == 8000


def test_a_folder_by_itself_has_sounds_and_names_of_classes(run, tmp_path, capsys):
    folder = tmp_path / "student"
    shutil.copytree(run / "student", folder)
    told = yaml.safe_load((folder / "student.yaml").read_text())
    del told["run"]
    assert told["shown"] == {"rate": 8000} and told["names"]["timbre"] == ["sine", "saw", "square", "pluck"]
    (folder / "student.yaml").write_text(yaml.safe_dump(told))
    words = ["sample", str(folder), "-n", "1", "--out"]
    assert front.main([*words, str(tmp_path / "a"), "--cond", "timbre=saw", "--cond", "pitch=A4"]) == 0
    assert read_by_wave(tmp_path / "a" / "sound_0.wav")[1] == 8000 and (tmp_path / "a" / "samples.png").is_file()
    with np.load(tmp_path / "a" / "samples.npz") as made:
        assert made["timbre"].tolist() == [1] and made["pitch"].tolist() == [told["names"]["pitch"].index("A4")]
    assert front.main([*words, str(tmp_path / "b"), "--cond", "timbre=oboe"]) == 2
    said = "timbre is a number from 0 to 3, or 'sine', 'saw', 'square', 'pluck'"
    assert said in capsys.readouterr().err


# What is measured without real sounds


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
    with pytest.raises(Diverged):
        evaluator(teacher * float("nan"), {})
    with pytest.raises(ValueError, match="samples have shape"):
        evaluator(teacher[..., 1:], {})
