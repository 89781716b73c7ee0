"""Folders of sound files. B: batch; C: channels; N: samples."""

from __future__ import annotations

import math
import random
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit import checks
from distillkit.data import Batch, Rows, split
from distillkit.feeding import in_parallel
from distillkit.pipelines.captions import CAPTIONS, captions_of
from distillkit.sources import Source, drawn, first_whole, listed
from domains.music.data import MusicData
from domains.music.notes import midi
from domains.music.reading import RATES, READERS, SUFFIXES, import_av, import_soundfile, is_loud, probe, read
from domains.music.resample import length

LONGEST = 1_000_000  # seconds of a file: eleven days
REDRAWS = 10  # of a clip that is silent, at most
TABLE = CAPTIONS[0]  # captions.csv
TAKEN = ("data", "first", "latent", "prompt", "paths")  # names that mean something else in a batch or a data set

Said = dict[Path, list[dict[str, str]]]  # the conditions of each file in words, once or several times


class Sounds(MusicData):
    """Base of clips from sound files, decoded batch by batch.

    A clip has C channels at `rate`; a file with another rate is resampled, one with other channels
    gives their mean. A file gives a clip every `stride` seconds, all of them to the same part
    (training, validation or test), which follows from a hash of its name. What is shorter than a
    clip goes on with silence, which is data as any: a student has to end its notes too. A clip with
    several captions counts as often; evaluation compares with it once.

    A training clip begins anywhere in its stride, at a place that is drawn once: it follows from
    the seed and the file's name. Where a clip is silent (its peak below 0.01 or its level below
    -60 dB) another place in the file is drawn, ten times at most.

    Files that are damaged or silent are found before training, named in a warning and left out. For
    that all files are decoded once; what was found is kept in `.distillkit-sounds.json` in the
    folder, where it may be written. For a clip of a file that breaks later the next clip stands in.

    Args:
        path: the folder.
        rate: samples a second, in Hz.
        channels: C, 1 or 2.
        samples: N.
        stride: seconds between two clips of a file; None means the length of a clip.
        random_crop: whether training clips begin anywhere in their stride; otherwise at its
            beginning, as held-out ones do: notes at their attacks.
        val, test: shares of the files, in (0, 1).
        seed: of the split and of the places.
        workers: processes that decode training batches; 0 leaves it to threads, None chooses.
        given, batch_size, clap: as in `MusicData`.
    """

    def __init__(
        self,
        path: str,
        rate: int,
        channels: int,
        samples: int,
        stride: float | None = None,
        random_crop: bool = True,
        val: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        workers: int | None = 0,
        given: int = 0,
        batch_size: int = 16,
        clap: str | None = None,
    ):
        super().__init__(given, batch_size, clap)
        checks.whole(*RATES, rate=rate)
        checks.whole(1, 2, "mono or stereo", channels=channels)
        checks.workers(workers=workers)
        stride = samples / rate if stride is None else stride
        checks.positive(stride=stride)
        if given >= samples:
            raise ValueError(f"given must leave something of the {samples} samples to make, got {given}")
        checks.shares(val=val, test=test)
        checks.seed(seed=seed)
        self.path, self.rate, self.samples, self.step = path, rate, samples, max(1, round(stride * rate))
        self.random_crop, self.shares, self.seed, self.workers = random_crop, (val, test), seed, workers
        self.event_shape = (channels, samples)

    @abstractmethod
    def said(self, source: Source) -> tuple[Said | None, dict[Path, str]]:
        """The conditions of files in words (None: folders say them), and faults of the others."""

    @abstractmethod
    def columns(
        self, source: Source, files: Sequence[Path], words: list[dict[str, str]] | None
    ) -> dict[str, list[int]]:
        """The conditions of these files by number; sets `classes`.

        Args:
            source: the folder.
            files: a file stands there once for each of its `words`.
            words: the conditions of each in words, None where folders say them.
        """

    def load(self) -> tuple[Clips, Clips, Clips]:
        import_soundfile()
        import_av()
        source = Source(self.path, SUFFIXES, "sound", beside=(*CAPTIONS, ".txt"))
        said, lacking = self.said(source)
        facts = source.facts(probe)
        if wrong := [source.name(path) for path, about in facts.items() if not is_probed(about)]:
            raise ValueError(
                f"{source.root} has a file .distillkit-sounds.json that says of {listed(wrong)} what no sound has: delete it"
            )
        files = source.without(lacking | {path: about["fault"] for path, about in facts.items() if about["fault"]})
        val, test = (max(1, round(share * len(files))) for share in self.shares)
        if len(files) - val - test < 1:
            raise ValueError(
                f"{source.root} holds too few sounds to train, validate and test on, {len(files)} that can be used: give at "
                f"least 3 files, for instance the parts of a long one"
            )
        self.warn(source, {path: facts[path] for path in files})
        words = [said[path] if said else [None] for path in files]
        ends = [0, *accumulate(map(len, words))]
        rows_of = [range(*both) for both in pairwise(ends)]  # by file
        repeated = [path for path, rows in zip(files, rows_of, strict=True) for _ in rows]
        columns = self.columns(source, repeated, [*chain(*words)] if said else None)
        classes = [numbers for name, numbers in columns.items() if name != "prompt"]  # captions are no groups
        groups = [classes[0][rows[0]] for rows in rows_of] if classes else [0] * len(files)
        names = [source.name(path) for path in files]
        places = [
            [Place(path, name, facts[path], start, spare) for start in range(0, spare + 1, self.step)]
            for path, name in zip(files, names, strict=True)
            for spare in [max(0, length(facts[path]["samples"], facts[path]["rate"], self.rate) - self.samples)]
        ]
        parts, settings = split(groups, val, test, order=drawn(names, self.seed)), self.settings()
        return tuple(
            Clips(
                [place for i in part for _ in rows_of[i] for place in places[i]],
                {
                    name: [numbers[row] for i in part for row in rows_of[i] for _ in places[i]]
                    for name, numbers in columns.items()
                },
                settings.moved if number == 0 and self.random_crop else settings.decode,
                settings.with_first,
            )
            for number, part in enumerate(parts)
        )

    def build_evaluator(self, held_out):
        return super().build_evaluator([Rows(part, part.different) for part in held_out])

    def warn(self, source: Source, facts: Mapping[Path, Mapping[str, Any]]) -> None:
        """Warn of files that have less than the clips: here of those with lower rates.

        Args:
            source: the folder.
            facts: of the files that are used, as of `probe`.
        """
        rates = {source.name(path): about["rate"] for path, about in facts.items()}
        if low := [f"{name} ({rate} Hz)" for name, rate in rates.items() if rate < self.rate]:
            warnings.warn(
                f"{source.root}: nothing sounds above half their own rates, which are below the {self.rate} Hz of the clips, "
                f"in {listed(low)}",
                stacklevel=2,
            )

    def decode(self, place: Place, start: int | None = None) -> Tensor:
        """The clip [C, N] at a place.

        Args:
            place: the place.
            start: another beginning.

        Raises:
            ValueError: it cannot be decoded, or is silent; names the file.
        """
        draws = random.Random(f"{self.seed}/{place.name}/{place.start}/silent")
        start = place.start if start is None else start
        for _ in range(1 + (REDRAWS if place.spare else 0)):
            x = read(place.path, place.facts, start, self.samples, self.rate, self.event_shape[0])
            if is_loud(x):
                return F.pad(x, (0, self.samples - x.shape[-1]))
            start = draws.randrange(place.spare + 1)
        raise ValueError(f"{place.path} is silent from {place.start / self.rate:.2f} s on, and wherever else was tried")

    def moved(self, place: Place) -> Tensor:
        """The clip [C, N] at a beginning that is drawn in the stride of a place."""
        draws = random.Random(f"{self.seed}/{place.name}/{place.start}")
        return self.decode(place, place.start + draws.randrange(min(self.step, place.spare + 1 - place.start)))


class AudioFolder(Sounds):
    """Clips from the sounds in a folder: wav, flac, mp3, ogg, opus, aif, m4a, mp4, aac.

    Classes are, the first that there is of:

    - what the named groups of `pattern` find in files' names, each group a condition of its own;
      files that do not match are left out. A group `pitch` reads notes (A4 is 69, Cs3 is 49),
      numbered from low to high;
    - `label`: the different captions in `captions.csv` (columns `file` and `caption`, one row or
      several for a file); files without one are left out;
    - `label`: the sub-folders of the first level.

    Classes are numbered in alphabetical order; parts have those of the first condition in
    proportion. Clips have `frames * window / 4` samples, as the codec's spectrograms need them.

    Args:
        path, rate, channels, stride, random_crop, val, test, seed, workers: as in `Sounds`.
        given, batch_size, clap: as in `MusicData`.
        frames: of a clip's spectrogram.
        window: samples of the spectrogram's window; a frame comes every quarter of it.
        pattern: a regular expression.

    Attributes:
        pitches: the MIDI numbers of the classes `pitch`, if the pattern has that group.
        prompts: the captions, where they are the classes `label`, to score with CLAP.
    """

    def __init__(
        self,
        path: str,
        rate: int = 16_000,
        channels: int = 1,
        frames: int = 64,
        window: int = 1_024,
        stride: float | None = None,
        random_crop: bool = True,
        pattern: str | None = None,
        val: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        workers: int | None = 0,
        given: int = 0,
        batch_size: int = 16,
        clap: str | None = None,
    ):
        checks.whole(1, 2**20, frames=frames, window=window)
        if window % 4:
            raise ValueError(f"window must be divisible by 4, got {window}")
        samples = frames * window // 4
        super().__init__(
            path, rate, channels, samples, stride, random_crop, val, test, seed, workers, given, batch_size, clap
        )
        self.pattern = None if pattern is None else named_groups(str(pattern))

    prompts: list[str] = []

    def said(self, source):
        if self.pattern is not None:
            found = {path: self.pattern.search(path.name) for path in source.files}
            said = {path: [match.groupdict()] for path, match in found.items() if match and None not in match.groups()}
            faults = {path: "is not named as data.pattern says" for path in source.files if path not in said}
            faults |= {
                path: f"has the pitch {groups['pitch']!r}, which is no note such as A4 or Cs3"
                for path, (groups,) in said.items()
                if "pitch" in groups and key(groups["pitch"]) is None
            }
            return said, faults
        if not (source.root / TABLE).is_file():
            return None, {}
        captions = captions_of(source.root, [source.name(path) for path in source.files])
        said = {
            path: [{"label": text} for text in texts]
            for path, texts in zip(source.files, captions, strict=True)
            if texts
        }
        return said, {path: f"has no caption in {TABLE}" for path in source.files if path not in said}

    def columns(self, source, files, words):
        if words is None:
            names, label = source.classes(files)
            self.names, columns = ({"label": names}, {"label": label}) if label else ({}, {})
        else:
            self.names, columns = {}, {}
            for name in words[0]:
                found = [each[name] for each in words]
                self.names[name] = sorted({*found}, key=(lambda word: (key(word), word)) if name == "pitch" else None)
                number = {word: i for i, word in enumerate(self.names[name])}
                columns[name] = [number[word] for word in found]
        self.classes = {name: len(known) for name, known in self.names.items()}
        self.pitches = [key(word) for word in self.names["pitch"]] if "pitch" in self.names else None
        captioned = words is not None and self.pattern is None
        self.prompts = self.names["label"] if captioned else []
        return columns


class Place(NamedTuple):
    """Where a clip comes from.

    Args:
        path: the file.
        name: its path below the folder.
        facts: as of `probe`.
        start: of the clip's stride, in samples at the rate of the data.
        spare: the last start in the file at which a clip is whole; 0 if it is shorter.
    """

    path: Path
    name: str
    facts: Mapping[str, Any]
    start: int
    spare: int


class Clips:
    """Clips as a data set: `clips[indices]` decodes these, in parallel, into a batch.

    Args:
        places: of the clips.
        columns: their conditions, which are attributes too, int64 [len].
        decode: makes a clip [C, N] of a place.
        with_first: see `MusicData.with_first`.
    """

    def __init__(
        self,
        places: Sequence[Place],
        columns: Mapping[str, Sequence[int]],
        decode: Callable[[Place], Tensor],
        with_first: Callable[[Batch], Batch],
    ):
        self._places, self._decode, self._with_first = list(places), decode, with_first
        self._columns = {name: torch.tensor(numbers, dtype=torch.long) for name, numbers in columns.items()}
        for name, numbers in self._columns.items():
            setattr(self, name, numbers)

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [*dict.fromkeys(place.path for place in self._places)]

    @property
    def different(self) -> Tensor:
        """The rows of the clips, of several with other captions the first."""
        first = {}
        for row, place in enumerate(self._places):
            first.setdefault((place.name, place.start), row)
        return torch.tensor([*first.values()])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, indices: Tensor) -> Batch:
        def read(i: int) -> tuple[int, Tensor]:
            return first_whole(i, len(self), lambda row: self._decode(self._places[row]))

        rows, clips = zip(*in_parallel(read, indices.tolist()), strict=True)
        conditions = {name: numbers[list(rows)] for name, numbers in self._columns.items()}
        return self._with_first({"data": torch.stack(clips), **conditions})


def is_probed(facts: Mapping[str, Any]) -> bool:
    """Whether facts are such as `probe` finds; a folder's index may be damaged, or a stranger's."""
    fault, rate, samples, peak = (facts.get(name) for name in ("fault", "rate", "samples", "peak"))
    return isinstance(fault, str) or (
        fault is None
        and "fault" in facts
        and facts.get("reader") in [*READERS]
        and type(rate) is int
        and RATES[0] <= rate <= RATES[1]
        and type(samples) is int
        and 0 < samples <= rate * LONGEST
        and isinstance(peak, float)
        and math.isfinite(peak)
    )


def key(name: str) -> int | None:
    """The MIDI number of a note such as A4 or Cs3, or of a number; else None."""
    return int(name) if re.fullmatch(r"\d{1,3}", name) else midi(name)


def named_groups(pattern: str) -> re.Pattern[str]:
    """The regular expression.

    Raises:
        ValueError: it is none, has no named group, or one with a name that means something else.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"data.pattern={pattern} is no regular expression ({error})") from None
    if not compiled.groupindex:
        raise ValueError(f"data.pattern={pattern} names no class: write groups such as (?P<instrument>[a-z]+)")
    if taken := [name for name in compiled.groupindex if name in TAKEN or name.startswith("_")]:
        raise ValueError(f"data.pattern={pattern} cannot name a class {taken[0]!r}: choose another word")
    return compiled
