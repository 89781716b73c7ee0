"""Data modules whose batches are a function of the step, so that a resumed run sees exactly what it would have seen."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

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

    With several processes, process `rank` takes every `world`-th batch, so two processes see in one step what one
    process sees in two accumulated micro-batches. Sized and stateful: Lightning stores its position in the checkpoint.

    Args:
        dataset: anything with `len` and `[LongTensor] -> batch`; where it has `lengths` [len], samples of one batch are of
            similar length.
        batch_size: samples of one batch.
        seed: of the permutations.
        rank, world: this process among all.
        window: micro-batches of one optimiser step; an epoch holds whole steps only, for Lightning would end the last early.
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

    Every `stretch` batches are sorted by length, then the batches are shuffled. The last samples, fewer than a batch, stay.
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
        context: batch keys of further conditions, see `Teacher`.
        provides: what methods may ask for; `data` means real samples under the batch key `data`.
    """

    domain: str
    pictured: int = 64
    provides: frozenset[str] = frozenset({"data"})
    event_shape: tuple[int, ...]
    classes: dict[str, int]
    context: tuple[str, ...] = ()

    def __init__(self, batch_size: int = 64):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self._evaluator = None

    @abstractmethod
    def load(self) -> tuple[Any, Any, Any]:
        """Training, validation and test data: `TensorData` or anything with `len` and `[LongTensor] -> batch`."""

    @abstractmethod
    def build_evaluator(self) -> Any:
        """The domain's evaluator, see `distillkit.evaluation.protocol.Evaluator`."""

    @property
    @abstractmethod
    def media(self) -> Any:
        """Something with `picture(samples, cond)` and `compare(rows, cond)`, both giving a PIL image.

        Optional: `save(samples, cond, folder)` writes files of the domain's own formats and returns their paths.
        """

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "train"):
            self.train, self.val, self.test = self.load()

    def evaluator(self) -> Any:
        """The domain's evaluator, built once."""
        if self._evaluator is None:
            self.setup()
            self._evaluator = self.build_evaluator()
        return self._evaluator

    def conditions(self, num: int) -> Batch:
        """What samples are asked for in evaluation and pictures: classes in turn, or with a context held-out samples'."""
        if not self.context:
            return {name: torch.arange(num) % count for name, count in self.classes.items()}
        self.setup()
        batch = self.test[torch.arange(num) % len(self.test)]
        return {name: batch[name] for name in (*self.classes, *self.context)}

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
