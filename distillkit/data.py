"""Data modules whose batches are a function of the step, so that a resumed run sees exactly what it would have seen."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from distillkit import checks
from distillkit.spec import Recorded

Batch = dict[str, Tensor]


class TensorData:
    """Equally long tensors in memory, indexed together."""

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


class StepLoader:
    """Batches by number. Batch `n` of epoch `e` is a slice of a permutation seeded by (seed, e).

    With several processes, process `rank` takes every `world`-th batch, so two processes see in one
    step what one process sees in two accumulated micro-batches. Sized and stateful: Lightning
    stores its position in the checkpoint.

    Args:
        dataset: anything with `len` and `[LongTensor] -> batch`; where it has `lengths` [len],
            samples of one batch are of similar length.
        batch_size: samples of one batch.
        seed: of the permutations.
        rank, world: this process among all.
        window: micro-batches of one optimiser step; an epoch holds whole steps only, for Lightning
            would end the last early.
        shuffle: false keeps the order of the data.
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
    ):
        self.batches = len(dataset) // (batch_size * world * window) * window
        if self.batches == 0:
            times = "".join(f" x {n} {what}" for n, what in ((world, "processes"), (window, "micro-batches")) if n > 1)
            raise ValueError(
                f"batch_size {batch_size}{times} exceeds the {len(dataset)} training samples: lower data.batch_size"
            )
        self.dataset, self.batch_size, self.seed, self.shuffle = dataset, batch_size, seed, shuffle
        self.rank, self.world, self.position = rank, world, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = divmod(self.position, len(self))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.dataset), generator=generator)
            if (lengths := getattr(self.dataset, "lengths", None)) is not None:
                order = alike(order[: self.batches * self.world * self.batch_size], lengths, self.batch_size, generator)
        else:
            order = torch.arange(len(self.dataset))
        for i in range(first, len(self)):
            number = i * self.world + self.rank
            self.position += 1
            yield self.dataset[order[number * self.batch_size : (number + 1) * self.batch_size]]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def alike(order: Tensor, lengths: Tensor, batch_size: int, generator: torch.Generator, stretch: int = 16) -> Tensor:
    """`order` so that each batch holds samples of similar length; which samples these are, and when they come, is random.

    Every `stretch` batches are sorted by length, then the batches are shuffled. The last samples,
    fewer than a batch, stay.
    """
    order = torch.cat([part[lengths[part].argsort(stable=True)] for part in order.split(stretch * batch_size)])
    whole = len(order) // batch_size * batch_size
    batches = order[:whole].reshape(-1, batch_size)
    return torch.cat([batches[torch.randperm(len(batches), generator=generator)].flatten(), order[whole:]])


class HeldOutLoader:
    """Batches in order, the last one smaller; every process sees all of them."""

    def __init__(self, dataset: Any, batch_size: int):
        self.dataset, self.batch_size = dataset, batch_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for indices in torch.arange(len(self.dataset)).split(self.batch_size):
            yield self.dataset[indices]


class DistillData(Recorded, LightningDataModule):
    """Base of all data modules: `load` gives three data sets, the base turns them into loaders.

    Args:
        batch_size: samples of one micro-batch on one device.

    Attributes:
        domain: its name.
        pictured: samples in a picture.
        event_shape: shape of one sample.
        classes: categorical conditions in a batch, `{key: number of classes}`.
        context: batch keys of further conditions, see `BaseTeacher`.
        asks: what a context is, in the domain's words, by its key: said where a student needs it.
        provides: what methods may ask for; `data` means real samples under the batch key `data`.
    """

    domain: str
    pictured: int = 64
    provides: frozenset[str] = frozenset({"data"})
    event_shape: tuple[int, ...]
    classes: dict[str, int]
    context: tuple[str, ...] = ()
    asks: dict[str, str] = {}

    def __init__(self, batch_size: int = 64):
        super().__init__()
        checks.whole(1, batch_size=batch_size)
        self.batch_size = batch_size
        self._evaluators: dict[str | None, Any] = {}

    @abstractmethod
    def load(self) -> tuple[Any, Any, Any]:
        """Training, validation and test data: `TensorData` or anything with `len` and `[LongTensor] -> batch`."""

    @abstractmethod
    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        """The domain's evaluator against data sets in `held_out`, see `distillkit.evaluation.protocol.Evaluator`."""

    @property
    @abstractmethod
    def media(self) -> Any:
        """Something with `picture(samples, cond)` and `compare(rows, cond)`, both giving a PIL image.

        Optional: `save(samples, cond, folder)` writes files of the domain's own formats and returns
            their paths.
        """

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "train"):
            self.train, self.val, self.test = self.load()
            for part in (self.train, self.val, self.test):
                for name, count in self.classes.items():
                    label = getattr(part, "tensors", {}).get(name)
                    if label is not None and not ((label >= 0) & (label < count)).all():
                        raise ValueError(
                            f"the data say they have {count} classes of {name!r}, but hold class "
                            f"{int(label.max() if label.max() >= count else label.min())}"
                        )

    def evaluator(self, part: Literal["val", "test"] | None = None) -> Any:
        """The domain's evaluator against validation data, test data, or all that is held out (a finished run); built once."""
        if part not in self._evaluators:
            self.setup()
            parts = {"val": [self.val], "test": [self.test], None: [self.val, self.test]}
            self._evaluators[part] = self.build_evaluator(parts[part])
        return self._evaluators[part]

    def conditions(self, num: int) -> Batch:
        """What samples are asked for in evaluation and pictures: classes in turn, or with a context held-out samples'.

        Of the classes those that held-out data have, for there is nothing to measure the others by,
        see `left_out`.
        """
        self.setup()
        if not self.context:
            missing = self.left_out()
            there = {k: [i for i in range(n) if i not in missing.get(k, ())] for k, n in self.classes.items()}
            return {name: torch.tensor(known)[torch.arange(num) % len(known)] for name, known in there.items()}
        batch = self.test[torch.arange(num) % len(self.test)]
        return {name: batch[name] for name in (*self.classes, *self.context)}

    def left_out(self) -> dict[str, list[int]]:
        """The classes of which there are no held-out data, by the name of the condition."""
        found = {}
        for name, count in self.classes.items():
            columns = [column(part, name) for part in (self.val, self.test)]
            if all(known is not None for known in columns):
                found[name] = sorted(set(range(count)) - set(torch.cat(columns).tolist()))
        return {name: missing for name, missing in found.items() if 0 < len(missing) < self.classes[name]}

    def real(self, num: int) -> Batch | None:
        """Held-out samples to show beside those made for `conditions(num)`: of the same classes or context; None without any."""
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
        return StepLoader(self.train, self.batch_size, seed, rank, world, window)

    def val_dataloader(self) -> HeldOutLoader:
        return HeldOutLoader(self.val, self.batch_size)

    def test_dataloader(self) -> HeldOutLoader:
        return HeldOutLoader(self.test, self.batch_size)


def column(dataset: Any, name: str) -> Tensor | None:
    """One condition of all samples, where a data set knows it without making them: in its tensors, or under its name."""
    return dataset.tensors.get(name) if isinstance(dataset, TensorData) else getattr(dataset, name, None)


def split(
    groups: Sequence[int], val: int, test: int, seed: int = 0, order: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of train, val and test, every group in proportion; each sorted.

    Args:
        groups: the class of every item (all equal when there are none).
        val, test: number of items.
        seed: of the shuffle that decides who goes where (NumPy's frozen legacy generator).
        order: decides instead of a shuffle.
    """
    if order is None:
        order = np.random.RandomState(seed).permutation(len(groups)).tolist()
    size, seen = Counter(groups), Counter()
    place = {}  # how far along its own group an item stands, in (0, 1): every stretch of places is in proportion
    for item in order:
        seen[groups[item]] += 1
        place[item] = (seen[groups[item]] - 0.5) / size[groups[item]]
    ranked = sorted(order, key=place.__getitem__)
    parts = ranked[val + test :], ranked[test : val + test], ranked[:test]
    return tuple(torch.tensor(sorted(part), dtype=torch.long) for part in parts)
