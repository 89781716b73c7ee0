"""Latents of a data set, encoded once by a pipeline's autoencoder.

A folder of latents holds `facts.json`, `prompts.jsonl` where samples have prompts, and shards
PART-NUMBER.safetensors for the parts train, val and test. A shard has `latent` [n, ...] and
`prompt` or `label` [n]; those of val and test keep the data too, `data` [n, ...] in whole numbers
(see `as_levels`), so that what real samples look like needs no autoencoder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from distillkit import checks
from distillkit.data import Batch, DistillData
from distillkit.errors import Failure
from distillkit.feeding import Feed
from distillkit.files import save_tensors, shapes, write_text
from distillkit.pipelines.codec import LATENT, PipelineCodec
from distillkit.pipelines.data import SampleData, samples_of
from distillkit.pipelines.files import print_of, read_json
from distillkit.pipelines.prompts import read_prompts
from distillkit.pipelines.teacher import PipelineTeacher
from distillkit.progress import progress
from distillkit.spec import to_spec

FORMAT = 1
PARTS = ("train", "val", "test")
FACTS, PROMPTS = "facts.json", "prompts.jsonl"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
# arguments that change no sample
UNSAID = ("pipeline", "download", "batch_size", "workers", "features", "clip", "clap")


def maker(codec: PipelineCodec) -> dict[str, str]:
    """What latents depend on: the codec's class, and a hash of its autoencoder."""
    kind = type(codec)
    return {"codec": f"{kind.__module__}.{kind.__qualname__}", "autoencoder": print_of(codec.root, (f"{codec.part}/",))}


# ---- writing


class Writing:
    """The encoding of a data set into a folder, which goes on where it was interrupted.

    Args:
        folder: it need not exist.
        data: the data, set up.
        codec: the pipeline's.
        size: samples in a shard.
        dtype: of latents on disk.

    Raises:
        ValueError: the codec is not for these data.
        Failure: the folder holds latents of other data, or by another autoencoder.
    """

    def __init__(self, folder: Path, data: DistillData, codec: PipelineCodec, size: int = 512, dtype: str = "float32"):
        checks.whole(1, 2**20, size=size)
        codec.check(data)
        self.folder, self.codec, self.size, self.dtype = folder, codec, size, dtype
        self.parts = {name: getattr(data, name) for name in PARTS}
        described = {name: value for name, value in to_spec(data)["init_args"].items() if name not in UNSAID}
        described |= {"path": os.path.abspath(os.path.expanduser(described["path"]))} if "path" in described else {}
        self.plan = {
            "format": FORMAT,
            **maker(codec),
            "data": described,
            "data_shape": list(data.event_shape),
            "classes": dict(data.classes),
            "counts": {name: len(part) for name, part in self.parts.items()},
            "files": stamp([*self.parts.values()], described.get("path")),
            "size": size,
            "dtype": dtype,
        }
        self.prompts: list[str] = getattr(data, "prompts", []) if "prompt" in data.classes else []
        self.plan["prompts"] = hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()
        self.done: dict[str, dict[str, str]] = {name: {} for name in PARTS}  # sha256 of the shards that are there
        if (folder / FACTS).is_file():
            found = read_json(folder / FACTS)
            if other := [name for name, value in self.plan.items() if found.get(name) != value]:
                raise Failure(
                    f"{folder} holds other latents, or the data have changed ({', '.join(other)}): give another folder with --out"
                )
            kept = found.get("shards")
            if not isinstance(kept, dict) or not all(isinstance(kept.get(part), dict) for part in PARTS):
                raise Failure(f"{folder / FACTS} is damaged: remove the folder, or give another one with --out")
            self.done = kept

    def run(self, device: torch.device, batch_size: int) -> int:
        """Encode what is not there yet; returns the number of samples encoded now."""
        encoded = 0
        if self.prompts:
            write_text(self.folder / PROMPTS, "".join(json.dumps({"prompt": text}) + "\n" for text in self.prompts))
        with progress("encoding", sum(self.plan["counts"].values())) as encoding:
            for part in PARTS:
                rows = torch.arange(self.plan["counts"][part]).split(self.size)
                for number, chosen in enumerate(rows):
                    file = self.folder / name_of(part, number)
                    if file.is_file() and self.done[part].get(file.name) == sha256(file):
                        encoding.advance(len(chosen))
                        continue
                    save_tensors(file, self.shard(part, chosen, device, batch_size, encoding.advance))
                    self.done[part][file.name] = sha256(file)
                    write_text(self.folder / FACTS, json.dumps({**self.plan, "shards": self.done}, indent=1))
                    encoded += len(chosen)
        return encoded

    def shard(self, part: str, rows: Tensor, device: torch.device, batch_size: int, advance: Any) -> dict[str, Tensor]:
        """The tensors of one shard.

        Args:
            part: its part.
            rows: of the samples in the part.
            device: where the autoencoder works.
            batch_size: samples that are read at once.
            advance: called with the number of samples encoded.

        Raises:
            Failure: latents are not finite, or stand for samples of another shape.
        """
        kept: dict[str, list[Tensor]] = {}
        for batch in Feed(self.parts[part])(rows.split(batch_size)):
            latent = self.codec.encode({"data": batch["data"].to(device)}).cpu()
            made, expected = self.codec.data_shape(latent.shape[1:]), tuple(self.plan["data_shape"])
            if tuple(made) != expected:
                raise Failure(f"latents of the data, {list(expected)}, stand for {list(made)}: choose another size")
            latent = latent.to(DTYPES[self.dtype])
            if not latent.isfinite().all():
                raise Failure(f"latents in {self.dtype} are not finite: look at the data, or say --dtype float32")
            said = {name: batch[name] for name in self.plan["classes"]}
            seen = {} if part == "train" else {"data": as_levels(batch["data"], self.codec.levels)}
            for name, value in {LATENT: latent, **said, **seen}.items():
                kept.setdefault(name, []).append(value)
            advance(len(latent))
        return {name: torch.cat(values) for name, values in kept.items()}


def stamp(parts: Sequence[Any], path: str | None) -> str:
    """A hash by which it is noticed that the files of a data set were changed: sizes and times.

    Args:
        parts: of the data; those of files have `paths`, each a file or a sample of a shard.
        path: of the data, which may be one file.
    """
    found = {Path(path)} if path else set()
    for item in (item for part in parts for item in getattr(part, "paths", ())):
        found |= {item} if isinstance(item, Path) else {item.shard} if hasattr(item, "shard") else set()
    stats = [(str(file), file.stat()) for file in sorted(found) if file.is_file()]
    facts = [[name, about.st_size, about.st_mtime_ns] for name, about in stats]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def name_of(part: str, number: int) -> str:
    """The name of a shard."""
    return f"{part}-{number:05}.safetensors"


def sha256(file: Path) -> str:
    """The hash of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(2**24):
            digest.update(piece)
    return digest.hexdigest()


def as_levels(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Data in [-1, 1] as whole numbers, rounded.

    Args:
        x: the data.
        dtype: uint8 for 256 levels from -1 to 1, as of images; int16 for multiples of 1/32768 below
            1, as of sounds.
    """
    if dtype == torch.int16:
        return (x * 32768).round().clamp(-32768, 32767).to(dtype)
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(dtype)


# ---- reading


class Shards:
    """A part of a folder of latents: `shards[indices]` reads these samples from disk.

    Args:
        folder: the folder.
        part: train, val or test.
        facts: what facts.json says.

    Raises:
        ValueError: a shard is missing or damaged.
    """

    def __init__(self, folder: Path, part: str, facts: Mapping[str, Any]):
        self.count, self.size = facts["counts"][part], facts["size"]
        self.files = [folder / name_of(part, i) for i in range(-(-self.count // self.size))]
        self.shape, columns = None, {name: [] for name in facts["classes"]}
        for number, file in enumerate(self.files):
            rows = min(self.size, self.count - number * self.size)
            there = shapes(file)
            if any(there.get(name, [None])[0] != rows for name in (LATENT, *columns)):
                raise ValueError(f"{file} is damaged: it should hold {rows} latents: run the command encode again")
            self.shape = tuple(there[LATENT][1:])
            with safe_open(file, "pt") as opened:
                for name, values in columns.items():
                    values.append(opened.get_tensor(name))
        for name, values in columns.items():
            setattr(self, name, torch.cat(values))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: Tensor) -> Batch:
        found: list[tuple[int, dict[str, Tensor]]] = []  # with their places in the batch
        for number in indices.div(self.size, rounding_mode="floor").unique().tolist():
            places = (indices.div(self.size, rounding_mode="floor") == number).nonzero()[:, 0].tolist()
            found += zip(places, self._read(self.files[number], (indices[places] % self.size).tolist()), strict=True)
        rows = [sample for _, sample in sorted(found, key=lambda each: each[0])]
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return {name: as_data(value) if name == "data" else value for name, value in batch.items()}

    @staticmethod
    def _read(file: Path, rows: list[int]) -> Iterator[dict[str, Tensor]]:
        """Yields samples of a shard."""
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            for row in rows:
                yield {name: values[row : row + 1][0] for name, values in slices.items()}


def as_data(x: Tensor) -> Tensor:
    """Whole numbers of `as_levels` as data in [-1, 1]."""
    return x.float() / 32768 if x.dtype == torch.int16 else x.float() / 127.5 - 1


class LatentData(SampleData):
    """Latents from a folder that the command `encode` made: `latent`, and `prompt` or `label`.

    The autoencoder is not needed for training. Mirror images are there if the data had them when
    they were encoded; latents themselves cannot be mirrored.

    Args:
        path: the folder.
        pipeline, download: `path` and `download` of the teacher, which must have the autoencoder
            that encoded them.
        batch_size: samples in a batch.
        size: of a sample, that of the teacher; None leaves the comparison to the run.

    Attributes:
        teacher: the domain's teacher of pipelines.
        codec: the pipeline's.
    """

    teacher: type[PipelineTeacher]

    def __init__(
        self,
        path: str,
        pipeline: str | None,
        download: bool = False,
        batch_size: int = 1,
        size: Mapping[str, int | float | None] | None = None,
    ):
        super().__init__(batch_size)
        if pipeline is None:
            raise ValueError("latents need the pipeline that encoded them: say teacher=diffusers teacher.path=DIR")
        self.folder = Path(path).expanduser()
        if not (self.folder / FACTS).is_file():
            raise ValueError(f"{path} holds no {FACTS}: give a folder that `python -m distillkit encode` has made")
        self.facts = checked(read_json(self.folder / FACTS), self.folder)
        made = samples_of(self.teacher, pipeline, size, download)
        self.codec = made.codec
        if self.codec is None or any(self.facts[name] != value for name, value in maker(self.codec).items()):
            raise ValueError(
                f"the latents in {path} were made by another autoencoder than that of {pipeline}: encode the data again "
                f"with it"
            )
        self.event_shape, self.classes = tuple(self.facts["data_shape"]), dict(self.facts["classes"])
        if size is not None and made.shape != self.event_shape:
            raise ValueError(
                f"the latents in {path} stand for samples of shape {list(self.event_shape)}, the teacher makes "
                f"{list(made.shape)}: say the size of the teacher as for the command encode, or encode the data again"
            )
        self.prompts = read_prompts(path) if "prompt" in self.classes else []
        if len(self.prompts) != self.classes.get("prompt", 0):
            raise ValueError(f"{path} is damaged: {PROMPTS} has {len(self.prompts)} prompts: run encode again")

    def load(self) -> tuple[Shards, Shards, Shards]:
        return tuple(Shards(self.folder, part, self.facts) for part in PARTS)


def checked(facts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The facts of a finished folder of latents.

    Raises:
        ValueError: they are damaged or of another version, or the folder is not finished.
    """
    if facts.get("format") != FORMAT:
        raise ValueError(f"{folder / FACTS} is of another version: encode the data again")
    try:
        checks.whole(1, size=facts["size"], **{f"the number of {part}": facts["counts"][part] for part in PARTS})
        checks.whole(1, **{f"classes of {name}": number for name, number in facts["classes"].items()})
        there = all(len(facts["shards"][part]) == -(-facts["counts"][part] // facts["size"]) for part in PARTS)
        known = {"prompt", "label"}.issuperset(facts["classes"]) and isinstance(facts["data_shape"], list)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / FACTS} is damaged ({error}): encode the data again") from None
    if not known:
        raise ValueError(f"{folder / FACTS} is damaged: encode the data again")
    if not there:
        raise ValueError(f"the encoding into {folder} is not finished: give the command encode again, which goes on")
    return facts
