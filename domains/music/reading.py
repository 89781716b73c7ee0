"""Sound files, and pieces of them at any rate. C: channels; N: samples."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillkit.errors import optional
from domains.music.resample import reach, resample

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff", ".m4a", ".mp4", ".aac")
# that PyAV looks for in a file, whatever its suffix says: none of them leads to other files
FORMATS = "aac,aiff,asf,flac,matroska,webm,mov,mp4,m4a,mp3,ogg,wav,w64"
RATES = (1_000, 1_000_000)  # Hz
PREROLL = 0.5  # seconds that are decoded before a piece: MP3 takes bits from many frames before
PEAK, LEVEL = 1e-2, 1e-3  # a sound whose peak or root mean square is lower is silent: -40 and -60 dB


def probe(path: Path) -> dict[str, Any]:
    """What a sound file holds. Decodes the whole file: what a header says may be an estimate.

    Returns:
        `reader`, one of `READERS`; `rate` in Hz; `samples`, of a channel; `peak`, the largest
        magnitude; and `fault`: why the file cannot be used, or None.
    """
    facts = {"reader": "soundfile", "rate": 0, "samples": 0, "peak": 0.0, "fault": None}
    try:
        if not path.stat().st_size:
            raise ValueError("is empty")
        facts["reader"] = reader_of(path)
        with READERS[facts["reader"]](path) as file:
            facts["rate"] = file.samplerate
            facts |= _heard(file)
    except Exception as error:  # readers of many formats fail in many ways
        facts["fault"] = why(error)
    return facts


def _heard(file: Any) -> dict[str, Any]:
    """Number of samples and peak of an open file.

    Raises:
        ValueError: it cannot be used.
    """
    low, high = RATES
    if not low <= file.samplerate <= high:
        raise ValueError(f"says it has {file.samplerate} samples a second")
    samples, peak, loud = 0, 0.0, False
    while len(x := file.read(file.samplerate, dtype="float32", always_2d=True)):
        if not np.isfinite(x).all():
            raise ValueError(f"holds NaN or infinity after {samples / file.samplerate:.2f} s")
        samples, peak = samples + len(x), max(peak, float(np.abs(x).max()))
        loud = loud or is_loud(torch.from_numpy(x))
    if not samples:
        raise ValueError("holds no samples")
    if not loud:
        raise ValueError(f"is silent: no second of it has a peak above {PEAK:g} and is louder than -60 dB")
    return {"samples": samples, "peak": peak}


def is_loud(x: Tensor) -> bool:
    """Whether a sound in [-1, 1] is more than silence."""
    return bool(x.abs().max() >= PEAK and x.square().mean().sqrt() >= LEVEL) if x.numel() else False


def read(path: Path, facts: Mapping[str, Any], start: int, samples: int, rate: int, channels: int) -> Tensor:
    """A piece [channels, N] of a sound in [-1, 1]; N is `samples`, or less where the file ends.

    A file with a peak above 1 is made quieter as a whole. The piece is what the whole file would be
    there if it were resampled, for whole periods of both rates are read, and what the filter
    reaches.

    Args:
        path: the file.
        facts: as of `probe`.
        start, samples: of the piece, at `rate`.
        rate: in Hz.
        channels: see `mixed`.

    Raises:
        ValueError: it cannot be decoded; names the file.
    """
    old = facts["rate"]
    unit = math.gcd(old, rate)
    before, after = old // unit, rate // unit  # samples of a period
    margin = math.ceil(reach(old, rate) / before) if old != rate else 0
    first, last = max(0, start // after - margin), -(-(start + samples) // after) + margin
    try:
        x = _decoded(path, facts["reader"], first * before, (last - first) * before)
    except Exception as error:  # readers of many formats fail in many ways
        raise ValueError(f"{path} cannot be decoded at {start / rate:.2f} s ({why(error)})") from None
    x = resample(mixed(x, channels) / max(1.0, facts["peak"]), old, rate)
    return x[:, start - first * after :][:, :samples].clamp(-1, 1)


def mixed(x: Tensor, channels: int) -> Tensor:
    """A sound with this number of channels: as it is, or their mean, copied to each."""
    return x if len(x) == channels else x.mean(0, keepdim=True).repeat(channels, 1)


def _decoded(path: Path, reader: str, start: int, samples: int) -> Tensor:
    """Samples of a file at its own rate, [C, N]."""
    with READERS[reader](path) as file:
        before = min(start, int(PREROLL * file.samplerate))
        file.seek(start - before)
        x = torch.from_numpy(file.read(before + samples, dtype="float32", always_2d=True)[before:].T.copy())
    if not x.isfinite().all():
        raise ValueError("it holds NaN or infinity")
    return x


def reader_of(path: Path) -> str:
    """soundfile's name where it can open the file, else PyAV's.

    PyAV's also for Vorbis, where libsndfile 1.2.2 seeks some hundred samples too far near the end.
    """
    soundfile = import_soundfile()
    try:
        with soundfile.SoundFile(os.fspath(path)) as file:
            return "av" if file.subtype == "VORBIS" else "soundfile"
    except soundfile.LibsndfileError:
        return "av"


class Stream:
    """The sound of a file by PyAV, with the part of `soundfile.SoundFile` that is used here.

    Args:
        path: the file.

    Attributes:
        samplerate: in Hz.

    Raises:
        ValueError: it has no sound.
    """

    def __init__(self, path: Path):
        av = import_av()
        self._container = av.open(os.fspath(path), options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})
        self._stream = self._container.streams.best("audio")
        if self._stream is None:
            self._container.close()
            raise ValueError("has no sound")
        self.samplerate, self._float = self._stream.rate, av.AudioResampler(format="fltp")
        self._frames, self._skip = self._container.decode(self._stream), 0
        first = next(self._frames, None)
        self._origin = (first and first.time) or 0.0  # seconds; some formats do not begin at 0
        self._rest = self._samples(first) if first else np.zeros((0, self._stream.channels), np.float32)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self._container.close()

    def seek(self, start: int) -> None:
        """Go to a sample of a file that is still at its beginning, 0."""
        if not start:
            return
        for seconds in (start / self.samplerate, 0.0):  # from the beginning where the first seek goes too far
            place = int((self._origin + seconds) / self._stream.time_base)
            self._container.seek(place, stream=self._stream)
            frames = self._container.decode(self._stream)
            frame = next(frames, None)
            at = round(((frame.time or 0.0) - self._origin) * self.samplerate) if frame else math.inf
            if at <= start:
                break
        else:
            raise ValueError(f"it has nothing at {start / self.samplerate:.2f} s")
        self._frames, self._skip = frames, start - at
        self._rest = self._samples(frame)

    def read(self, samples: int, **kind: Any) -> np.ndarray:
        """The next samples, float32 [N, C]; fewer at the end."""
        parts, there = [self._rest], len(self._rest)
        while there < samples and (frame := next(self._frames, None)) is not None:
            parts.append(self._samples(frame))
            there += len(parts[-1])
        x = np.concatenate(parts)
        self._rest = x[samples:]
        return x[:samples]

    def _samples(self, frame: Any) -> np.ndarray:
        """A frame's samples [N, C], without those that are to be skipped."""
        x = np.concatenate([part.to_ndarray() for part in self._float.resample(frame)], 1).T
        skipped = min(self._skip, len(x))
        self._skip -= skipped
        return x[skipped:]


def import_soundfile() -> Any:
    """The package `soundfile`, or an error that says how to get it."""
    return optional("soundfile", "audio", "sounds are read with")


def import_av() -> Any:
    """The package `av`, or an error that says how to get it."""
    return optional("av", "audio", "sounds such as m4a are read with")


READERS = {"soundfile": lambda path: import_soundfile().SoundFile(os.fspath(path)), "av": Stream}


def why(error: Exception) -> str:
    """An error of reading a sound in words, without the file's path and numbers of libraries."""
    if type(error).__name__ in ("InvalidDataError", "ArgumentError"):  # of PyAV: none of `FORMATS`
        return "holds no sound in a format that is known here"
    if isinstance(error, UnicodeEncodeError):
        return "has a name that is not UTF-8"
    words = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return words.strip().rstrip(".") or type(error).__name__
