"""Data modules whose batches are a function of the step, so that resumed runs see the same ones."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from distillkit import checks
from distillkit.devices import able
from distillkit.feeding import Batch, Feed, workers_for
from distillkit.spec import Recorded

BESIDE = ("train", "val", "test", "trainer", "_steps", "_evaluators", "_arguments")  # a module's settings


class TensorData:
    """Equally long tensors in memory, indexed together."""

    in_memory = True

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = dict(tensors)
        lengths = {name: len(value) for name, value in self.tensors.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"tensors of one data set must be equally long, got {lengths}")
        for name, value in self.tensors.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(f"{name!r} contains NaN or infinity: clean the data before distilling on it")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, indices: Tensor) -> Batch:
        return {name: value[indices] for name, value in self.tensors.items()}


class Rows:
    """Some rows of a data set, as a data set.

    Args:
        dataset: `len` and `[LongTensor] -> batch`.
        rows: int64 [N].
    """

    def __init__(self, dataset: Any, rows: Tensor):
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Tensor) -> Batch:
        return self.dataset[self.rows[indices]]


class StepLoader:
    """A loader of batches by number, slices of an epoch's permutation, seeded by (seed, epoch).

    With several processes, process `rank` takes every `world`-th batch, so two processes see in one
    step the batches that one process sees in two accumulated micro-batches. Its position is part of
    Lightning's checkpoints.

    Args:
        dataset: anything with `len` and `[LongTensor] -> batch`; if it has `lengths` [len],
            samples of one batch are of similar length; if it has a number `together`, indices are
            shuffled among so many neighbours alone, whose samples are read from the same files.
        batch_size: samples of one batch.
        seed: seed of the permutations.
        rank, world: index of this process, and number of processes.
        window: micro-batches of one optimiser step; an epoch has whole steps only, since Lightning
            would end the last one early.
        shuffle: whether batches are drawn from permutations; false keeps the order of the data.
        workers, pin: as in `Feed`.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        window: int = 1,
        shuffle: bool = True,
        workers: int = 0,
        pin: bool = False,
    ):
        self.batches = len(dataset) // (batch_size * world * window) * window
        if self.batches == 0:
            times = "".join(f" x {n} {what}" for n, what in ((world, "processes"), (window, "micro-batches")) if n > 1)
            raise ValueError(
                f"batch_size {batch_size}{times} exceeds the {len(dataset)} training samples: lower data.batch_size"
            )
        self.dataset, self.batch_size, self.seed, self.shuffle = dataset, batch_size, seed, shuffle
        self.rank, self.world, self.position = rank, world, 0
        self.feed = Feed(dataset, workers, pin)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = divmod(self.position, len(self))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.dataset), generator=generator)
            if (lengths := getattr(self.dataset, "lengths", None)) is not None:
                order = alike(order[: self.batches * self.world * self.batch_size], lengths, self.batch_size, generator)
            if (together := getattr(self.dataset, "together", None)) is not None:
                order = order[(order // together).argsort(stable=True)]
        else:
            order = torch.arange(len(self.dataset))
        numbers = range(first * self.world + self.rank, len(self) * self.world, self.world)
        rows = (order[number * self.batch_size : (number + 1) * self.batch_size] for number in numbers)
        for batch in self.feed(rows):
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def alike(order: Tensor, lengths: Tensor, batch_size: int, generator: torch.Generator, stretch: int = 16) -> Tensor:
    """Reorder `order` so that each batch holds samples of similar length, in random order.

    Every `stretch` batches are sorted by length, then the batches are shuffled. The last samples,
    fewer than a batch, stay at the end.
    """
    order = torch.cat([part[lengths[part].argsort(stable=True)] for part in order.split(stretch * batch_size)])
    whole = len(order) // batch_size * batch_size
    batches = order[:whole].reshape(-1, batch_size)
    return torch.cat([batches[torch.randperm(len(batches), generator=generator)].flatten(), order[whole:]])


class HeldOutLoader:
    """Batches in order, the last one smaller; every process sees all of them.

    They are read here, without workers, because evaluation reads the same data here.
    """

    def __init__(self, dataset: Any, batch_size: int):
        self.dataset, self.batch_size = dataset, batch_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        yield from Feed(self.dataset)(torch.arange(len(self.dataset)).split(self.batch_size))


class DistillData(Recorded, LightningDataModule):
    """The base of data modules: `load` gives three data sets, the base makes loaders of them.

    Args:
        batch_size: samples of one micro-batch on one device.

    Attributes:
        domain: name of the domain.
        pictured: number of samples in a picture.
        event_shape: shape of one sample.
        classes: categorical conditions in a batch, `{key: number of classes}`.
        names: of these classes, by number, for each key where they have names.
        context: batch keys of further conditions, see `BaseTeacher`.
        shown: what `media` needs to know besides the samples, by name, such as a sample rate; a
            student's folder keeps it.
        asks: by context key, a description in the domain's words, for errors about a missing one.
        provides: capabilities for methods; `data` means real samples under the batch key `data`,
            `numbers` that noise can be added to them, `points` that they are sets of points in
            space, `approximation` that a condition approximates each of them, `reward` that
            `reward` is implemented, `reward_gradient` that it is differentiable in the samples too.
        workers: processes that read training batches; None leaves their number to `workers_for`.
            Data that are read from files take it as an argument; others are read here.
        easier: for each easier observation of the samples, the easiest one first, the batch keys
            that stand for those of the context, such as `[{"low": "low_2"}]`. Each observation must
            be made from the one before it, and the context from the last.
    """

    domain: str
    pictured: int = 64
    provides: frozenset[str] = frozenset({"data", "numbers"})
    event_shape: tuple[int, ...]
    classes: dict[str, int]
    names: Mapping[str, Sequence[str]] = {}
    shown: Mapping[str, float] = {}
    context: tuple[str, ...] = ()
    asks: dict[str, str] = {}
    workers: int | None = 0
    easier: Sequence[dict[str, str]] = ()

    def __init__(self, batch_size: int = 64):
        super().__init__()
        checks.whole(1, batch_size=batch_size)
        self.batch_size = batch_size
        self._evaluators: dict[tuple[str | None, torch.device], Any] = {}
        self._steps: StepLoader | None = None

    def settings(self) -> DistillData:
        """A copy with the settings alone, for data sets to keep that workers get copies of."""
        settings = copy.copy(self)
        for name in BESIDE:
            vars(settings).pop(name, None)
        return settings

    @abstractmethod
    def load(self) -> tuple[Any, Any, Any]:
        """Training, validation, test data: `TensorData`, or `len` and `[LongTensor] -> batch`.

        A batch must follow from its indices alone: another thread asks for it, before its step, and
        perhaps while this one asks for others. Where the module takes `workers`, each of these gets
        a copy of the data set, which must pickle: it keeps `settings()` instead of the module.
        """

    @abstractmethod
    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        """The domain's evaluator against data sets, see `evaluation.protocol.Evaluator`.

        Its `device` is set before it is used.
        """

    @property
    @abstractmethod
    def media(self) -> Any:
        """An object whose `picture(samples, cond)` and `compare(rows, cond)` give PIL images.

        Optional: `save(samples, cond, folder)` writes files in the domain's formats and returns
        their paths; `of_student(student, cond, folder)` does so with what a student itself is, such
        as a scene.
        """

    @property
    def controls(self) -> dict[str, type]:
        """What `optimize` can ask of samples, `distillkit.control.control.Control`s by name."""
        return {}

    def reward(self, samples: Tensor, batch: Batch) -> Tensor:
        """How good each sample is, [B] float on the samples' device; higher is better.

        A preference of the domain, to rank samples that were made for the same conditions. Data
        that have one name `reward` in `provides`. It need not be differentiable; where it is, data
        name `reward_gradient` too, and a student may be trained through it.

        Args:
            samples: decoded samples [B, ...].
            batch: the batch that they were made for, on their device.
        """
        raise NotImplementedError(f"{type(self).__name__} has no reward")

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "train"):
            self.train, self.val, self.test = self.load()
            for part in (self.train, self.val, self.test):
                for name, count in self.classes.items():
                    label = column(part, name)
                    if label is not None and not ((label >= 0) & (label < count)).all():
                        raise ValueError(
                            f"the data say they have {count} classes of {name!r}, but hold class "
                            f"{int(label.max() if label.max() >= count else label.min())}"
                        )

    def evaluator(self, part: Literal["val", "test"] | None = None, device: torch.device | str = "cpu") -> Any:
        """The domain's evaluator, built once for a device.

        Args:
            part: compare with validation or test data, or both (None).
            device: where it computes, the CPU if that has no float64; samples come on the CPU all
                the same.
        """
        key = part, able(torch.device(device))
        if key not in self._evaluators:
            self.setup()
            parts = {"val": [self.val], "test": [self.test], None: [self.val, self.test]}
            evaluator = self.build_evaluator(parts[part])
            evaluator.device = key[1]
            self._evaluators[key] = evaluator
        return self._evaluators[key]

    def conditions(self, num: int) -> Batch:
        """Conditions of `num` samples for evaluation and pictures.

        They are the classes in turn, or with a context those of held-out samples. Classes without
        held-out data are left out, since there is no reference for them, see `left_out`.
        """
        self.setup()
        if not self.context:
            missing = self.left_out()
            there = {k: [i for i in range(n) if i not in missing.get(k, ())] for k, n in self.classes.items()}
            return {name: torch.tensor(known)[torch.arange(num) % len(known)] for name, known in there.items()}
        batch = self.test[torch.arange(num) % len(self.test)]
        return {name: batch[name] for name in (*self.classes, *self.context)}

    def left_out(self) -> dict[str, list[int]]:
        """The classes without held-out data, by the name of the condition."""
        found = {}
        for name, count in self.classes.items():
            columns = [column(part, name) for part in (self.val, self.test)]
            if all(known is not None for known in columns):
                found[name] = sorted(set(range(count)) - set(torch.cat(columns).tolist()))
        return {name: missing for name, missing in found.items() if 0 < len(missing) < self.classes[name]}

    def real(self, num: int) -> Batch | None:
        """Held-out samples with the classes or context of `conditions(num)`; None without any."""
        wanted, rows = self.conditions(num), []
        columns = {} if self.context else {name: column(self.test, name) for name in self.classes}
        everything, shown = torch.arange(len(self.test)), Counter()
        for i in range(num):
            asked = {name: int(wanted[name][i]) for name, known in columns.items() if known is not None}
            alike = everything
            for name, value in asked.items():
                alike = alike[columns[name][alike] == value]
            place = shown[tuple(asked.values())]
            rows.append(alike[place % len(alike)] if len(alike) else everything[i % len(everything)])
            shown[tuple(asked.values())] += 1
        batch = self.test[torch.stack(rows)]
        return batch if "data" in batch else None

    def train_dataloader(self) -> StepLoader:
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        seed = getattr(trainer.lightning_module, "seed", 0) if trainer else 0
        window = trainer.accumulate_grad_batches if trainer else 1
        running = trainer and trainer.strategy  # a plan has no strategy
        device, processes = (running.root_device, trainer.num_devices) if running else (torch.device("cpu"), 1)
        workers = workers_for(device, processes) if self.workers is None else self.workers
        pin = device.type == "cuda"
        self._steps = StepLoader(self.train, self.batch_size, seed, rank, world, window, workers=workers, pin=pin)
        return self._steps

    def val_dataloader(self) -> HeldOutLoader:
        return HeldOutLoader(self.val, self.batch_size)

    def test_dataloader(self) -> HeldOutLoader:
        return HeldOutLoader(self.test, self.batch_size)

    def teardown(self, stage: str) -> None:
        if self._steps is not None:
            self._steps.feed.close()

    def on_exception(self, exception: BaseException) -> None:
        self.teardown("fit")


def column(dataset: Any, name: str) -> Tensor | None:
    """One condition of all samples, from a data set's tensors or attribute; None if not known."""
    return dataset.tensors.get(name) if isinstance(dataset, TensorData) else getattr(dataset, name, None)


def split(
    groups: Sequence[int], val: int, test: int, seed: int = 0, order: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of train, val and test, every group in proportion; each sorted.

    Args:
        groups: the class of every item (all equal if there are none).
        val, test: numbers of items.
        seed: seed of the shuffle that assigns items (NumPy's frozen legacy generator).
        order: an order of the items instead of a shuffle.
    """
    if order is None:
        order = np.random.RandomState(seed).permutation(len(groups)).tolist()
    size, seen = Counter(groups), Counter()
    place = {}  # relative position of an item in its group, in (0, 1): intervals are in proportion
    for item in order:
        seen[groups[item]] += 1
        place[item] = (seen[groups[item]] - 0.5) / size[groups[item]]
    ranked = sorted(order, key=place.__getitem__)
    parts = ranked[val + test :], ranked[test : val + test], ranked[:test]
    return tuple(torch.tensor(sorted(part), dtype=torch.long) for part in parts)
