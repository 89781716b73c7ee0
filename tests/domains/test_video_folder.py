"""Folders of videos: which frame is taken, which file goes where, what is left out."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from distillkit.evaluation.strips import save_gif
from domains.video import folder as module
from domains.video.folder import INDEX, VideoFolder, probe, read
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
    settings = {"frames": 4, "fps": 5.0, "resolution": 8, "workers": 2} | settings
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
    assert facts["reason"] is None and facts["end"] - facts["start"] == pytest.approx(3.9, abs=0.02)
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
    assert data.classes == {"label": 2} and data.names == ["jump", "wave"] and data.event_shape == (1, 4, 8, 8)
    batch = data.train[torch.arange(len(data.train))]
    assert torch.equal(batch["first"], batch["data"][:, :, :2])
    for (path, _), label in zip(data.train.places, batch["label"].tolist(), strict=True):
        assert data.names[label] == path.parent.name
    lines = [
        f"{kind}/{i}.{end},{word}" for kind, end in (("wave", "mp4"), ("jump", "gif")) for i, word in enumerate("bab")
    ]
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *lines]))
    data = small(tmp_path)
    assert data.names == ["a", "b"] and data.classes == {"label": 2}
    for (path, _), label in zip(data.train.places, data.train.label.tolist(), strict=True):
        assert data.names[label] == "bab"[int(path.stem)]
    (tmp_path / "captions.csv").write_text("file,caption\nwave/0.mp4,a\n")
    with pytest.raises(ValueError, match="has no caption for jump/0.gif"):
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


def test_what_is_broken_or_short_is_named_and_left_out(tmp_path):
    for i in range(3):
        video(tmp_path / f"{i}.mp4")
    (tmp_path / "junk.mp4").write_bytes(b"no video" * 100)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "0.mp4").read_bytes()[:600])
    video(tmp_path / "short.gif", frames=3)
    message = r"3 files are left out: cut.mp4 \(cannot be read.*junk.mp4 \(cannot be read.*short.gif \(is shorter"
    with pytest.warns(UserWarning, match=message):
        data = small(tmp_path)
    assert len(data.train) + len(data.val) + len(data.test) == 15
    with pytest.warns(UserWarning, match=message):  # the index tells it again
        small(tmp_path)


def test_the_index_saves_looking_again_and_follows_changes(tmp_path, monkeypatch):
    for i in range(3):
        video(tmp_path / f"{i}.mp4")
    small(tmp_path)
    kept = json.loads((tmp_path / INDEX).read_text())
    assert sorted(kept) == ["0.mp4", "1.mp4", "2.mp4"] and kept["0.mp4"]["end"] == pytest.approx(3.9, abs=0.1)
    looked = []
    monkeypatch.setattr(module, "probe", lambda path: looked.append(path.name) or probe(path))
    small(tmp_path)
    assert looked == []
    video(tmp_path / "1.mp4", frames=20)
    (tmp_path / "2.mp4").rename(tmp_path / "3.mp4")
    small(tmp_path)
    assert sorted(looked) == ["1.mp4", "3.mp4"]
    (tmp_path / INDEX).write_text("{no json")
    small(tmp_path)
    assert sorted(looked[2:]) == ["0.mp4", "1.mp4", "3.mp4"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".mp4", ".json")] == []

    def refused(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(module, "write_text", refused)
    (tmp_path / INDEX).unlink()
    with pytest.warns(UserWarning, match="cannot be written"):
        small(tmp_path)


def test_a_file_that_breaks_later_is_named(tmp_path):
    for i in range(3):
        video(tmp_path / f"{i}.mp4")
    data = small(tmp_path)
    data.train.places[0][0].write_bytes(b"no video")
    with pytest.raises(ValueError, match=f"{data.train.places[0][0].name} cannot be decoded"):
        data.train[torch.tensor([0])]
    video(data.train.places[1][0], frames=10)
    with pytest.raises(ValueError, match="cannot be decoded"):
        data.train[torch.tensor([len(data.train) - 1])]


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="not a folder of videos"):
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
    (tmp_path / INDEX).unlink(missing_ok=True)
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
