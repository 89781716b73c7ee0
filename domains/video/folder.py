"""Folders of video files, read with PyAV. T: frames; H, W: height, width; C: channels."""

from __future__ import annotations

import csv
import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distillkit.data import Batch, split
from distillkit.errors import optional
from distillkit.files import write_text
from domains.image.data import cropped, flat, from_uint8
from domains.video.data import VideoData

SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif")
INDEX = ".distillkit_index.json"
SLACK = 1e-3  # seconds by which times in files are rounded


class VideoFolder(VideoData):
    """Clips from the videos in a folder, decoded batch by batch: mp4, webm, mkv, mov, avi, gif.

    A clip is `frames` frames at `fps` frames a second; of a video with another rate the frame is taken that is on show at
    the time, so a slower one repeats frames. A video gives a clip every `stride` seconds, all of them to the same part
    (training, validation or test), which follows from a hash of its name. The shorter side is resized to `resolution`
    (antialiased bicubic), then the centre is cropped. Sub-folders of the first level are the classes `label`, in
    alphabetical order. A file `captions.csv` in the folder, with the columns `file` and `caption`, takes their place: then
    every different caption is a class, in alphabetical order (`names` has them).

    What cannot be read or is shorter than a clip is named in a warning and left out. How long files are is kept in
    `.distillkit_index.json` in the folder, where it may be written.

    Args:
        path: the folder.
        frames: T.
        fps: frames a second.
        resolution: height and width, in pixels.
        channels: 1 (grey) or 3 (RGB).
        stride: seconds between the starts of two clips of a video; None means the length of a clip, so that none overlap.
        val, test: shares of the videos, in (0, 1).
        seed: of the split.
        workers: threads that decode.
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
        workers: int = 4,
        given: int = 0,
        batch_size: int = 8,
        i3d: str | None = None,
    ):
        super().__init__(given, batch_size, i3d)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
        if frames < 2 or resolution < 1 or workers < 1:
            raise ValueError(
                f"a clip has at least 2 frames of 1 pixel and 1 worker, got {frames}, {resolution}, {workers}"
            )
        if not fps > 0 or not (stride is None or stride > 0):
            raise ValueError(f"fps and stride must be positive, got {fps} and {stride}")
        for name, share in (("val", val), ("test", test)):
            if not 0 < share < 1:
                raise ValueError(f"{name} is a share of the videos and must lie in (0, 1), got {share}")
        self.path, self.frames, self.fps, self.resolution, self.channels = path, frames, fps, resolution, channels
        self.stride, self.shares, self.seed, self.workers = stride or frames / fps, (val, test), seed, workers
        self.event_shape = (channels, frames, resolution, resolution)

    names: list[str] = []

    def load(self) -> tuple[Clips, Clips, Clips]:
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise ValueError(f"{self.path} is not a folder of videos; give the path of one that exists")
        known = index(root, self.workers)
        starts, left_out = {}, []
        for name, facts in known.items():
            if facts["reason"]:
                left_out.append(f"{name} ({facts['reason']})")
                continue
            spare = facts["end"] - facts["start"] - (self.frames - 1) / self.fps + SLACK
            if spare < 0:
                left_out.append(f"{name} (is shorter than a clip of {self.frames / self.fps:.3g} s)")
            else:
                starts[name] = [facts["start"] + k * self.stride for k in range(int(spare / self.stride) + 1)]
        if left_out:
            listed = ", ".join(left_out[:10]) + (f" and {len(left_out) - 10} more" if len(left_out) > 10 else "")
            warnings.warn(f"{len(left_out)} files are left out: {listed}", stacklevel=2)
        val, test = (max(1, round(share * len(starts))) for share in self.shares)
        if len(starts) - val - test < 1:
            raise ValueError(
                f"{root} holds {len(starts)} videos that can be used, too few to train, validate and test on; "
                f"give a folder with at least 3 {', '.join(SUFFIXES)} files"
            )
        videos = list(starts)
        homes = captions(root, videos) or classes(root, videos)
        self.names = sorted(set(homes))
        self.classes = {"label": len(self.names)} if homes else {}
        keys = [hashlib.blake2b(f"{self.seed}/{name}".encode()).hexdigest() for name in videos]
        order = sorted(range(len(videos)), key=keys.__getitem__)
        groups = [self.names.index(home) for home in homes] if homes else [0] * len(videos)
        return tuple(
            Clips(
                [(root / videos[i], start) for i in part for start in starts[videos[i]]],
                [groups[i] for i in part for _ in starts[videos[i]]] if homes else None,
                self.decode,
                self.with_first,
                self.workers,
            )
            for part in split(groups, val, test, order=order)
        )

    def decode(self, path: Path, start: float) -> Tensor:
        """One clip as [C, T, resolution, resolution] in [-1, 1]."""
        try:
            frames = read(path, [start + k / self.fps for k in range(self.frames)])
        except Exception as error:  # readers of many formats fail in many ways
            raise ValueError(f"{path} cannot be decoded ({error}); delete it or save it anew") from None
        pictures = [cropped(flat(Image.fromarray(frame), self.channels), self.resolution) for frame in frames]
        return from_uint8(np.stack([np.asarray(picture) for picture in pictures]), str(path)).movedim(1, 0)


class Clips:
    """Clips as a data set: `clips[indices]` decodes these, in parallel, into a batch."""

    def __init__(
        self,
        places: Sequence[tuple[Path, float]],
        label: Sequence[int] | None,
        decode: Callable[[Path, float], Tensor],
        with_first: Callable[[Batch], Batch],
        workers: int,
    ):
        self.places, self.decode, self.with_first, self.workers = list(places), decode, with_first, workers
        self.label = None if label is None else torch.tensor(label, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: Tensor) -> Batch:
        with ThreadPoolExecutor(self.workers) as pool:
            clips = list(pool.map(lambda i: self.decode(*self.places[i]), indices.tolist()))
        batch = {"data": torch.stack(clips)} | ({} if self.label is None else {"label": self.label[indices]})
        return self.with_first(batch)


def index(root: Path, workers: int = 4) -> dict[str, dict[str, Any]]:
    """Of every video under `root`, by name, what `probe` says; from the folder's index where a file is as it was."""
    file = root / INDEX
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())

    def look(path: Path) -> dict[str, Any]:
        stamp = [path.stat().st_size, path.stat().st_mtime_ns]
        known = kept.get(path.relative_to(root).as_posix())
        return known if isinstance(known, dict) and known.get("stamp") == stamp else {"stamp": stamp, **probe(path)}

    with ThreadPoolExecutor(workers) as pool:
        found = dict(zip((p.relative_to(root).as_posix() for p in paths), pool.map(look, paths), strict=True))
    if found != kept:
        try:
            write_text(file, json.dumps(found, indent=0))
        except OSError as error:
            warnings.warn(f"{file} cannot be written ({error}), so every run has to look at all files", stacklevel=3)
    return found


def probe(path: Path) -> dict[str, Any]:
    """`start` and `end`, the times in seconds of the first and the last frame, and `reason`: why it cannot be used, or None.

    Reads all packets but decodes the first frame only.
    """
    av = import_av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return {"start": 0.0, "end": 0.0, "reason": "has no pictures"}
            next(container.decode(video=0))
        with av.open(str(path)) as container:
            times = [float(p.pts * p.time_base) for p in container.demux(video=0) if p.pts is not None]
    except (av.error.FFmpegError, StopIteration, OSError) as error:
        return {"start": 0.0, "end": 0.0, "reason": f"cannot be read: {type(error).__name__}"}
    if len(times) < 2:
        return {"start": 0.0, "end": 0.0, "reason": "has no two frames with a time"}
    return {"start": min(times), "end": max(times), "reason": None}


def read(path: Path, times: Sequence[float]) -> list[np.ndarray]:
    """The frames on show at rising `times` (seconds), each uint8 [H, W, 3].

    Raises:
        ValueError: the file ends before.
    """
    for seek in (True, False):  # from the nearest key frame before; from the beginning where a format cannot seek
        taken = _read(path, times, seek)
        if taken:
            return taken
    raise ValueError(f"it has no frame at {times[0]:.2f} s")


def _read(path: Path, times: Sequence[float], seek: bool) -> list[np.ndarray]:
    av = import_av()
    taken, shown = [], None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if seek:
            try:
                container.seek(int((times[0] + SLACK) / stream.time_base), stream=stream)
            except av.error.FFmpegError:
                return []
        for frame in container.decode(stream):
            if frame.time is None:
                continue
            while len(taken) < len(times) and frame.time > times[len(taken)] + SLACK:
                if shown is None:  # the seek went too far
                    return []
                taken.append(shown)
            if len(taken) == len(times):
                break
            shown = frame
    if shown is None:
        return []
    if len(times) - len(taken) > 1:  # a whole file ends with the last of them, or later
        raise ValueError(f"it ends at {shown.time:.2f} s, before {times[-1]:.2f} s")
    taken += [shown] * (len(times) - len(taken))
    arrays = {id(frame): frame.to_ndarray(format="rgb24") for frame in taken}
    return [arrays[id(frame)] for frame in taken]


def classes(root: Path, videos: Sequence[str]) -> list[str]:
    """The first-level folder of each video; empty if all lie flat."""
    homes = [Path(name).parts[0] if len(Path(name).parts) > 1 else "" for name in videos]
    if any(homes) and not all(homes):
        raise ValueError(f"{root} holds videos both flat and in class folders; move the flat ones into a folder")
    return homes if any(homes) else []


def captions(root: Path, videos: Sequence[str]) -> list[str]:
    """The caption of each video from `captions.csv`; empty if there is no such file."""
    file = root / "captions.csv"
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    if not rows or not {"file", "caption"} <= set(rows[0]):
        raise ValueError(f"{file} must have a first line `file,caption` and a line for every video")
    said = {row["file"]: row["caption"] for row in rows}
    if lacking := [name for name in videos if not said.get(name)]:
        raise ValueError(f"{file} has no caption for {', '.join(lacking[:5])}; add a line for it, or remove the file")
    return [said[name] for name in videos]


def import_av() -> Any:
    """`av`, or how to get it."""
    return optional("av", "video", "videos are read and written with")
