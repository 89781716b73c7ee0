"""What the processes of a run tell each other beside training, over the CPU.

They may be busy for as long as they like, since metrics and pictures take their time. What they
send is pickled; it goes from one process of a run to another and is never in a file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distillkit import cache, devices, progress
from distillkit.errors import Failure, one_line

PATIENCE = timedelta(days=1)  # until a process that says nothing counts as lost

_links: tuple[Any, Any] = (None, None)  # the group of training, and the link made for it


def several() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def link() -> Any:
    """The group (gloo) of all processes of the run; all must ask for it the first time."""
    global _links
    if _links[0] is not dist.group.WORLD:
        _links = dist.group.WORLD, dist.new_group(backend="gloo", timeout=PATIENCE)
    return _links[1]


def gathered(value: Any) -> list[Any]:
    """The value of each process, in their order, on all of them, which all must ask for it."""
    if not several():
        return [value]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value, link())
    return found


def largest(value: int) -> int:
    """The largest of the values of all processes, on all of them; no GPU is waited for."""
    if not several():
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=link())
    return int(found)


class Crew:
    """The processes of a run, which make samples together: the first one asks, the others `serve`.

    Each makes a contiguous part of the chunks of `devices.in_chunks`. The first one gets them all,
    in their order. The others get zeros in place of what they did not make.
    """

    def __init__(self):
        self._link, self._number, self.size = link(), dist.get_rank(), dist.get_world_size()
        self._busy: set[int] = set()  # the others that are at the task
        self._left = False  # whether this process was told to stop, and asks no more

    # The first process

    @contextmanager
    def sharing(self, task: Any) -> Iterator[None]:
        """A context in which the others do the `task` that this process does in it.

        Raises:
            Failure: one of them could not.
        """
        self._busy = {*range(1, self.size)}
        for other in self._busy:
            self._send(task, other)
        try:
            with devices.dividing(self._whole, self.size), progress.counting_for(self.size):
                yield
        except KeyboardInterrupt:  # the launcher ends the others
            self._busy, self._left = set(), True
            raise
        finally:
            for other in [*self._busy]:  # this process failed, or found its samples kept meanwhile
                while other in self._busy:
                    self._receive(other)

    def dismiss(self) -> None:
        """Lets the others go; those that are lost hear nothing."""
        for other in range(1, self.size) if not self._left else ():
            with suppress(RuntimeError):
                self._send(None, other)

    def _whole(self, make: Callable[[slice], Tensor], num: int, chunk: int, *memory: Any) -> Tensor:
        rows, chunk = divided(num, chunk, self.size)
        begun = time.perf_counter()
        parts = [devices.alone(make, rows[0], chunk, *memory)]
        seconds = time.perf_counter() - begun
        for other in range(1, self.size):
            if rows[other].stop > rows[other].start:
                parts.append(self._part(other))
        share = len(parts[0]) / max(num, 1) or 1.0
        cache.spare(seconds / share - (time.perf_counter() - begun))
        return torch.cat(parts)

    def _part(self, other: int) -> Tensor:
        """The samples that another process has made next."""
        said = self._receive(other)
        if not isinstance(said, Tensor):
            raise Failure(f"process {other} of this run could not make its samples: {said}")
        return said

    # The others

    def serve(self, work: Callable[[Any], Any]) -> None:
        """Does `work(task)` with each task of the first process until that needs no more."""
        while (task := self._receive(0)) is not None:
            try:
                with devices.dividing(self._own, self.size):
                    work(task)
                said = "it made none"
            except Exception as error:
                said = f"{type(error).__name__}: {one_line(error)}"
            self._send(said, 0)

    def _own(self, make: Callable[[slice], Tensor], num: int, chunk: int, *memory: Any) -> Tensor:
        rows, chunk = divided(num, chunk, self.size)
        own = rows[self._number]
        if mine := own.stop > own.start:
            part = devices.alone(make, own, chunk, *memory)
            self._send(part, 0)
        else:
            part = make(slice(0, min(num, 1))).cpu()  # its shape, for what follows
        made = part.new_zeros(num, *part.shape[1:])
        if mine:
            made[own] = part
        return made

    # All of them

    def _send(self, what: Any, to: int) -> None:
        dist.send_object_list([what], to, self._link)

    def _receive(self, other: int) -> Any:
        """What another process says; it is at its task as long as that is samples."""
        got = [None]
        dist.recv_object_list(got, other, self._link)
        if not isinstance(got[0], Tensor):
            self._busy.discard(other)
        return got[0]


def cut(num: int, chunk: int, processes: int) -> int:
    """The rows of a chunk of so many processes: fewer than `chunk` where some would be idle."""
    return max(1, min(chunk, -(-num // processes)))


def divided(num: int, chunk: int, processes: int) -> tuple[list[slice], int]:
    """The rows of each process, whole chunks that follow each other, and the size of a chunk.

    Args:
        num: the number of rows.
        chunk: rows of a chunk of one process, see `cut`.
        processes: the number of processes; the first ones have the larger parts.
    """
    chunk = cut(num, chunk, processes)
    chunks, edges = -(-num // chunk), [0]
    for number in range(processes):
        edges.append(edges[-1] + chunks // processes + (number < chunks % processes))
    ends = [min(edge * chunk, num) for edge in edges]
    return [slice(*pair) for pair in zip(ends, ends[1:], strict=False)], chunk
