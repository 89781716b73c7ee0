"""Batches that workers read: the same ones in the same order, with the same errors and warnings."""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import re
import signal
import threading
import time
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import Command, forked_ddp, same, trainer
from lightning.pytorch import Callback, LightningModule
from mutations import Mutation, prove
from PIL import Image
from torch.utils.data import _utils

from distillkit import feeding, runs, signals
from distillkit.cli import front
from distillkit.data import DistillData, StepLoader, TensorData
from distillkit.feeding import Feed, workers_for
from domains.image import data as images

SIZE = 22
pytestmark = pytest.mark.filterwarnings("ignore:.*DataLoader will create")  # more than there are cores


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    """Workers are forks, which begin at once; none of them reads a video."""
    monkeypatch.setattr(feeding, "METHOD", "fork")
    yield
    assert not multiprocessing.active_children()


class Read:
    """Numbers, read as files are, each with the process that read it."""

    def __init__(self, broken=(), said=(), stuck=()):
        self.broken, self.said, self.stuck = broken, said, stuck

    def __len__(self):
        return SIZE

    def __getitem__(self, indices):
        for i in {*indices.tolist()} & {*self.said}:
            warnings.warn(f"{i} is damaged", stacklevel=1)
        if {*indices.tolist()} & {*self.stuck}:
            time.sleep(600)
        if {*indices.tolist()} & {*self.broken}:
            raise ValueError(f"{indices.tolist()} cannot be read")
        return {"data": indices.float()[:, None], "reader": torch.full_like(indices, os.getpid())}


def drawn(loader, epochs=1):
    return [batch["data"][:, 0].tolist() for _ in range(epochs) for batch in loader]


def readers(batches):
    return {pid for batch in batches for pid in batch["reader"].tolist()}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_order_is_that_without_workers_and_no_number_of_the_run_is_drawn(workers):
    state = torch.get_rng_state()
    loader = StepLoader(Read(), 4, seed=3, workers=workers)
    found = drawn(loader, epochs=3)
    assert found == drawn(StepLoader(Read(), 4, seed=3), epochs=3) and found[:5] != found[5:10]
    assert torch.equal(torch.get_rng_state(), state)
    loader.feed.close()


@pytest.mark.parametrize("before, after", [(2, 0), (0, 2), (1, 3)])
@pytest.mark.parametrize("cut", [3, 5, 6])
def test_runs_go_on_exactly_with_another_number_of_workers(before, after, cut):
    """Within an epoch, at its end and after it; what was read ahead is not counted."""
    whole = drawn(StepLoader(Read(), 4, seed=1), epochs=3)
    first, second = (StepLoader(Read(), 4, seed=1, workers=workers) for workers in (before, after))
    stream = itertools.chain.from_iterable(iter(first) for _ in itertools.count())
    seen = [next(stream)["data"][:, 0].tolist() for _ in range(cut)]
    assert first.state_dict() == {"position": cut}
    second.load_state_dict(first.state_dict())
    rest = itertools.chain.from_iterable(iter(second) for _ in itertools.count())
    seen += [next(rest)["data"][:, 0].tolist() for _ in range(15 - cut)]
    assert seen == whole
    first.feed.close(), second.feed.close()


def test_workers_stay_for_the_next_epoch_even_if_one_is_left_early():
    loader = StepLoader(Read(), 4, workers=2)
    first = readers(loader)
    assert len(first) == 2 and os.getpid() not in first
    stream = iter(loader)
    assert readers([next(stream)]) < first
    stream.close()
    assert readers(loader) == first == {process.pid for process in multiprocessing.active_children()}
    loader.feed.close()
    assert not multiprocessing.active_children()


def test_an_error_comes_at_its_batch_in_its_own_words():
    for workers in (0, 2):
        loader = StepLoader(Read(broken=[9]), 4, shuffle=False, workers=workers)
        seen = []
        with pytest.raises(ValueError) as error:
            seen.extend(loader)
        assert str(error.value) == "[8, 9, 10, 11] cannot be read" and len(seen) == loader.position == 2


def test_warnings_of_workers_are_the_runs():
    loader = StepLoader(Read(said=[9]), 4, shuffle=False, workers=2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        drawn(loader)
    loader.feed.close()
    assert [str(each.message) for each in said if "DataLoader" not in str(each.message)] == ["9 is damaged"]


@pytest.mark.parametrize("number", signals.STOP, ids=str)
def test_workers_do_not_hear_the_signals_that_stop_a_run(number):
    loader = StepLoader(Read(), 4, workers=2)
    stream = iter(loader)
    seen = [next(stream)]
    for process in multiprocessing.active_children():
        os.kill(process.pid, number)
    assert len([*seen, *stream]) == 5
    loader.feed.close()
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_workers_that_are_stuck_end_with_the_run(monkeypatch):
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    loader = StepLoader(Read(stuck=[9]), 4, shuffle=False, workers=2)
    stream = iter(loader)
    next(stream)
    loader.feed.close()
    assert not multiprocessing.active_children()


def test_tensors_in_memory_need_no_workers():
    loader = StepLoader(TensorData({"data": torch.arange(20.0)[:, None]}), 4, workers=2)
    assert len(drawn(loader)) == 5 and loader.feed._processes is None


# Data modules


class Numbers(DistillData):
    event_shape, classes = (1,), {}
    build_evaluator = media = None

    def __init__(self, workers=0, batch_size=2):
        super().__init__(batch_size)
        self.workers = workers

    def load(self):
        return Read(), Read(), Read()


class Seen(LightningModule):
    """Keeps what it saw, by step."""

    def __init__(self, folder=None):
        super().__init__()
        self.w, self.folder = torch.nn.Parameter(torch.zeros(1)), folder
        self.seen, self.readers = [], set()

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["data"][:, 0].tolist())
        self.readers |= {*batch["reader"].tolist()}
        return (batch["data"] - self.w).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_end(self):
        if self.folder:
            torch.save(self.seen, self.folder / f"{self.global_rank}.pt")


def test_two_processes_with_workers_share_an_epoch(tmp_path):
    data = Numbers(workers=1)
    trainer(5, strategy=forked_ddp(), devices=2).fit(Seen(tmp_path), data)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = drawn(StepLoader(Read(), 2))
    assert [one, two] == [alone[0:10:2], alone[1:10:2]]


class Fault(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            raise RuntimeError


@pytest.mark.parametrize("fault", [False, True])
def test_workers_end_with_the_run_and_not_before(fault):
    model, data = Seen(), Numbers(workers=2)
    with pytest.raises(RuntimeError) if fault else contextlib.nullcontext():
        trainer(15, callbacks=[Fault()] if fault else []).fit(model, data)  # into a second epoch
    assert model.seen == drawn(StepLoader(Read(), 2), 2)[: 3 if fault else 15] and len(model.readers) == 2
    assert not multiprocessing.active_children()


def test_epochs_that_are_cut_short_go_on_in_order():
    model = Seen()
    trainer(8, limit_train_batches=3).fit(model, Numbers(workers=2))
    expected = Seen()
    trainer(8, limit_train_batches=3).fit(expected, Numbers())
    assert model.seen == expected.seen and len(model.seen) == 8


def at(device, workers=None, processes=1):
    """The loader of a run on a device."""
    data = Numbers(workers)
    data.trainer = SimpleNamespace(
        global_rank=0,
        world_size=processes,
        num_devices=processes,
        accumulate_grad_batches=1,
        lightning_module=SimpleNamespace(seed=0),
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )
    data.setup()
    return data.train_dataloader()


def test_only_a_gpu_gets_workers_by_itself_and_pinned_memory(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    assert [at("cuda:1").feed.workers, at("cuda", processes=2).feed.workers, at("cpu").feed.workers] == [5, 2, 0]
    assert [at(device, workers=3).feed.workers for device in ("cuda", "cpu")] == [3, 3]
    next(iter(at("cpu", workers=0)))
    assert not pinned
    batch = next(iter(at("cuda", workers=0)))
    assert any(x is batch["data"] for x in pinned)
    loader = StepLoader(TensorData({"data": torch.arange(8.0)}), 4, pin=True)
    assert next(iter(loader))["data"] is pinned[-1]


@pytest.mark.parametrize(
    "cores, processes, workers", [(1, 1, 0), (2, 1, 1), (2, 2, 0), (16, 1, 8), (16, 8, 1), (64, 4, 8)]
)
def test_processes_of_a_machine_share_its_cores(cores, processes, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    assert workers_for(torch.device("cuda"), processes) == workers and workers_for(torch.device("cpu"), processes) == 0


def test_the_settings_of_a_module_take_nothing_of_the_run_along():
    data = Numbers(workers=2)
    data.setup()
    data.trainer = data.train.lock = threading.Lock()  # which does not pickle
    assert vars(pickle.loads(pickle.dumps(data.settings())))["batch_size"] == 2 and data.trainer is data.train.lock


# The command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty pictures, of which every pixel has a level of its own."""
    room = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        Image.new("L", (8, 8), 5 * i + 20).save(room / f"{i:02}.png")
    return room


def words(folder, out, *more):
    given = ["domain=image", "method=pretrain", "data=image_folder", f"data.path={folder}", "data.resolution=8"]
    given += ["data.channels=1", "data.batch_size=8", "network=mlp", "network.width=16", "network.depth=1"]
    given += ["model.schedule=constant", "~vars.callbacks.finish", "vars.callbacks.watch.samples=0"]
    return ["fit", *given, "trainer.limit_val_batches=0", *more, "--out", str(out)]


def fit(*given):
    return front.main(words(*given))


def left(out):
    """The weights, averages and moments of a run, and the place of its data."""
    kept = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    return [kept[name] for name in ("state_dict", "optimizer_states", "global_step")]


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setenv(runs.OUT, "")  # which is then put back


def test_a_run_with_workers_is_the_one_without_and_goes_on_with_other_workers(folder, tmp_path, alone):
    assert fit(folder, tmp_path / "whole", "trainer.max_steps=6") == 0
    assert fit(folder, tmp_path / "part", "trainer.max_steps=3", "data.workers=2") == 0
    last = ["--ckpt_path", str(tmp_path / "part/checkpoints/last.ckpt")]
    assert fit(folder, tmp_path / "rest", "trainer.max_steps=6", "data.workers=1", *last) == 0
    assert same(left(tmp_path / "rest"), left(tmp_path / "whole"))


def test_a_run_names_the_file_that_breaks_during_it_as_without_workers(folder, tmp_path, alone, monkeypatch, capsys):
    def broken(path, channels):
        raise ValueError(f"{path.name} cannot be decoded")

    monkeypatch.setattr(images, "decoded", broken)
    said = []
    for workers in (0, 1):
        assert fit(folder, tmp_path / f"{workers}", "trainer.max_steps=2", f"data.workers={workers}") == 1
        said.append(capsys.readouterr().err.splitlines()[-1])
    assert said[0] == said[1] and "none of 32 can be read: " in said[0]


def test_ctrl_c_ends_a_run_with_workers(folder, tmp_path):
    run = Command(*words(folder, tmp_path / "run", "trainer.max_steps=100000", "data.workers=2"))
    run.until(lambda: re.search("^step ", run.stdout, re.M))
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=60) == 130 and "stopped at step" in run.stderr and "Traceback" not in run.stderr


def test_a_worker_that_is_lost_ends_the_run_in_a_sentence(folder, tmp_path, alone, monkeypatch, capsys):
    monkeypatch.setattr(images, "decoded", lambda path, channels: os._exit(3))
    assert fit(folder, tmp_path / "run", "trainer.max_steps=2", "data.workers=1") == 1
    assert "error: a worker that reads data was lost; say data.workers=0, or leave" in capsys.readouterr().err


MUTATIONS = [
    (Feed._by_workers, "warnings of workers are lost", "warnings.warn(text, kind, stacklevel=2)", "pass",
     test_warnings_of_workers_are_the_runs),
    (Feed._by_workers, "every epoch is the first", "self._order.rows = rows",
     "self._order.rows = self._order.rows or [*rows]",
     partial(test_the_order_is_that_without_workers_and_no_number_of_the_run_is_drawn, 2)),
    (Feed._started, "a draw from the run's own numbers", "generator=torch.Generator(),", "",
     partial(test_the_order_is_that_without_workers_and_no_number_of_the_run_is_drawn, 2)),
    (StepLoader.__iter__, "what is read ahead counts", "self.position += 1", "self.position += 2",
     partial(test_runs_go_on_exactly_with_another_number_of_workers, 2, 0, 3)),
]  # fmt: skip


@pytest.mark.parametrize("mutation", [Mutation(says, of, *rest) for of, says, *rest in MUTATIONS], ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)
