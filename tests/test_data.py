"""Batches as a function of the step: resumable, shared by processes, unique within an epoch."""

import contextlib
import gc
import itertools
import threading
from types import SimpleNamespace

import pytest
import torch
from helpers import trainer
from lightning.pytorch import Callback, LightningModule

from distillkit.data import DistillData, HeldOutLoader, StepLoader, TensorData


def numbers(size=20):
    return TensorData({"data": torch.arange(float(size))[:, None], "label": torch.arange(size) % 3})


def drawn(loader, epochs=1):
    """The numbers in each batch."""
    return [batch["data"].flatten().tolist() for _ in range(epochs) for batch in loader]


def test_an_epoch_sees_every_sample_once_and_the_next_in_another_order():
    loader = StepLoader(numbers(), 4, seed=1)
    first, second = drawn(loader), drawn(loader)
    assert len(loader) == len(first) == 5
    for epoch in (first, second):
        assert sorted(itertools.chain(*epoch)) == list(range(20))
    assert first != second and first != drawn(StepLoader(numbers(), 4, seed=2))
    assert first + second == drawn(StepLoader(numbers(), 4, seed=1), epochs=2)


def test_tensors_stay_together():
    for batch in StepLoader(numbers(), 4):
        assert torch.equal(batch["data"].flatten().long() % 3, batch["label"])


def test_a_remainder_is_dropped_and_returns_in_other_epochs():
    loader = StepLoader(numbers(22), 4)
    epochs = [drawn(loader) for _ in range(8)]
    assert all(len(epoch) == 5 for epoch in epochs)
    assert {x for epoch in epochs for batch in epoch for x in batch} == set(range(22))


@pytest.mark.parametrize("cut", range(0, 16))
def test_resuming_anywhere_continues_exactly(cut):
    """Inside an epoch, at its very end, at the very start: position is all there is to store."""
    whole = drawn(StepLoader(numbers(), 4, seed=3), epochs=4)
    first = StepLoader(numbers(), 4, seed=3)
    seen, stream = [], itertools.chain.from_iterable(iter(first) for _ in itertools.count())
    for _ in range(cut):
        seen.append(next(stream)["data"].flatten().tolist())
    state = first.state_dict()
    second = StepLoader(numbers(), 4, seed=3)
    second.load_state_dict(state)
    rest = itertools.chain.from_iterable(iter(second) for _ in itertools.count())
    seen += [next(rest)["data"].flatten().tolist() for _ in range(20 - cut)]
    assert seen == whole


def test_two_processes_interleave_into_one():
    one = drawn(StepLoader(numbers(24), 4, seed=3), epochs=2)
    ranks = [drawn(StepLoader(numbers(24), 4, seed=3, rank=rank, world=2), epochs=2) for rank in range(2)]
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == one
    assert len(StepLoader(numbers(24), 4, world=2)) == 3


def test_processes_never_share_a_sample():
    loaders = [StepLoader(numbers(50), 4, rank=rank, world=3) for rank in range(3)]
    seen = [x for loader in loaders for batch in drawn(loader) for x in batch]
    assert len(seen) == len(set(seen)) == 48 and {len(loader) for loader in loaders} == {4}


def test_without_shuffling_the_order_is_the_datas():
    assert drawn(StepLoader(numbers(8), 4, shuffle=False)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("batch_size, world", [(21, 1), (11, 2)])
def test_batches_larger_than_the_data_are_refused(batch_size, world):
    with pytest.raises(
        ValueError,
        match=rf"batch_size {batch_size}( x {world} processes)? exceeds the 20 training samples: lower data.batch_size",
    ):
        StepLoader(numbers(), batch_size, world=world)
    StepLoader(numbers(), 20 // world, world=world)


def test_held_out_data_come_whole_and_in_order():
    loader = HeldOutLoader(numbers(10), 4)
    assert drawn(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and len(loader) == 3
    assert drawn(loader) == drawn(loader)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_numbers_are_refused(bad):
    data = torch.zeros(5, 2)
    data[3, 1] = bad
    with pytest.raises(ValueError, match="'data' contains NaN or infinity: clean the data"):
        TensorData({"data": data, "label": torch.zeros(5, dtype=torch.long)})


def test_tensors_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="must be equally long, got {'data': 3, 'label': 4}"):
        TensorData({"data": torch.zeros(3, 1), "label": torch.zeros(4)})


class Numbers(DistillData):
    event_shape, classes = (1,), {"label": 3}
    loads = 0

    def load(self):
        self.loads += 1
        return numbers(20), numbers(6), numbers(7)

    def build_evaluator(self, held_out):
        return SimpleNamespace()

    media = None


def test_a_module_loads_once_and_gives_its_loaders():
    module = Numbers(batch_size=4)
    evaluator = module.evaluator()
    module.setup("fit"), module.setup("test")
    assert module.loads == 1 and module.evaluator() is evaluator
    assert (len(module.train_dataloader()), len(module.val_dataloader()), len(module.test_dataloader())) == (5, 2, 2)


@pytest.mark.parametrize("batch_size", [0, -4])
def test_an_impossible_batch_size_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        Numbers(batch_size)


def test_an_epoch_holds_whole_accumulation_windows():
    """Seven batches in windows of two make three steps, as two processes do with the same data."""
    data = TensorData({"data": torch.arange(7.0)})
    assert len(StepLoader(data, 1, window=2)) == 6 and len(StepLoader(data, 1, world=2)) == 3
    with pytest.raises(ValueError, match="2 micro-batches exceeds the 7 training samples"):
        StepLoader(data, 4, window=2)


class Labelled(DistillData):
    """Ten points for each of three classes, of which held-out data lack the one in the middle."""

    event_shape, classes = (1,), {"label": 3}
    build_evaluator = media = None

    def load(self):
        label = torch.arange(30) % 3
        every = {"data": label[:, None].float(), "label": label}
        held_out = {name: value[label != 1] for name, value in every.items()}
        return TensorData(every), TensorData(held_out), TensorData(held_out)


def test_classes_without_held_out_data_are_not_asked_for():
    data = Labelled()
    assert data.conditions(5)["label"].tolist() == [0, 2, 0, 2, 0]
    assert data.left_out() == {"label": [1]}


def test_real_data_beside_samples_are_of_their_classes_and_all_different():
    data = Labelled()
    real = data.real(6)
    assert real["label"].tolist() == data.conditions(6)["label"].tolist() == real["data"][:, 0].tolist()
    data.setup()
    data.test.tensors["data"] = torch.arange(20.0)[:, None]
    assert len(set(data.real(20)["data"][:, 0].tolist())) == 20 and len(data.real(50)["data"]) == 50


# Reading ahead


class Read:
    """The numbers, read as files are; `broken` ones cannot be."""

    def __init__(self, size=20, broken=()):
        self.numbers, self.broken, self.asked = numbers(size), broken, []

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, indices):
        self.asked.append(threading.current_thread().name)
        if set(indices.tolist()) & set(self.broken):
            raise ValueError("cannot be read")
        return self.numbers[indices]


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 7])
def test_what_is_read_ahead_is_the_same_and_resumes_exactly(cut):
    whole, data = drawn(StepLoader(numbers(), 4, seed=3), epochs=3), Read()
    first, second = StepLoader(data, 4, seed=3), StepLoader(data, 4, seed=3)
    stream = itertools.chain.from_iterable(iter(first) for _ in itertools.count())
    seen = [next(stream)["data"].flatten().tolist() for _ in range(cut)]
    del stream
    second.load_state_dict(first.state_dict())
    seen += drawn(second, epochs=3)
    assert seen[: len(whole)] == whole and drawn(HeldOutLoader(data, 8)) == drawn(HeldOutLoader(numbers(), 8))
    assert not readers() and all(name.startswith("batches") for name in data.asked)


def test_the_next_two_batches_are_read_during_a_step_and_no_more():
    data, two, third = Read(), threading.Event(), threading.Event()
    read = data.__getitem__

    class Watched(Read):
        def __getitem__(self, indices):
            batch = read(indices)
            {3: two, 4: third}.get(len(data.asked), threading.Event()).set()
            return batch

    loader = StepLoader(Watched(), 4)
    stream = iter(loader)
    next(stream)
    assert two.wait(10) and not third.wait(0.05)
    assert loader.position == 1  # a checkpoint counts what was seen
    next(stream)
    assert third.wait(10)
    stream.close()
    assert not readers()


def test_an_error_comes_at_its_batch_and_shows_where_it_arose():
    loader, seen = StepLoader(Read(broken=[9]), 4, shuffle=False), []
    with pytest.raises(ValueError, match="cannot be read") as error:
        seen.extend(batch["data"] for batch in loader)
    assert len(seen) == 2 and loader.position == 2 and "__getitem__" in [entry.name for entry in error.traceback]
    assert not readers()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", [None, RuntimeError, KeyboardInterrupt])
def test_the_reader_ends_with_the_run(fault):
    """At its last step in the middle of an epoch, by an error, by Ctrl-C."""

    class Files(Numbers):
        def load(self):
            return Read(), Read(), Read()

    class Fault(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2 and fault:
                raise fault

    class Model(LightningModule):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch, batch_idx):
            return (batch["data"] - self.w).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises((RuntimeError, SystemExit)) if fault else contextlib.nullcontext():
        trainer(3, callbacks=[Fault()]).fit(Model(), Files(batch_size=4))
    gc.collect()
    assert not readers()


def test_tensors_in_memory_need_no_thread():
    stream = iter(StepLoader(numbers(), 4))
    next(stream)
    assert not readers()
