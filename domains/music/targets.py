"""What is asked of music, as people write it: curves, notes, forms and files.

F: frames; C: channels; N: samples. Every error here is one sentence for the command line.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillkit.errors import one_line, optional
from domains.music import reading
from domains.music.notes import midi

CURVES, SCORES = (".csv", ".txt"), (".mid", ".midi")  # endings of files; all others are sounds
IGNORED = -1  # the pitch class of a frame that may hold any
REST = "-"
MIDDLE = 4  # the octave of notes whose names have none
SPAN = re.compile(r"(.+)@(\d*\.?\d*)-(\d*\.?\d*)")
DRUMS = 9  # the MIDI channel whose notes are no pitches


def levels(text: str, times: Sequence[float]) -> Tensor:
    """A curve [F] in dB at `times` in seconds.

    - `-20`: the same all the time;
    - `ramp:-40:-10`: a line from the first frame to the last;
    - a .csv or .txt file: one value for each frame, or lines `seconds, dB`, between which the
      curve is straight, and level before the first and after the last. A first line of words is
      skipped.
    """
    if text.startswith("ramp:"):
        ends = [number(part, text) for part in text.split(":")[1:]]
        if len(ends) != 2:
            raise ValueError(f"a ramp goes from one level to another, such as ramp:-40:-10, got {text!r}")
        return torch.linspace(*ends, len(times))
    if Path(text).suffix.lower() in CURVES:
        return curve(Path(text), times)
    if not numeric(text):
        raise ValueError(
            f"a loudness is a level in dB such as -30, ramp:-40:-10, a .csv or .txt file, or a sound; got {text!r}"
        )
    return torch.full([len(times)], number(text, text))


def is_sound(text: str) -> bool:
    """Whether the target names a sound file."""
    ending = Path(text).suffix.lower()
    return bool(re.fullmatch(r"\.[a-z][a-z0-9]+", ending)) and ending not in CURVES + SCORES


def number(text: str, source: str) -> float:
    """The number that `text`, a part of `source`, says; finite in float32."""
    if not numeric(text) or not abs(value := float(text)) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{text.strip()!r} is not a finite number, in {source!r}")
    return value


def numeric(text: str) -> bool:
    """Whether Python reads the text as a number, nan and inf among them."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def curve(path: Path, times: Sequence[float]) -> Tensor:
    """The curve [F] of a file at `times`, see `levels`."""
    try:
        lines = list(csv.reader(file(path).read_text("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a table of numbers ({one_line(error, 200)})") from None
    rows = [(i, [part.strip() for part in row]) for i, row in enumerate(lines, 1) if any(map(str.strip, row))]
    if rows and not any(map(numeric, rows[0][1])):
        rows = rows[1:]
    values = [[number(part, f"{path}, line {i}") for part in row] for i, row in rows]
    if not values or {len(row) for row in values} not in ({1}, {2}):
        raise ValueError(f"{path} must have lines `dB`, or lines `seconds, dB`, all of the same kind")
    table = np.array(values)
    if table.shape[1] == 1:
        if len(table) != len(times):
            raise ValueError(
                f"{path} has {len(table)} values for {len(times)} frames: give one for each frame, or lines "
                f"`seconds, dB`"
            )
        return torch.tensor(table[:, 0], dtype=torch.float32)
    if (np.diff(table[:, 0]) <= 0).any():
        raise ValueError(f"the seconds in {path} must rise from line to line")
    return torch.tensor(np.interp(times, *table.T), dtype=torch.float32)


def melody(text: str, times: Sequence[float]) -> Tensor:
    """Pitch classes int64 [F] at `times` in seconds, 0 for C up to 11 for B, -1 for any.

    - `A4 C#5 - E5`: notes of equal duration; `-` asks for nothing. A class is all that a note
      asks for, so its octave may be left out;
    - a .mid file: the highest of the notes that sound at the time, drums left out.
    """
    if Path(text).suffix.lower() in SCORES:
        return score(Path(text), times)
    asked = [IGNORED if name == REST else pitch(name) % 12 for name in text.split()]
    if all(note == IGNORED for note in asked):
        raise ValueError(f"a melody needs a note, such as 'A4 C5 E5', a .mid file or a sound, got {text!r}")
    return spread(asked, len(times), "notes")


def pitch(name: str) -> int:
    """The MIDI number of a note by its name, such as A4 (69), C#5, Cs5 or Db5; octave 4 if none."""
    if (number := midi(name, MIDDLE)) is None:
        raise ValueError(f"{name!r} is no note: notes are named A4, C#5 or Eb3, and {REST} stands for any")
    return number


def score(path: Path, times: Sequence[float]) -> Tensor:
    """The pitch classes [F] of a MIDI file at `times`, see `melody`."""
    mido = optional("mido", "audio", "MIDI files are read with")
    name = str(file(path))
    try:
        song = mido.MidiFile(name, clip=True)
        messages = list(song)  # their `time` is seconds since the one before
    except Exception as error:  # the package raises what a damaged byte happens to break
        raise ValueError(f"{path} does not read as a MIDI file ({one_line(repr(error), 200)})") from None
    if song.ticks_per_beat < 0:
        raise ValueError(f"{path} counts time in frames of film (SMPTE): save it with ticks in a quarter note")
    notes, now, upcoming, sounding = [], 0.0, iter(messages), set()
    coming = next(upcoming, None)
    for time in times:
        while coming is not None and now + coming.time <= time:
            now += coming.time
            if coming.type in ("note_on", "note_off") and coming.channel != DRUMS:
                (sounding.add if coming.type == "note_on" and coming.velocity else sounding.discard)(coming.note)
            coming = next(upcoming, None)
        notes.append(max(sounding) % 12 if sounding else IGNORED)
    if set(notes) == {IGNORED}:
        raise ValueError(f"{path} has no note in the first {times[-1]:.3g} seconds")
    return torch.tensor(notes)


def form(text: str, frames: int) -> Tensor:
    """The part int64 [F] that each frame is of, for letters such as ABA, of equal duration."""
    if not re.fullmatch("[A-Za-z]+", text) or len(set(text.upper())) < 2:
        raise ValueError(f"a structure is letters, two different ones at least, such as ABA, or a sound; got {text!r}")
    letters = sorted(set(text.upper()))
    return spread([letters.index(letter) for letter in text.upper()], frames, "parts")


def spread(values: Sequence[int], frames: int, noun: str) -> Tensor:
    """Values, one after the other, for equal numbers of frames, int64 [F]."""
    if len(values) > frames:
        raise ValueError(f"there are more {noun} ({len(values)}) than frames ({frames})")
    return torch.tensor(values)[torch.arange(frames) * len(values) // frames]


def span(text: str, seconds: float) -> tuple[Path, float, float]:
    """The file and the part of it in seconds of `FILE@0.2-0.6`, `FILE@0.5-` or `FILE@-0.3`."""
    match = SPAN.fullmatch(text)
    try:
        path, start, end = Path(match[1]), float(match[2] or 0), float(match[3] or seconds)
    except (TypeError, ValueError):
        raise ValueError(
            f"say the sound and the seconds of it to fill in, such as FILE@0.2-0.6 or FILE@0.5-, got {text!r}"
        ) from None
    if not 0 <= start < end <= seconds:
        raise ValueError(
            f"the part to fill in must lie within 0-{seconds:.4g} seconds and end after it begins, got {text!r}"
        )
    return path, start, end


def class_of(text: str, data: Any) -> tuple[str, int]:
    """The condition and the number of a class such as `timbre=saw`, `timbre=1` or `pitch=A4`."""
    condition, _, word = text.partition("=")
    known = {name: num for name, num in getattr(data, "classes", {}).items() if name != "prompt"}
    if not known:
        raise ValueError("label asks for a class, and the model's data have none")
    if condition not in known:
        raise ValueError(f"label asks for a class, such as {next(iter(known))}=0, of {', '.join(known)}; got {text!r}")
    names, num = list(data.names.get(condition, ())), known[condition]
    if word in names:
        return condition, names.index(word)
    if condition == "pitch" and data.pitches is not None and midi(word, MIDDLE) in data.pitches:
        return condition, list(data.pitches).index(midi(word, MIDDLE))
    if word.isdecimal() and int(word) < num:
        return condition, int(word)
    raise ValueError(
        f"{condition} has the classes 0 to {num - 1}" + f" ({', '.join(names)})" * bool(names) + f", got {word!r}"
    )


def sound(path: Path, rate: int, channels: int, samples: int) -> Tensor:
    """The first `samples` samples [C, N] in [-1, 1] of a sound file, at `rate` Hz.

    The channels are those of `reading.mixed`.
    """
    facts = reading.probe(file(path))
    if facts["fault"]:
        raise ValueError(f"{path} {one_line(facts['fault'], 300)}")
    if facts["rate"] < rate:
        raise ValueError(
            f"{path} has {facts['rate']} samples a second, the model {rate}: a sound to go by needs {rate} at least"
        )
    x = reading.read(path, facts, 0, samples, rate, channels)
    if x.shape[-1] < samples:
        raise ValueError(f"{path} lasts {x.shape[-1] / rate:.3g} seconds, the model's sounds {samples / rate:.3g}")
    return x


def file(path: Path) -> Path:
    """The path of a file that is there and not empty."""
    if not os.path.isfile(path):  # which refuses what the system refuses as a name, too
        raise ValueError(f"there is no file {path}")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty")
    return path
