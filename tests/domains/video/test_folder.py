"""Folders of videos: which frame is taken, which file goes where, what is left out."""

import os
import struct
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from distillkit.evaluation.pictures import save_gif
from domains.video import folder as module
from domains.video.folder import VideoFolder, probe, read, upright
from domains.video.media import save_mp4

av = pytest.importorskip("av")

CLIPS = Path(os.environ.get("DISTILLKIT_TEST_DATA", "")) / "video" / "asl_gestures"


def ramp(frames, size=(16, 24)):
    """Frame k is grey of level 4 k."""
    return [np.full((*size, 3), 4 * k, np.uint8) for k in range(frames)]


def video(path, frames=40, fps=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        save_gif(ramp(frames), path, 1000 / fps)
    else:
        save_mp4(ramp(frames), path, fps)


def small(root, **settings):
    settings = {"frames": 4, "fps": 5.0, "resolution": 8} | settings
    data = VideoFolder(str(root), **settings)
    data.setup()
    return data


def levels(clip):
    """[C, T, H, W] to the grey level of each frame."""
    return ((clip.mean((0, 2, 3)) + 1) * 127.5).tolist()


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_the_frame_on_show_is_taken(tmp_path, suffix):
    video(tmp_path / f"v{suffix}")
    facts = probe(tmp_path / f"v{suffix}")
    assert facts["fault"] is None and facts["end"] - facts["start"] == pytest.approx(3.9, abs=0.02)
    times = [1.0, 1.05, 1.35, 3.88, 3.9]
    found = [frame.mean() for frame in read(tmp_path / f"v{suffix}", [facts["start"] + t for t in times])]
    assert found == pytest.approx([40, 40, 52, 152, 156], abs=3)


def test_a_late_clip_of_a_long_video_is_found_from_its_key_frame(tmp_path):
    video(tmp_path / "v.mp4", frames=60, fps=2)  # a key frame every 12 frames
    start = probe(tmp_path / "v.mp4")["start"]
    found = [frame.mean() for frame in read(tmp_path / "v.mp4", [start + 20, start + 25])]
    assert found == pytest.approx([160, 200], abs=3)


def test_clips_of_a_video_stay_together(tmp_path):
    for i in range(6):
        video(tmp_path / f"{i}.mp4")
    data = small(tmp_path)  # 4 s of video, clips of 0.8 s
    assert data.event_shape == (3, 4, 8, 8) and data.classes == {}
    assert [len(part) for part in (data.train, data.val, data.test)] == [4 * 5, 5, 5]
    seen = [{path for path, _ in part.places} for part in (data.train, data.val, data.test)]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 6
    batch = data.train[torch.tensor([0, 1, 4])]
    assert set(batch) == {"data"} and batch["data"].shape == (3, 3, 4, 8, 8) and batch["data"].dtype == torch.float32
    for clip, start in zip(batch["data"], (0, 8, 32), strict=True):
        assert levels(clip) == pytest.approx([4 * (start + k) for k in (0, 2, 4, 6)], abs=3)
    assert len(small(tmp_path, stride=0.4).val) == 9 and len(small(tmp_path, fps=2.5).val) == 2
    again = small(tmp_path)
    assert again.train.places == data.train.places != small(tmp_path, seed=3).train.places


def test_a_slow_video_repeats_frames(tmp_path):
    for i in range(3):
        video(tmp_path / f"{i}.mp4", frames=4, fps=2)
    clip = small(tmp_path).train[torch.tensor([0])]["data"][0]
    assert levels(clip) == pytest.approx([0, 0, 0, 4], abs=3)


def test_classes_captions_and_the_first_frames(tmp_path):
    for i in range(3):
        video(tmp_path / "wave" / f"{i}.mp4")
        video(tmp_path / "jump" / f"{i}.gif")
    data = small(tmp_path, channels=1, given=2)
    assert (
        data.classes == {"label": 2} and data.names == {"label": ["jump", "wave"]} and data.event_shape == (1, 4, 8, 8)
    )
    batch = data.train[torch.arange(len(data.train))]
    assert torch.equal(batch["first"], batch["data"][:, :, :2])
    for (path, _), label in zip(data.train.places, batch["label"].tolist(), strict=True):
        assert data.names["label"][label] == path.parent.name
    lines = [
        f"{kind}/{i}.{end},{word}" for kind, end in (("wave", "mp4"), ("jump", "gif")) for i, word in enumerate("bab")
    ]
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *lines]))
    data = small(tmp_path)
    assert data.names == {"label": ["a", "b"]} and data.classes == {"label": 2}
    for (path, _), label in zip(data.train.places, data.train.label.tolist(), strict=True):
        assert data.names["label"][label] == "bab"[int(path.stem)]
    (tmp_path / "captions.csv").write_text("file,caption\nwave/0.mp4,a\n")
    with pytest.raises(ValueError, match="has no caption for jump/0.gif"):
        small(tmp_path)
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *lines, "wave/3.mp4,a, b"]))
    with pytest.raises(
        ValueError, match="line 8 of .*captions.csv has too many cells: put a text with commas in quotes"
    ):
        small(tmp_path)
    (tmp_path / "captions.csv").write_text("wave/0.mp4,a\n")
    with pytest.raises(ValueError, match="first line `file,caption`"):
        small(tmp_path)


def test_the_longer_side_is_cropped_evenly(tmp_path):
    frame = np.zeros((16, 32, 3), np.uint8)
    frame[:, 8:16, 0], frame[:, :8] = 255, 255  # white is cut away, red stays on the left
    black = frame.copy()
    black[:, :8] = 0  # so that the frames differ
    for i in range(3):
        save_gif([frame, black] * 5, tmp_path / f"{i}.gif", 100)
    clip = small(tmp_path, resolution=16).train[torch.tensor([0])]["data"][0]
    assert (clip[0, :, :, :7] > 0.9).all() and (clip[1:, :, :, :7] < -0.9).all() and (clip[:, :, :, 9:] < -0.9).all()


def encoded(path, frames, fps=10, codec="libx264", size=(16, 24), **settings):
    """A video file of grey ramps with settings of the stream or of the container."""
    options = {"movflags": "faststart"} if settings.pop("index_first", False) else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps, width=size[1], height=size[0], pix_fmt="yuv420p")
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
        container.mux(stream.encode())


def canvas(path, width, height, frames=3):
    """A GIF of single white pixels on a canvas of any size."""
    dot = b"\x21\xf9\x04\x00\x0a\x00\x00\x00\x2c" + struct.pack("<4H", 0, 0, 1, 1) + b"\x00\x02\x02\x44\x01\x00"
    path.write_bytes(
        b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff" + dot * frames + b";"
    )


def test_what_is_damaged_or_no_video_is_named_and_left_out(tmp_path):
    for i in range(3):
        video(tmp_path / f"{i}.mp4")
    noise = np.random.RandomState(0).randint(0, 256, (40, 48, 64, 3)).astype(np.uint8)
    whole = encoded(tmp_path / "cut.mp4", noise, size=(48, 64), index_first=True).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut_in_the_index.mp4").write_bytes((tmp_path / "0.mp4").read_bytes()[:600])
    (tmp_path / "hole.mp4").write_bytes(whole[: len(whole) // 2] + bytes(3000) + whole[len(whole) // 2 + 3000 :])
    (tmp_path / "empty.webm").write_bytes(b"")
    (tmp_path / "junk.mp4").write_bytes(b"no video" * 100)
    (tmp_path / "page.MOV").write_bytes(b"<!doctype html><title>404</title>" * 50)
    video(tmp_path / "short.gif", frames=3)
    video(tmp_path / "still.gif", frames=1)
    canvas(tmp_path / "vast.gif", 16_000, 16_000)
    sound(tmp_path / "sound.mp4")
    (tmp_path / "notes.wmv").write_bytes(b"x")
    said = (
        r"left out: cut.mp4 \(fails after .* s: Invalid data.*\), cut_in_the_index.mp4 \(Invalid data.*\), empty.webm \(.*\), "
        r"hole.mp4 \(fails after .* s: Invalid data.*\), junk.mp4 \(Invalid data.*\), page.MOV \(Invalid data.*\), short.gif "
        r"\(is shorter than a clip of 0.8 s\), sound.mp4 \(has no pictures\), still.gif \(has no two frames with a time\), "
        r"vast.gif \(has pictures of 16000 x 16000 pixels.*\); passed over, for .mp4, .* are read: 1 .wmv \(notes.wmv\)"
    )
    for _ in range(2):  # the second time the folder's index tells it
        with pytest.warns(UserWarning, match=said):
            data = small(tmp_path)
        assert len(data.train) + len(data.val) + len(data.test) == 15


def test_a_file_that_breaks_later_is_named_and_the_next_clip_stands_in(tmp_path):
    for i in range(4):
        video(tmp_path / "ab"[i % 2] / f"{i}.mp4", frames=8 + 8 * i)
    data = small(tmp_path)
    paths, labels = [path for path, _ in data.train.places], data.train.label.tolist()
    assert len(set(paths)) == 2
    paths[0].write_bytes(b"no video")
    next_one = next(i for i, path in enumerate(paths) if path != paths[0])
    with pytest.warns(UserWarning, match=rf"{paths[0].name} cannot be decoded at 0.00 s \(Invalid data.*stands in"):
        batch = data.train[torch.tensor([0, next_one])]
    assert torch.equal(batch["data"][0], batch["data"][1]) and batch["label"].tolist() == [labels[next_one]] * 2
    data.train.places[next_one][0].unlink()
    with pytest.raises(ValueError, match=f"none of {len(data.train)} can be read: .*cannot be decoded .* more"):
        data.train[torch.tensor([0])]


def turned(path, matrix):
    """A file of one red corner with another display matrix: right, down in 16.16 fixed point."""
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:8, :16, 0] = 255
    encoded(path, [picture, picture // 2] * 5, size=(16, 32), fps=10, codec="mpeg4", bit_rate=2_000_000)
    one = [b"".join(v.to_bytes(4, "big", signed=True) for v in row) for row in ((65536, 0, 0), (0, 65536, 0))]
    content, (a, b, c, d) = path.read_bytes(), matrix
    track = content.index(b"tkhd")  # the movie's own matrix comes before it
    place = content.index(one[0] + one[1], track)
    rows = b"".join((v * 65536).to_bytes(4, "big", signed=True) for v in (a, b, 0, c, d, 0))
    path.write_bytes(content[:place] + rows + content[place + len(rows) :])


@pytest.mark.parametrize(
    "matrix, place",  # where right and down of the file point to, and the corner in which a player shows the red
    [
        ((1, 0, 0, 1), (0, 0)),
        ((0, 1, -1, 0), (0, 1)),  # a quarter clockwise
        ((-1, 0, 0, -1), (1, 1)),
        ((0, -1, 1, 0), (1, 0)),  # a quarter the other way
        ((-1, 0, 0, 1), (0, 1)),  # mirrored
        ((0, 1, 1, 0), (0, 0)),  # mirrored and turned
    ],
)
def test_a_turned_video_stands_as_a_player_shows_it(tmp_path, matrix, place):
    turned(tmp_path / "0.mp4", matrix)
    [frame] = read(tmp_path / "0.mp4", [0.0])
    assert frame.shape == ((16, 32, 3) if matrix[0] else (32, 16, 3))
    red = [
        [frame[i * frame.shape[0] // 2 :, j * frame.shape[1] // 2 :][2:6, 2:6, 0].mean() for j in (0, 1)]
        for i in (0, 1)
    ]
    assert np.argwhere(np.array(red) > 128).tolist() == [list(place)]


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    encoded(tmp_path / "wide.mp4", ramp(8), sample_aspect_ratio=Fraction(2, 1))
    assert read(tmp_path / "wide.mp4", [0.0])[0].shape == (16, 48, 3)
    frame = av.VideoFrame.from_ndarray(ramp(1)[0], format="rgb24")
    shapes = {
        Fraction(1, 2): (16, 12, 3),
        None: (16, 24, 3),
        Fraction(1, 200): (16, 24, 3),
        Fraction(200, 1): (16, 24, 3),
    }
    assert {aspect: upright(frame, aspect).shape for aspect in shapes} == shapes  # 200 is damage


def test_a_long_thin_video_is_not_enlarged_as_a_whole(tmp_path):
    for i in range(3):
        canvas(tmp_path / f"{i}.gif", 60_000, 2, frames=12)
    assert small(tmp_path, resolution=64).train[torch.tensor([0])]["data"].shape == (1, 3, 4, 64, 64)


def test_hidden_files_and_the_index_are_not_spoken_of(tmp_path):
    for i in range(3):
        video(tmp_path / f"{i}.mp4")
        (tmp_path / f"._{i}.mp4").write_bytes(b"debris")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(tmp_path)
        assert len(small(tmp_path).train.places) == 5


def test_all_is_decoded_once_and_again_when_it_changes(tmp_path, monkeypatch):
    for i in range(3):
        video(tmp_path / f"{i}.mp4")
    small(tmp_path)
    looked = []
    monkeypatch.setattr(module, "probe", lambda path: looked.append(path.name) or probe(path))
    small(tmp_path)
    assert looked == []
    video(tmp_path / "1.mp4", frames=20)
    (tmp_path / "2.mp4").rename(tmp_path / "3.mp4")
    small(tmp_path)
    assert sorted(looked) == ["1.mp4", "3.mp4"]


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="none is not a folder"):
        small(tmp_path / "none")
    video(tmp_path / "a" / "0.gif")
    with pytest.raises(ValueError, match="holds 1 videos that can be used, too few"):
        small(tmp_path)
    for i in range(3):
        video(tmp_path / f"{i}.gif")
    with pytest.raises(ValueError, match="both flat and in class folders"):
        small(tmp_path)
    for settings, message in (
        ({"channels": 2}, "channels must be 1"),
        ({"frames": 1}, "frames must be at least 2, got 1"),
        ({"fps": 0}, "must be positive"),
        ({"stride": -1.0}, "must be positive"),
        ({"val": 1.0}, r"lie in \(0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            small(tmp_path, **settings)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'distillkit\[video\]'"):
        small(tmp_path)


@pytest.mark.skipif(not CLIPS.is_dir(), reason="DISTILLKIT_TEST_DATA names no folder with it")
def test_gestures(tmp_path):
    for path in CLIPS.glob("*.mkv"):
        (tmp_path / path.name).symlink_to(path)
    data = small(tmp_path, frames=8, fps=8.0, resolution=16)
    assert len({path for path, _ in data.train.places}) == 16
    clip = data.train[torch.tensor([3])]["data"]
    assert clip.shape == (1, 3, 8, 16, 16) and clip.diff(dim=2).abs().max() > 0.01
