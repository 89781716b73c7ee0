"""Devices: which one computes, waiting for it, and chunks that fit into its memory.

A device computes here if it has float64, in which times and metrics are computed. Apple's MPS has
none, so the CPU takes its place.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def best() -> str:
    """The name of the best device that there is: `cuda`, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def own() -> str:
    """The name of this process's device before training: of several processes one GPU each."""
    if best() == "cpu":
        return "cpu"
    number = next((os.environ[name] for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in os.environ), 0)
    return f"cuda:{int(number) % torch.cuda.device_count()}"


def named(name: str) -> torch.device:
    """The device of a name such as `cpu` or `cuda:1`; an argparse type.

    Raises:
        ArgumentTypeError: there is no such device, or it cannot compute.
    """
    try:
        device = torch.device(name)
        torch.ones(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, TypeError, AssertionError):  # PyTorch's, for devices of other builds and machines
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise argparse.ArgumentTypeError(
            f"{name} does not compute on this machine: give {' or '.join(there)}"
        ) from None
    return device


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--device`."""
    known = "cpu, cuda, cuda:1 ... (default: cuda if there is one, else cpu; Apple's mps has no float64)"
    parser.add_argument("--device", type=named, default=best(), help=f"that computes: {known}")


def able(device: torch.device) -> torch.device:
    """The device, or the CPU if it has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def model_name(device: torch.device) -> str:
    """The name of a GPU's model, else the device's own."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def wait_for(device: torch.device) -> None:
    """Return once the device has done all that it was told; the CPU always has."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


LARGE = 2**15  # numbers in the samples of a chunk, from which on its memory is looked at


def in_chunks(
    make: Callable[[slice], Tensor], num: int, chunk: int, size: int = 0, device: torch.device | None = None
) -> Tensor:
    """`make(rows)` of all `num` rows, `chunk` at a time, joined on the CPU.

    The chunk is halved, for all rows that are left, where its tensors take more than half of the
    memory that the device has free, and where a GPU has too little of it. Within `dividing`,
    several processes make their parts. Elsewhere the processes of a run do not halve, since
    networks that are spread need as many passes in each.

    Args:
        make: function of rows, a slice with start and stop.
        num: the number of rows.
        chunk: the number of rows of one call, at most.
        size: the numbers in a row, where free memory is looked at.
        device: that computes, in this case.

    Raises:
        torch.OutOfMemoryError: one row is too many.
    """
    if _divide is None:
        return alone(make, slice(0, num), chunk, size, device)
    return _divide(make, num, chunk, size, device)


def alone(
    make: Callable[[slice], Tensor], rows: slice, chunk: int, size: int = 0, device: torch.device | None = None
) -> Tensor:
    """`in_chunks` of some rows, in this process."""
    parts, start = [], rows.start
    fits = together = _divide is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    while start < rows.stop or not parts:
        some = slice(start, min(start + chunk, rows.stop))
        num = some.stop - some.start
        looked = not fits and num > 1 and num * size >= LARGE
        there = free(device) if looked else None
        try:
            with nullcontext() if there is None else Most(there, device):
                parts.append(make(some).cpu())
            start, fits = some.stop, True
        except torch.OutOfMemoryError:
            if chunk == 1 or together:
                raise
            chunk = max(1, min(chunk, num) // 2)
    return torch.cat(parts)


_divide: Callable[..., Tensor] | None = None
_sharers = 1  # processes that may take the memory of one CPU


@contextmanager
def dividing(divide: Callable[..., Tensor], processes: int) -> Iterator[None]:
    """A context in which `in_chunks` is `divide(make, num, chunk, size, device)` of processes."""
    global _divide, _sharers
    before, _divide, _sharers = (_divide, _sharers), divide, processes
    try:
        yield
    finally:
        _divide, _sharers = before


def free(device: torch.device) -> int | None:
    """Bytes of memory that a device has left; None if it does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch keeps it for us
        return torch.cuda.mem_get_info(device)[0] + unused
    said = Path("/proc/meminfo")
    if device.type != "cpu" or not said.is_file():
        return None
    lines = dict(line.split(":", 1) for line in said.read_text(encoding="utf-8").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


class Peak(TorchDispatchMode):
    """Counts the memory of the tensors that are made while it is active.

    Args:
        but: tensors that were there before, which are not counted where a function returns them.

    Attributes:
        bytes: of those that were alive at once, at most.
    """

    def __init__(self, but: Iterable[Tensor] = ()):
        super().__init__()
        self.bytes, self._alive, self._sum = 0, {}, 0  # the sum counts tensors that are gone, until it is a new peak
        self._but = {x.untyped_storage()._cdata: x for x in but}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in pytree.tree_leaves(out):
            if isinstance(x, Tensor) and (key := (memory := x.untyped_storage())._cdata) not in self._but:
                self._sum += memory.nbytes() - self._alive.get(key, (None, 0))[1]
                self._alive[key] = StorageWeakRef(memory), memory.nbytes()
        if self._sum > self.bytes:
            self._forget()
            self.bytes = max(self.bytes, self._sum)
        return out

    def restart(self) -> None:
        """Begins to look for a peak anew, from what is alive now."""
        self._forget()
        self.bytes = self._sum

    def _forget(self) -> None:
        self._alive = {key: (ref, size) for key, (ref, size) in self._alive.items() if not ref.expired()}
        self._sum = sum(size for _, size in self._alive.values())


class Most(Peak):
    """Raises torch.OutOfMemoryError where tensors take more than half of a device's free memory.

    Of the CPU's it is this process's share.

    Args:
        there: the free bytes.
        device: the device.
    """

    def __init__(self, there: int, device: torch.device):
        super().__init__()
        self.most = there // 2 // (_sharers if device.type == "cpu" else 1)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if self.bytes > self.most:
            raise torch.OutOfMemoryError(f"{self.bytes:,} bytes are more than half of what is free")
        return out
