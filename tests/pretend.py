"""A pretend accelerator: the device `pretend`, whose tensors lie in memory of the CPU.

It is a device of PyTorch's dispatcher (`PrivateUse1`), so what a GPU refuses is refused here:
tensors of two devices in one operation, a draw on the device with a generator of the CPU, NumPy on
its tensors. A scalar tensor of the CPU may join an operation, and an index of the CPU may pick from
a tensor of the device, as on a GPU. `copies` lists what went from one device to the other. PyTorch
knows the device for the rest of the process once this module is imported, so tests that use it run
in a fork.
"""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
PICKS = ("index", "index_put", "index_put_", "_index_put_impl_")
GARBAGE = 2**26  # bytes that are made between two looks for those that nobody holds
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


class Copy(NamedTuple):
    """Values that went from one device to the other."""

    to: str  # the type of the device they went to
    size: int
    where: str  # `file.py:function`, the innermost of ours


class Module(_DummyBackendModule):
    """`torch.pretend`."""

    waits = 0  # how often somebody waited for the device

    def synchronize(self, device: Any) -> None:
        self.waits += 1


class OtherDevice(RuntimeError):
    """An operation got tensors of two devices."""


copies: list[Copy] = []
# Storages of the device and of the CPU that are the same memory, each found by the other.
_memory: dict[int, tuple[int, torch.UntypedStorage]] = {}  # weak reference to the device's; the CPU's
_twins: dict[int, int] = {}  # weak reference to the device's
_made = 0  # bytes since the last look


def wrapped(value: Tensor) -> Tensor:
    """The tensor of the device on the memory of a tensor of the CPU."""
    memory, made = value.untyped_storage(), torch._C._acc.create_empty_tensor((0,), value.dtype)
    reference, twin = _twins.get(memory._cdata), None
    if reference is not None and not torch.UntypedStorage._expired(reference):
        twin = torch.UntypedStorage._new_with_weak_ptr(reference)
    if twin is None or twin.nbytes() != memory.nbytes():
        _prune(memory.nbytes())
        twin = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), torch.device(NAME, 0), memory.nbytes())
        _twins[memory._cdata] = twin._weak_ref()
        _memory[twin._cdata] = _twins[memory._cdata], memory
    put = torch.ops.aten.set_.source_Storage_storage_offset
    return put.redispatch(CPU, made, twin, value.storage_offset(), value.shape, value.stride())


def held(x: Any) -> Any:
    """The tensor of the CPU on the memory of a tensor of the device; everything else as it is."""
    if isinstance(x, Tensor) and x.device.type == NAME:
        found = torch.empty(0, dtype=x.dtype)
        if x.untyped_storage()._cdata in _memory:
            found.set_(_memory[x.untyped_storage()._cdata][1], x.storage_offset(), x.shape, x.stride())
        return found
    return torch.device("cpu") if isinstance(x, torch.device) else x


def _prune(size: int) -> None:
    """Let go of memory whose storage on the device is gone, once in `GARBAGE` bytes."""
    global _made
    _made += size
    if _made < GARBAGE:
        return
    _made = 0
    for key, (reference, memory) in [*_memory.items()]:
        if torch.UntypedStorage._expired(reference):
            del _memory[key]
            if _twins.get(memory._cdata) == reference:
                del _twins[memory._cdata]
            torch.UntypedStorage._free_weak_ref(reference)


def kernel(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run `op` on the CPU; its results are on the device."""
    name = op._schema.name.removeprefix("aten::")
    if name.startswith("_copy_from"):
        return _copied(*args[:2])
    wanted = (str(argument.type) for argument in op._schema.arguments)
    args = [
        torch.tensor(x) if kind == "Tensor" and not isinstance(x, Tensor) else x  # numbers come unwrapped
        for kind, x in zip(wanted, args, strict=False)
    ]
    flat, spec = pytree.tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, Tensor)]
    strangers = [x for x in tensors if x.device.type != NAME and x.ndim]
    if strangers and name not in PICKS:
        raise OtherDevice(f"{name}: expected all tensors on one device, found {NAME} and {strangers[0].device}")
    if any(isinstance(x, torch.Generator) for x in flat):
        raise OtherDevice(f"{name}: a generator of the CPU cannot draw on {NAME}")
    plain = [held(x) for x in flat]
    owners = {id(y): x for x, y in zip(flat, plain, strict=True) if y is not x and isinstance(x, Tensor)}
    args, kwargs = pytree.tree_unflatten(plain, spec)
    with torch._C._AutoDispatchBelowAutograd():
        found = op(*args, **kwargs)
    if name == "_local_scalar_dense":
        copies.append(Copy("cpu", 1, _where()))
    for value in plain:
        if (own := owners.get(id(value))) is not None and value.shape != own.shape:
            own.data = wrapped(value)  # an `out` that grew
    return pytree.tree_map_only(Tensor, lambda x: owners[id(x)] if id(x) in owners else wrapped(x), found)


def _copied(source: Tensor, target: Tensor) -> Tensor:
    if source.device != target.device:
        copies.append(Copy(target.device.type, source.numel(), _where()))
    held(target).copy_(held(source))
    return target


def _where() -> str:
    frames = [f for f in traceback.extract_stack() if "/distillkit/" in f.filename or "/domains/" in f.filename]
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].name}" if frames else ""


_setup_privateuseone_for_python_backend(NAME, Module())
_everything = torch.library.Library("_", "IMPL")
_everything.fallback(kernel, "PrivateUse1")
_aten = torch.library.Library("aten", "IMPL")
_aten.impl(
    "convolution_overrideable",  # what PyTorch calls on devices that it does not know; it takes the result for contiguous
    lambda *args: kernel(torch.ops.aten.convolution.default, *args).contiguous(),
    "PrivateUse1",
)
