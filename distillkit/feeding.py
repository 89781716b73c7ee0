"""Batches before their step, read by threads of this process or by worker processes.

Who reads changes neither a batch nor the order of batches.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from distillkit import signals

Batch = dict[str, Tensor]
Item, Found = TypeVar("Item"), TypeVar("Found")
AHEAD = 2  # batches of a reader that may wait for their step
THREADS = 8  # that read one batch
MOST = 8  # workers of a training process, unless a number is given
LOST = "DataLoader worker"  # in PyTorch's errors about workers that died
# Workers begin as new interpreters, all by one server: after a video was read in this process, a
# forked one waits for ever.
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def in_parallel(read: Callable[[Item], Found], items: Iterable[Item]) -> list[Found]:
    """The results of `read`, in order: of threads, but in a worker of one item after the other."""
    if get_worker_info() is not None:
        return [read(item) for item in items]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read, items))


def workers_for(device: torch.device, processes: int) -> int:
    """The number of workers where none is given: 0 on the CPU, else the cores beside the step's.

    Decoders let other threads run while they work. Threads are no slower than workers where steps
    take the same cores, and begin at once.

    Args:
        device: of the training process.
        processes: that train on this machine.
    """
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(MOST, cores // processes - 1))


class Feed:
    """Reads the batches of a data set before their step, in order.

    At most `AHEAD` batches wait for each reader. An error is raised where its batch would come. The
    thread ends with the iterator; workers stay for the next epoch, until `close` or an error.

    Args:
        dataset: `[LongTensor] -> batch`; one that is `in_memory` needs no reader.
        workers: processes that read a batch each; 0 leaves it to threads of this one.
        pin: whether batches lie in pinned memory, from which they go to a GPU while it computes.
    """

    def __init__(self, dataset: Any, workers: int = 0, pin: bool = False):
        self.dataset, self.workers, self.pin = dataset, workers, pin
        self._order = _Order()
        self._processes = self._answers = None

    def __call__(self, rows: Iterable[Tensor]) -> Iterator[Batch]:
        """Yields the batch `dataset[indices]` of each `rows`."""
        if getattr(self.dataset, "in_memory", False):
            return map(self._read, rows)
        return self._by_workers(rows) if self.workers else self._by_thread(rows)

    def _read(self, indices: Tensor) -> Batch:
        batch = self.dataset[indices]
        return {name: value.pin_memory() for name, value in batch.items()} if self.pin else batch

    def _by_thread(self, rows: Iterable[Tensor]) -> Iterator[Batch]:
        reader, waiting = ThreadPoolExecutor(1, "batches"), deque[Future]()
        try:
            for indices in rows:
                waiting.append(reader.submit(self._read, indices))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            reader.shutdown(cancel_futures=True)

    def _by_workers(self, rows: Iterable[Tensor]) -> Iterator[Batch]:
        self._order.rows = rows
        if self._processes is None:
            self._processes = self._started()
        try:
            with _unheard():
                self._answers = iter(self._processes)
            for batch, said in self._answers:
                for text, kind in said:
                    warnings.warn(text, kind, stacklevel=2)
                if isinstance(batch, ValueError):
                    raise batch
                yield batch
        except Exception:
            self.close()
            raise

    def _started(self) -> DataLoader:
        multiprocessing.set_forkserver_preload(["distillkit.data"])  # whose imports take seconds
        return DataLoader(
            _Told(self.dataset),
            batch_size=None,
            sampler=self._order,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=self.pin,
            multiprocessing_context=METHOD,
            generator=torch.Generator(),  # otherwise a draw from the run's own
            prefetch_factor=AHEAD,
            persistent_workers=True,
        )

    def close(self) -> None:
        """Ends the workers, also those that are stuck in a file."""
        if self._answers is not None:
            self._answers._shutdown_workers()  # at once, though a traceback may still refer to it
            for worker in self._answers._workers:
                if worker.is_alive():  # it hears no other signal, see `_unheard`
                    worker.kill()
                    worker.join()
        self._processes = self._answers = None


class _Order:
    """The rows of the epoch's batches, as workers are asked for them."""

    rows: Iterable[Tensor] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return (indices.tolist() for indices in self.rows)  # a tensor would take all of its storage along


class _Told:
    """A data set in a worker, which hands over its errors for users and its warnings."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getitem__(self, rows: list[int]) -> tuple[Batch | ValueError, list[tuple[str, type[Warning]]]]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                batch = self.dataset[torch.tensor(rows)]
            except ValueError as error:
                batch = ValueError(str(error))
        return batch, [(str(each.message), each.category) for each in said]


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def _unheard() -> Iterator[None]:
    """Processes that begin meanwhile hear no signal to stop; this one hears them afterwards.

    Terminals and queues send one to all processes. It is for the run, which still wants batches for
    the step that it ends with, and ends its workers itself.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP)
    try:
        resource_tracker.ensure_running()  # of multiprocessing; when it begins, it lets some through again
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
