"""Folders of video files, read with PyAV. T: frames; H, W: height, width; C: channels."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distillkit import checks
from distillkit.data import Batch, split
from distillkit.errors import optional
from distillkit.feeding import in_parallel
from distillkit.pipelines.captions import Rows, alike
from distillkit.sources import Source, drawn, first_whole, listed
from domains.image.reading import MOST_PIXELS, cropped, flat, from_uint8
from domains.video.data import VideoData

SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif")
CAPTIONS = "captions.csv"
SLACK = 1e-3  # seconds by which times in files are rounded
WIDEST = 8  # pixels are at most so many times wider than high, or the other way round
LONGEST = 10**6  # seconds (12 days): a file that says it lasts longer is damaged


class VideoFolder(VideoData):
    """Clips from the videos in a folder, decoded batch by batch: mp4, webm, mkv, mov, avi, gif.

    A clip is `frames` frames at `fps` frames a second. Of a video with another rate the frame is
    taken that is on show at the time, so a slower one repeats frames. A video gives a clip every
    `stride` seconds, all of them to the same part (training, validation or test), which follows
    from a hash of its name. The shorter side is resized to `resolution` (antialiased bicubic), then
    the centre is cropped.

    Sub-folders of the first level are the classes `label`, in alphabetical order. A file
    `captions.csv` in the folder, with the columns `file` and `caption`, takes their place: then
    every different caption is a class, in alphabetical order (`names` has them).

    Frames stand as a player shows them: turned and mirrored by the file's display matrix, their
    pixels made square.

    Videos that are damaged, without pictures or shorter than a clip are found before training,
    named in a warning and left out. For that all files are decoded once; their lengths are kept in
    `.distillkit-videos.json` in the folder, where it may be written. For a clip of a file that
    breaks later the next clip stands in.

    Args:
        path: the folder.
        frames: T.
        fps: frames a second.
        resolution: height and width, in pixels.
        channels: 1 (grey) or 3 (RGB).
        stride: seconds between the starts of two clips of a video; None means the length of a clip,
            so that none overlap.
        val, test: shares of the videos, in (0, 1).
        seed: of the split.
        workers: processes that decode training batches; 0 leaves it to threads, None chooses.
        given, batch_size, i3d: as in `VideoData`.
    """

    def __init__(
        self,
        path: str,
        frames: int = 16,
        fps: float = 8.0,
        resolution: int = 32,
        channels: int = 3,
        stride: float | None = None,
        val: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        workers: int | None = 0,
        given: int = 0,
        batch_size: int = 8,
        i3d: str | None = None,
    ):
        super().__init__(given, batch_size, i3d)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
        checks.whole(2, 10_000, frames=frames)
        checks.whole(1, 10_000, resolution=resolution)
        checks.workers(workers=workers)
        checks.positive(fps=fps)
        stride = frames / fps if stride is None else stride
        checks.positive(stride=stride)
        if given >= frames:
            raise ValueError(f"given must leave something of the {frames} frames to make, got {given}")
        checks.shares(val=val, test=test)
        checks.seed(seed=seed)
        self.path, self.frames, self.fps, self.resolution, self.channels = path, frames, fps, resolution, channels
        self.stride, self.shares, self.seed, self.workers = stride, (val, test), seed, workers
        self.event_shape = (channels, frames, resolution, resolution)

    names: list[str] = []

    def load(self) -> tuple[Clips, Clips, Clips]:
        import_av()
        source, faults, starts = Source(self.path, SUFFIXES, "video", beside=(CAPTIONS,)), {}, {}
        for path, facts in source.facts(probe).items():
            if facts["fault"]:
                faults[path] = facts["fault"]
                continue
            spare = facts["end"] - facts["start"] - (self.frames - 1) / self.fps + SLACK
            if spare < 0:
                faults[path] = f"is shorter than a clip of {self.frames / self.fps:.3g} s"
            else:
                starts[path] = [facts["start"] + k * self.stride for k in range(int(spare / self.stride) + 1)]
        videos = source.without(faults)
        val, test = (max(1, round(share * len(videos))) for share in self.shares)
        if len(videos) - val - test < 1:
            raise ValueError(
                f"{source.root} holds {len(videos)} videos that can be used, too few to train, validate and test on; "
                f"give a folder with at least 3 {', '.join(SUFFIXES)} files"
            )
        names = [source.name(video) for video in videos]
        classes, label = captions(source.root, names) or source.classes(videos)
        self.names = {"label": classes} if label else {}
        self.classes = {"label": len(classes)} if label else {}
        settings = self.settings()
        return tuple(
            Clips(
                [(videos[i], start) for i in part for start in starts[videos[i]]],
                [label[i] for i in part for _ in starts[videos[i]]] if label else None,
                settings.decode,
                settings.with_first,
            )
            for part in split(label or [0] * len(videos), val, test, order=drawn(names, self.seed))
        )

    def decode(self, path: Path, start: float) -> Tensor:
        """One clip as [C, T, resolution, resolution] in [-1, 1]."""
        try:
            frames = read(path, [start + k / self.fps for k in range(self.frames)], self.small)
        except Exception as error:  # readers of many formats fail in many ways
            raise ValueError(f"{path} cannot be decoded at {start:.2f} s ({_why(error)})") from None
        return from_uint8(np.stack(frames), str(path)).movedim(1, 0)

    def small(self, frame: np.ndarray) -> np.ndarray:
        """A frame as `square` makes it."""
        return square(frame, self.channels, self.resolution)


class Clips:
    """Clips as a data set: `clips[indices]` decodes these, in parallel, into a batch."""

    def __init__(
        self,
        places: Sequence[tuple[Path, float]],
        label: Sequence[int] | None,
        decode: Callable[[Path, float], Tensor],
        with_first: Callable[[Batch], Batch],
    ):
        self.places, self.decode, self.with_first = list(places), decode, with_first
        self.label = None if label is None else torch.tensor(label, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: Tensor) -> Batch:
        def read(i: int) -> tuple[int, Tensor]:
            return first_whole(i, len(self), lambda row: self.decode(*self.places[row]))

        rows, clips = zip(*in_parallel(read, indices.tolist()), strict=True)
        batch = {"data": torch.stack(clips)} | ({} if self.label is None else {"label": self.label[list(rows)]})
        return self.with_first(batch)


def square(frame: np.ndarray, channels: int, resolution: int) -> np.ndarray:
    """A frame [H, W, 3] as [resolution, resolution] or [resolution, resolution, 3], uint8."""
    return np.asarray(cropped(flat(Image.fromarray(frame), channels), resolution))


def probe(path: Path) -> dict[str, Any]:
    """The times of the first and the last frame, and why a video cannot be used.

    Decodes the whole file.

    Returns:
        `start` and `end` in seconds, and `fault`: the reason, or None.
    """
    av, times, fault = import_av(), [], None
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(stream_of(container)):
                if frame.time is not None:
                    times.append(frame.time)
    except Exception as error:  # readers of many formats fail in many ways
        fault = (f"fails after {times[-1]:.2f} s: " if times else "") + _why(error)
    start, end = min(times, default=0.0), max(times, default=0.0)
    if fault is None and len(times) < 2:
        fault = "has no two frames with a time"
    if end - start > LONGEST:
        fault = f"says that it lasts {end - start:.3g} s"
    return {"start": start, "end": end, "fault": fault}


def stream_of(container: Any) -> Any:
    """The stream of pictures in an open file.

    Raises:
        ValueError: there are none, or they are too large.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise ValueError("has no pictures")
    if stream.width * stream.height > MOST_PIXELS:
        raise ValueError(
            f"has pictures of {stream.width} x {stream.height} pixels, more than {MOST_PIXELS}: shrink them"
        )
    return stream


def read(path: Path, times: Sequence[float], keep: Callable[[np.ndarray], Any] = np.asarray) -> list[Any]:
    """The results of `keep` for the frames on show at rising `times` (seconds).

    Args:
        keep: a function of a frame, uint8 [H, W, 3], as players show it.

    Raises:
        ValueError: the file ends before.
    """
    for seek in (True, False):  # from the nearest key frame before; from the beginning where a format cannot seek
        taken = _read(path, times, keep, seek)
        if taken:
            return taken
    raise ValueError(f"it has no frame at {times[0]:.2f} s")


def _read(path: Path, times: Sequence[float], keep: Callable[[np.ndarray], Any], seek: bool) -> list[Any]:
    av = import_av()
    taken, shown = [], None
    with av.open(str(path)) as container:
        stream = stream_of(container)
        if seek:
            try:
                container.seek(int((times[0] + SLACK) / stream.time_base), stream=stream)
            except av.error.FFmpegError:
                return []
        for frame in container.decode(stream):
            if frame.time is None:
                continue
            due = sum(time < frame.time - SLACK for time in times[len(taken) :])
            if due and shown is None:  # the seek went too far
                return []
            if due:
                taken += [keep(upright(shown, stream.sample_aspect_ratio))] * due
            if len(taken) == len(times):
                return taken
            shown = frame
    if shown is None:
        return []
    left = len(times) - len(taken)
    if left > 1:  # a whole file ends with the last of them, or later
        raise ValueError(f"it ends at {shown.time:.2f} s, before {times[-1]:.2f} s")
    return taken + [keep(upright(shown, stream.sample_aspect_ratio))] * left


def upright(frame: Any, aspect: Fraction | None) -> np.ndarray:
    """A frame as players show it, uint8 [H, W, 3].

    Its pixels are square; it is turned and mirrored as its display matrix says.

    Args:
        frame: of PyAV.
        aspect: width of a pixel over its height, as the file says it; None, and a damaged value,
            count as 1.
    """
    wide = aspect if aspect and 1 / WIDEST <= aspect <= WIDEST else 1
    shown = frame.to_ndarray(format="rgb24", width=max(1, round(frame.width * wide)), height=frame.height)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return shown
    right_x, right_y, _, down_x, down_y = np.frombuffer(bytes(matrix), "<i4")[:5]  # where these ways of the file point
    if abs(right_y) > abs(right_x):
        shown, right_x, down_y = shown.swapaxes(0, 1), down_x, right_y
    return shown[:: -1 if down_y < 0 else 1, :: -1 if right_x < 0 else 1]


def captions(root: Path, videos: Sequence[str]) -> tuple[list[str], list[int]] | None:
    """The captions in `captions.csv`, and each video's number among them; None without a file.

    Every different caption comes once, in alphabetical order.
    """
    file = root / CAPTIONS
    if not file.is_file():
        return None
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(Rows(file, lines))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is not readable as csv in UTF-8 ({error}); save it anew") from None
    if not rows or not {"file", "caption"} <= set(rows[0]):
        raise ValueError(f"{file} must have a first line `file,caption` and a line for every video")
    said = {alike(row["file"] or ""): row["caption"] for row in rows}
    words = [said.get(alike(name)) for name in videos]
    if lacking := [name for name, word in zip(videos, words, strict=True) if not word]:
        raise ValueError(f"{file} has no caption for {listed(lacking)}; add a line for each, or remove the file")
    names = sorted({*words})
    number = {name: i for i, name in enumerate(names)}
    return names, [number[word] for word in words]


def import_av() -> Any:
    """The package `av`, or an error that says how to get it."""
    return optional("av", "video", "videos are read and written with")


def _why(error: Exception) -> str:
    """An error's own words, without the file's path and the numbers of FFmpeg."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
