"""The contract of products, the abstract student, and the line that loads its folder."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

import distillkit
from distillkit.codec import Codec
from distillkit.diffusion.denoiser import Cond, number
from distillkit.files import load_weights, read_tensors, read_yaml, save_tensors, save_weights, write_yaml
from distillkit.networks.adapters import Adapters
from distillkit.networks.routed import Routed
from distillkit.rollouts import Continuation
from distillkit.spec import Outside, from_spec, named, to_spec, trusted_class

if TYPE_CHECKING:  # a student loads without its teacher
    from distillkit.teachers.base import BaseTeacher

WEIGHTS, CONFIG, EXAMPLES = "model.safetensors", "student.yaml", "conditions.safetensors"
DECODER = "decoder.safetensors"  # of a codec whose decoder was trained
ALIKE = 0.1  # share by which a student's weights may be more or fewer than its teacher's, at one cost of a pass
MOST_STEPS = 1000  # network calls of a student
NUM_EXAMPLES, EXAMPLE_BYTES = 16, 2**20  # conditions in a folder: as many as fit, but at least one
MOST_EXAMPLE_BYTES = 2**26  # of one example that may be written or read
PIPELINES = ".pipelines."  # in the path of classes that read a pipeline


class Product(Protocol):
    """A product of a method: a student or a teacher."""

    kind: str  # the name of its folder in the run, and of the yaml in it

    def save(self, folder: str | Path, **facts: Any) -> Path:
        """Write the product's folder; `facts` (domain, method, run ...) join its yaml."""


class Student(nn.Module, ABC):
    """A model that samples in a few network evaluations.

    Args:
        event_shape: shape of one sample in the space of the diffusion; of a padded set, with its
            largest size.
        classes: categorical conditions, `{name: number of classes}`.
        context: names of further conditions that every sample needs, see `BaseTeacher`.
        codec: the map between data and samples; None means they are the same.
        config: the content of its folder's yaml.
        examples: some conditions with a context, `{name: [M, ...]}`, the defaults of `sample`.
        continuation: how a sample follows another, the teacher's; None means that it ends there.
    """

    kind = "student"

    def __init__(
        self,
        event_shape: Sequence[int],
        classes: Mapping[str, int] | None = None,
        context: Sequence[str] = (),
        codec: Codec | None = None,
        config: dict[str, Any] | None = None,
        examples: Cond | None = None,
        continuation: Continuation | None = None,
    ):
        super().__init__()
        self.event_shape, self.classes, self.context = tuple(event_shape), dict(classes or {}), tuple(context)
        self.codec, self.config, self.examples = codec or Codec(), config or {}, examples or {}
        self.continuation = continuation

    @property
    def device(self) -> torch.device:
        """Where it computes: that of its weights."""
        return next(self.parameters()).device

    @property
    def names(self) -> dict[str, list[str]]:
        """The names of its classes by number, for each condition where its folder tells them."""
        said = self.config.get("names")
        return {
            name: names
            for name, names in (said.items() if isinstance(said, dict) else ())
            if isinstance(names, list)
            and len(names) == self.classes.get(name)
            and all(isinstance(n, str) for n in names)
        }

    # Members of each kind of student

    @property
    @abstractmethod
    def times(self) -> list[float]:
        """The times at which the network is called, decreasing."""

    @property
    def num_steps(self) -> int:
        """Network evaluations per sample."""
        return len(self.times)

    @property
    def told(self) -> dict[str, tuple[float, float]]:
        """Numeric conditions learned in training, such as a guidance scale: name to range."""
        return {}

    @property
    @abstractmethod
    def weights(self) -> nn.Module:
        """The module whose weights model.safetensors holds."""

    @property
    @abstractmethod
    def network(self) -> nn.Module | None:
        """The network of the student; it may check conditions, see `networks.base.WithContext`."""

    def differs(self, teacher: BaseTeacher) -> bool:
        """Whether a pass of its network costs something else than one of the teacher's.

        It does not where both are of one class and size, up to adapters and what it is told, or
        where the teacher is a closed form, which its students' networks correct.
        """
        ours, theirs = self.network, getattr(teacher.denoiser, "network", None)
        if ours is None or theirs is None or isinstance(ours, Adapters | Routed):
            return False
        own, other = (sum(weight.numel() for weight in network.parameters()) for network in (ours, theirs))
        return other > 0 and (type(ours) is not type(theirs) or abs(own - other) > ALIKE * other)

    @abstractmethod
    def sample(
        self,
        n: int = 64,
        cond: Cond | None = None,
        seed: int = 0,
        batch_size: int = 1000,
        decode: bool = True,
        kappa: float | Tensor | None = None,
    ) -> Tensor:
        """Returns `n` samples as data, on the CPU.

        Equal (n, cond, seed) give equal samples on every run. Their noise is drawn on the CPU, so
        that samples of two devices differ by rounding alone.

        Args:
            n: number of samples.
            cond: conditions, `{name: int tensor [n]}` and context tensors [n, ...]; default: all
                classes in turn, or with a context the examples that its folder carries.
            seed: seed of the noise.
            batch_size: samples per network call, at most; changes memory, and the result by
                rounding alone. It is halved where there is too little memory, see
                `devices.in_chunks`.
            decode: whether samples are decoded by the codec; false gives the space of the
                diffusion, [n, *event_shape].
            kappa: guidance scale, one number or one per sample [n], of a student that was trained
                with a range; None is the middle of the range.

        Raises:
            ValueError: a condition is missing or unknown, or has another length than n, a class
                that does not exist, or another shape or dtype than the network takes; or the codec
                that data need may not be read.
        """

    def merged(self) -> Student:
        """Returns the student with adapters merged into its network, or itself without any."""
        return self

    @property
    def not_exported(self) -> str:
        """The reason why it cannot be one function of plain tensors; empty if it can."""
        said = f"a student that is asked about {' and '.join(self.context)} cannot be exported"
        if "mask" in self.context:
            return f"{said}: its samples have as many places as their mask"
        return f"{said} without examples in its folder" if self.context and not self.examples else ""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, home: Path, config: dict[str, Any], trust: tuple[str, ...], teacher: Any) -> Student:
        """Load from a folder with yaml `config`, which may read `home`; see `load_student`."""

    def facts(self) -> dict[str, Any]:
        """The student's own part of student.yaml."""
        own = {"codec": to_spec(self.codec)} if type(self.codec) is not Codec else {}
        if self.codec.tuned is not None:
            own["decoder"] = DECODER
        if self.continuation is not None:
            own["continuation"] = to_spec(self.continuation)
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "num_steps": self.num_steps,
            "event_shape": list(self.event_shape),
            "classes": self.classes,
            "context": list(self.context),
            **own,
        }

    # Conditions

    def condition(self, batch: Mapping[str, Tensor]) -> Cond:
        """What it is asked about in a batch: its classes and its context."""
        return {name: batch[name] for name in (*self.classes, *self.context)}

    def default_condition(self, num: int) -> Cond:
        """Classes in turn, 0, 1, 2 ..., for each categorical condition; or the examples.

        Raises:
            ValueError: the student has a context and no examples.
        """
        if not self.context:
            return {name: torch.arange(num) % count for name, count in self.classes.items()}
        if not self.examples:
            raise ValueError(self.lacks(self.context[0], num))
        return {name: value[torch.arange(num) % len(value)] for name, value in self.examples.items()}

    def lacks(self, name: str, num: int) -> str:
        """The message of a missing condition, in the words of its domain."""
        asks = self.config.get("asks") or {}
        return f"this student needs cond[{name!r}] for {num} samples: {asks.get(name, 'what each of them is made for')}"

    def checked_condition(self, n: int, cond: Cond | None, kappa: float | Tensor | None = None) -> Cond:
        """The complete conditions of `n` samples, checked; raises the ValueErrors of `sample`."""
        cond = self.default_condition(n) if cond is None else {name: _tensor(name, v) for name, v in cond.items()}
        if kappa is not None:
            if "kappa" not in self.told:
                made = self.config.get("kappa", 1.0)
                raise ValueError(
                    f"this student was not told kappa, so it samples with the one it was trained for ({made}): leave it out, or "
                    f"train with a range such as model.kappa=[1,4]"
                )
            cond["kappa"] = _tensor("kappa", kappa).float()
            if cond["kappa"].ndim == 0:
                cond["kappa"] = cond["kappa"].expand(n)
        known = {*self.classes, *self.context, *self.told}
        if unknown := sorted(cond.keys() - known):
            raise ValueError(f"this student has no condition {unknown[0]!r}; it has {sorted(known) or 'none'}")
        for name in self.context:
            if name not in cond or cond[name].shape[:1] != (n,):
                raise ValueError(self.lacks(name, n))
            if not cond[name].isfinite().all():
                raise ValueError(f"cond[{name!r}] holds NaN or infinity: {self.lacks(name, n)}")
        mask = cond.get("mask")
        if mask is not None and (mask.dtype != torch.bool or not 1 < mask.ndim <= 1 + len(self.event_shape)):
            raise ValueError(
                f"cond['mask'] must hold true or false for each place of {n} sets, got {_kind(mask)}: {self.lacks('mask', n)}"
            )
        for name, count in self.classes.items():
            value = cond.get(name, torch.tensor(-1))
            whole = not value.is_floating_point() and not value.is_complex()
            if not whole or value.shape != (n,) or bool((value < 0).any()) or bool((value > count).any()):
                raise ValueError(
                    f"cond[{name!r}] must hold {n} integers from 0 to {count - 1} ({count} means no class)"
                )
        for name, (low, high) in self.told.items():
            value = cond.setdefault(name, torch.full((n,), (low + high) / 2))
            if value.shape != (n,) or not bool(((value >= low) & (value <= high)).all()):
                raise ValueError(f"cond[{name!r}] must hold {n} numbers from {low:g} to {high:g}")
        if hasattr(self.network, "check_context"):
            self.network.check_context(cond)
        return cond

    # The folder

    def save(self, folder: str | Path, examples: Cond | None = None, **facts: Any) -> Path:
        """Write the student folder.

        Args:
            folder: the folder.
            examples: conditions to keep, only with a context: at most 16, as many as fit into 1
                MiB; a single one may have up to 64 MiB.
            facts: domain, method, teacher ... that join student.yaml.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / WEIGHTS, self.weights)
        if self.codec.tuned is not None:
            save_weights(folder / DECODER, self.codec.tuned)
        if self.context and examples:
            row = sum(value[:1].numel() * value.element_size() for value in examples.values())
            num = min(NUM_EXAMPLES, max(1, EXAMPLE_BYTES // max(row, 1)))
            if row <= MOST_EXAMPLE_BYTES:
                self.examples = {name: value[:num].cpu() for name, value in examples.items()}
        if self.examples:
            save_tensors(folder / EXAMPLES, self.examples)
        self.config = {"distillkit": distillkit.__version__, **facts, **self.facts()}
        write_yaml(folder / CONFIG, self.config)
        return folder


def load_student(
    path: str | Path, trust: tuple[str, ...] = (), teacher: Any = None, pipeline: str | None = None
) -> Student:
    """Load a student from its folder, in eval mode; no pickle is read.

    A teacher is built only if the student calls it. The folder may come from a stranger: it chooses
    neither the code that runs nor the files that are read outside of it.

    Args:
        path: a student folder, or the run folder around it.
        trust: additional permissions of the folder: packages whose classes it may name, and paths
            (with a `/`) that it may read outside of itself, where a sampler's teacher, the base of
            adapters or a codec's weights lie.
        teacher: the teacher of a sampler, if it is no longer where the folder says.
        pipeline: the directory of the pipeline that the student was made from, if it is no longer
            where the folder says; the folder may read it.

    Raises:
        ValueError: the folder is missing or damaged, or names a class from an untrusted package or
            a path outside; a sampler's teacher is missing or is not the one it was made for; there
            is no such pipeline.
    """
    folder = home = Path(path)
    if (folder / "student" / CONFIG).is_file():
        folder = folder / "student"
    if not folder.is_dir():
        raise ValueError(f"there is no student folder {path}: give the folder that `fit` wrote")
    file = folder / CONFIG
    config = read_yaml(file)
    if pipeline is not None:
        config, trust = relocated(config, pipeline), (*trust, str(Path(pipeline).expanduser().resolve()))
    # folders of earlier versions name no class
    own = "distillkit.students." + ("sampler.SamplerStudent" if "sampler" in config else "few_step.FewStepStudent")
    with named(file):
        kind = trusted_class(config.get("class_path", own), trust, Student)
    student = kind.load(folder, home, config, trust, teacher)
    student.examples = _examples(folder / EXAMPLES, student)
    return student.requires_grad_(False).eval()


def relocated(config: dict[str, Any], pipeline: str) -> dict[str, Any]:
    """A student.yaml whose pipeline lies in another place.

    Raises:
        ValueError: there is no such directory, or the student was not made from a pipeline.
    """
    root = Path(pipeline).expanduser().resolve()
    if not root.is_dir():
        raise ValueError(f"there is no directory {pipeline}: give that of the pipeline that the student was made from")
    if not (root / "model_index.json").is_file():  # before it is read as a whole
        raise ValueError(f"{pipeline} holds no model_index.json: give the directory of a diffusers pipeline")
    moved, left, config = 0, [config := copy.deepcopy(config)], config
    while left:
        node = left.pop()
        if isinstance(node, list):
            left += node
        if not isinstance(node, dict):
            continue
        left += node.values()
        own, given = str(node.get("class_path")), node.get("init_args")
        if isinstance(given, dict) and PIPELINES in own and isinstance(given.get("path"), str):
            given["path"], moved = str(root), moved + 1
        elif isinstance(given, dict) and isinstance(given.get("pipeline"), str):  # of data
            given["pipeline"] = str(root)
    if not moved:
        raise ValueError("this student was not made from a pipeline that it could read: leave its place out")
    return config


def _examples(file: Path, student: Student) -> Cond:
    """The example conditions of a folder, checked."""
    if not student.context or not file.is_file():
        return {}
    try:
        if file.stat().st_size > 2 * MOST_EXAMPLE_BYTES:
            raise ValueError(f"more than {2 * MOST_EXAMPLE_BYTES:,} bytes are not read")
        found, wanted = read_tensors(file), {*student.classes, *student.context}
        if found.keys() != wanted:
            raise ValueError(f"it holds {sorted(found)}, this student is asked about {sorted(wanted)}")
        num = len(found[student.context[0]]) if found[student.context[0]].ndim else 0
        if not 0 < num <= NUM_EXAMPLES:
            raise ValueError(f"it must hold 1 to {NUM_EXAMPLES} conditions, got {num}")
        student.checked_condition(num, found)
        places = found["mask"].shape[1:] if "mask" in found else ()
        if any(size > largest for size, largest in zip(places, student.event_shape, strict=False)):
            raise ValueError(f"its mask has {list(places)} places, more than samples of {list(student.event_shape)}")
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return found


def _tensor(name: str, value: Any) -> Tensor:
    """A condition as a tensor."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:  # text, rows of different lengths
        raise ValueError(f"cond[{name!r}] must hold numbers: {str(error).splitlines()[0]}") from error


def _kind(value: Tensor) -> str:
    """The dtype and shape of a condition, for messages."""
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def load_codec(config: dict[str, Any], file: Path, trust: tuple[str, ...], home: Path) -> Codec | None:
    """The codec of a student.yaml; one outside of its folder's reach fails when it is used."""
    if "codec" not in config:
        return None
    try:
        with named(file):
            codec = from_spec(config["codec"], trust, home)
    except Outside as error:
        return Refused(str(error))
    if not isinstance(codec, Codec):
        raise ValueError(f"{file} is damaged: codec cannot be {repr(config['codec'])[:80]}")
    if "decoder" not in config:
        return codec
    with named(file):
        decoder = codec.decoder()
    load_weights(decoder, file.parent / DECODER)
    return codec.with_decoder(decoder.requires_grad_(False).eval())


class Refused(Codec):
    """A codec outside of the files that its folder may read.

    Args:
        reason: the error of every use.
    """

    def __init__(self, reason: str):
        self.reason = reason

    def encode(self, batch):
        raise Outside(self.reason)

    def decode(self, x, cond):
        raise Outside(f"{self.reason}; or take samples undecoded, with decode=False")

    def data_shape(self, event_shape):
        return self.decode(None, {})  # before anything is computed

    def answering(self, *asked, **more):
        raise Outside(self.reason)


def check_origin(config: dict[str, Any], file: Path) -> None:
    """Refuse a student.yaml whose record of its making has values of the wrong kind."""
    asks = config.get("asks") or {}
    sound = {
        "kappa": number(config.get("kappa", 1.0)),
        **{key: isinstance(config.get(key) or {}, dict) for key in ("teacher", "run")},
        "asks": isinstance(asks, dict) and all(isinstance(text, str) for text in asks.values()),
    }
    refuse(config, file, sound)


def refuse(config: dict[str, Any], file: Path, sound: dict[str, bool]) -> None:
    """Raise a ValueError on the first key whose value is not sound."""
    for key, fine in sound.items():
        if not fine:
            raise ValueError(f"{file} is damaged: {key} cannot be {repr(config.get(key))[:80]}")
