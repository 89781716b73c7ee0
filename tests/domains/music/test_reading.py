"""Sound files: what is read of each format, what is refused, and pieces against the whole."""

import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from domains.music.reading import READERS, is_loud, mixed, probe, read
from domains.music.resample import length, resample

av = pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")

RATE = 44_100
SOUNDS = Path(os.environ.get("DISTILLKIT_TEST_DATA", "")) / "audio"


def chirp(rate=RATE, seconds=2.0):
    """A sine from 200 Hz upwards, of which no two pieces are alike, float32 [N]."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 + 300 * t) * t)).astype(np.float32)


def by_soundfile(path, x, rate=RATE, **kind):
    """A file of samples [N] or [N, C]; libsndfile writes Vorbis in small portions only."""
    with soundfile.SoundFile(path, "w", rate, 1 if x.ndim == 1 else x.shape[1], **kind) as file:
        for start in range(0, len(x), 4096):
            file.write(x[start : start + 4096])
    return path


def by_av(path, x, codec="aac", container=None):
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(x[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        for part in av.AudioResampler(format=stream.format).resample(frame):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return path


WRITTEN = {  # by format: what writes it, and the largest error of a sample, without the ends where coders smear
    "wav of 16 bits": (lambda at: by_soundfile(at / "x.wav", chirp(), subtype="PCM_16"), 3.1e-5),
    "wav of 24 bits": (lambda at: by_soundfile(at / "x.wav", chirp(), subtype="PCM_24"), 1.3e-7),
    "wav of 32 bits": (lambda at: by_soundfile(at / "x.wav", chirp(), subtype="PCM_32"), 1e-9),
    "wav of floats": (lambda at: by_soundfile(at / "x.wav", chirp(), subtype="FLOAT"), 0),
    "wav of doubles": (lambda at: by_soundfile(at / "x.wav", chirp(), subtype="DOUBLE"), 0),
    "flac": (lambda at: by_soundfile(at / "x.flac", chirp()), 1.6e-5),
    "aif": (lambda at: by_soundfile(at / "x.aif", chirp(), format="AIFF"), 3.1e-5),
    "mp3": (lambda at: by_soundfile(at / "x.mp3", chirp()), 0.021),
    "vorbis": (lambda at: by_soundfile(at / "x.ogg", chirp()), 0.02),
    "opus": (lambda at: by_soundfile(at / "x.opus", chirp(48_000), 48_000, format="OGG", subtype="OPUS"), 0.02),
    "alac": (lambda at: by_av(at / "x.m4a", chirp(), "alac"), 1.3e-7),
    "aac in m4a": (lambda at: by_av(at / "x.m4a", chirp()), 0.12),
    "aac": (lambda at: by_av(at / "x.aac", chirp(), container="adts"), None),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_format_is_read_whole_and_in_pieces(tmp_path, kind):
    write, bound = WRITTEN[kind]
    path = write(tmp_path)
    facts = probe(path)
    rate = facts["rate"]
    assert facts["fault"] is None and facts["reader"] == ("av" if kind[:2] in ("vo", "al", "aa") else "soundfile")
    expected = torch.from_numpy(chirp(rate))
    # AAC ends with a whole frame; FFmpeg leaves out the last 128 samples of libsndfile's Vorbis
    extra = range(2_048) if "aac" in kind else (-128, 0) if kind == "vorbis" else (0,)
    assert facts["samples"] - len(expected) in extra
    whole = read(path, facts, 0, facts["samples"], rate, 1)
    assert whole.shape == (1, facts["samples"]) and whole.dtype == torch.float32
    if bound is not None:  # nothing in a bare AAC stream says that its first 1024 samples are none
        inside = slice(2_000, len(expected) - 2_000) if bound > 1e-3 else slice(min(facts["samples"], len(expected)))
        assert (whole[0, inside] - expected[inside]).abs().max() <= bound
    assert facts["peak"] == pytest.approx(float(whole.abs().max()))
    lower = resample(whole, rate, 16_000)
    for start in (0, 1, 4_000, 17_777, 30_000):
        piece = read(path, facts, start, 1_500, 16_000, 1)
        assert piece.shape == (1, 1_500)
        close = 1e-4 if "aac" in kind else 1e-6  # a decoder of AAC fills bands with its own noise
        assert (piece - lower[:, start : start + 1_500]).abs().max() < close, start
    assert read(path, facts, 31_000, 9_000, 16_000, 1).shape[1] == length(facts["samples"], rate, 16_000) - 31_000


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
def test_pieces_at_any_rate_are_those_of_the_whole(tmp_path, rate):
    path = by_soundfile(tmp_path / "x.wav", chirp(22_050), 22_050, subtype="FLOAT")
    facts = probe(path)
    whole = resample(torch.from_numpy(chirp(22_050))[None], 22_050, rate)
    for start in (0, 7, rate // 3, rate):
        assert (read(path, facts, start, 999, rate, 1) - whole[:, start : start + 999]).abs().max() < 1e-6


def test_channels_are_kept_or_averaged_and_copied(tmp_path):
    x = np.stack([chirp(8_000), 0.5 * chirp(8_000), -0.25 * chirp(8_000)], 1)
    for num in (1, 2, 3):
        path = by_soundfile(tmp_path / f"{num}.wav", x[:, :num], 8_000, subtype="FLOAT")
        facts, kept = probe(path), torch.from_numpy(x[:, :num].T)
        assert torch.equal(read(path, facts, 0, 16_000, 8_000, num), kept)
        for channels in {1, 2} - {num}:
            got = read(path, facts, 0, 16_000, 8_000, channels)
            assert got.shape == (channels, 16_000)
            assert torch.allclose(got, torch.from_numpy(x[:, :num].T).mean(0).expand(channels, -1), atol=1e-7)
    assert mixed(torch.ones(6, 5), 2).shape == (2, 5)


def test_a_file_above_full_scale_is_made_quieter_as_a_whole(tmp_path):
    x = chirp(8_000) * np.linspace(0, 10, 16_000, dtype=np.float32)  # its peak is near 4
    facts = probe(by_soundfile(tmp_path / "x.wav", x, 8_000, subtype="FLOAT"))
    assert facts["peak"] == pytest.approx(float(np.abs(x).max())) and facts["peak"] > 3.9
    early = read(tmp_path / "x.wav", facts, 2_000, 500, 8_000, 1)
    assert torch.allclose(early[0], torch.from_numpy(x[2_000:2_500]) / facts["peak"], atol=1e-7)


@pytest.mark.parametrize(
    "level,loud",
    [(0.0, False), (0.0101, True), (0.0099, False)],
)
def test_what_silence_is(level, loud):
    assert is_loud(torch.full((1, 100), level)) == loud


def test_a_click_in_silence_is_silence():
    x = torch.zeros(1, 10_000)
    x[0, 5] = 0.099  # a root mean square of -60.1 dB
    assert not is_loud(x)
    x[0, 5] = 0.101
    assert is_loud(x)
    assert not is_loud(x[:, :0])


def broken(at):
    """Files that cannot be used, and what is said of each."""
    by_soundfile(at / "whole.flac", chirp())
    (at / "cut.flac").write_bytes((at / "whole.flac").read_bytes()[:20_000])
    (at / "whole.flac").unlink()
    (at / "empty.wav").write_bytes(b"")
    (at / "text.wav").write_text("no sound " * 500)
    (at / "list.wav").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    (at / "concat.mp3").write_text("ffconcat version 1.0\nfile text.wav\n")
    by_soundfile(at / "header.wav", chirp()[:0])
    by_soundfile(at / "silent.wav", np.zeros(9_000, np.float32))
    by_soundfile(at / "quiet.wav", chirp() * 0.02, subtype="FLOAT")
    x = chirp(8_000)
    x[12_000] = np.nan
    by_soundfile(at / "nan.wav", x, 8_000, subtype="FLOAT")
    by_soundfile(at / "slow.wav", chirp(), 400)
    with av.open(str(at / "mute.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=5, width=16, height=16, pix_fmt="yuv420p")
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        file.mux(stream.encode(None))
    unknown = "holds no sound in a format that is known here"
    return {
        "cut.flac": "",
        "empty.wav": "is empty",
        "text.wav": unknown,
        "list.wav": unknown,
        "concat.mp3": unknown,
        "header.wav": "holds no samples",
        "silent.wav": "is silent: no second of it has a peak above 0.01 and is louder than -60 dB",
        "quiet.wav": "is silent: no second of it has a peak above 0.01 and is louder than -60 dB",
        "nan.wav": "holds NaN or infinity after 1.00 s",
        "slow.wav": "says it has 400 samples a second",
        "mute.mp4": "has no sound",
        "gone.wav": "No such file or directory",
    }


def test_what_cannot_be_used_says_why(tmp_path):
    for name, why in broken(tmp_path).items():
        fault = probe(tmp_path / name)["fault"]
        assert fault and str(tmp_path) not in fault, name
        assert fault == why or not why, (name, fault)


def test_what_is_cut_off_without_a_trace_is_read_as_far_as_it_goes(tmp_path):
    for name in ("x.wav", "x.mp3"):
        data = by_soundfile(tmp_path / name, chirp()).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        facts = probe(tmp_path / name)
        assert facts["fault"] is None and 0.4 < facts["samples"] / (2 * RATE) <= 0.5


def test_a_file_that_breaks_later_is_named(tmp_path):
    path = by_soundfile(tmp_path / "x.wav", chirp(), subtype="FLOAT")
    facts = probe(path)
    path.write_bytes(b"none")
    with pytest.raises(ValueError, match=r"x\.wav cannot be decoded at 0\.50 s \(.+\)$"):
        read(path, facts, 4_000, 100, 8_000, 1)


def test_a_seek_that_goes_too_far_begins_anew(tmp_path):
    path = by_av(tmp_path / "x.m4a", chirp(), "alac")
    with READERS["av"](path) as file:
        whole = file.read(10**6)
    with READERS["av"](path) as file:

        class Late:
            """A container that lands 0.3 s after the place, except at the beginning."""

            def seek(self, place, stream):
                file_container.seek(place + math.ceil(0.3 / stream.time_base) if place else 0, stream=stream)

            def decode(self, stream):
                return file_container.decode(stream)

            def close(self):
                file_container.close()

        file_container, file._container = file._container, Late()
        file.seek(20_000)
        assert np.array_equal(file.read(5_000), whole[20_000:25_000])


@pytest.mark.skipif(not SOUNDS.is_dir(), reason="DISTILLKIT_TEST_DATA names no folder with it")
def test_real_files_are_read_in_pieces():
    for path in [*sorted(SOUNDS.glob("orchestra_notes/oboe/*.mp3"))[:3], *sorted(SOUNDS.glob("music/*.ogg"))[-1:]]:
        facts = probe(path)
        whole = read(path, facts, 0, 10**6, 16_000, 1)
        assert facts["fault"] is None and whole.shape[1] == length(facts["samples"], facts["rate"], 16_000)
        for start in (0, 5_001, whole.shape[1] - 2_000):
            piece = read(path, facts, start, 1_000, 16_000, 1)
            assert (piece - whole[:, start : start + 1_000]).abs().max() < 1e-6
