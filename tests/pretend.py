"""A pretend accelerator: the device `pretend`, whose tensors live in memory of the CPU.

It is a device of PyTorch's dispatcher (`PrivateUse1`), so what a GPU refuses is refused here:
tensors of two devices in one operation, a generator of the CPU for a draw on the device, NumPy on
its tensors. A scalar tensor of the CPU may join an operation, and an index of the CPU may pick from
a tensor of the device, as on a GPU. `copies` lists what went from one device to the other. PyTorch
knows the device for the rest of the process once this module is imported, so tests that use it run
in a fork.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
PICKS = ("index", "index_put", "index_put_", "_index_put_impl_")
copies: list[tuple[str, int, str]] = []  # (direction, elements, where in our code)
_held: dict[int, Tensor] = {}  # by the storage of a tensor of the device: its values


class OtherDevice(RuntimeError):
    """An operation got tensors of two devices."""


def wrapped(value: Tensor) -> Tensor:
    made = torch._C._acc.create_empty_tensor(value.shape, value.dtype)
    _held[made.untyped_storage()._cdata] = value
    return made


def held(x: Any) -> Any:
    """The values of a tensor of the device; everything else as it is."""
    if isinstance(x, Tensor) and x.device.type == NAME:
        return _held[x.untyped_storage()._cdata]
    return torch.device("cpu") if isinstance(x, torch.device) else x


def kernel(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run `op` on the values; results live on the device."""
    name = op._schema.name.removeprefix("aten::")
    if name.startswith("_copy_from"):
        return _copied(*args[:2])
    flat, spec = pytree.tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, Tensor)]
    strangers = [x for x in tensors if x.device.type != NAME and x.ndim]
    if strangers and name not in PICKS:
        raise OtherDevice(f"{name}: expected all tensors on one device, found {NAME} and {strangers[0].device}")
    if any(isinstance(x, torch.Generator) for x in flat):
        raise OtherDevice(f"{name}: a generator of the CPU cannot draw on {NAME}")
    owners = {id(held(x)): x for x in tensors if x.device.type == NAME}
    args, kwargs = pytree.tree_unflatten([held(x) for x in flat], spec)
    if name in ("view", "_unsafe_view", "_reshape_alias"):  # PyTorch takes all tensors of the device for contiguous
        return wrapped(args[0].reshape(args[1]))
    found = op(*args, **kwargs)
    for x in tensors:
        if x.device.type == NAME and x.shape != held(x).shape:  # an `out` that grew
            x.data = wrapped(held(x))
    if name == "_local_scalar_dense":
        copies.append(("to the CPU", 1, _where()))
    return pytree.tree_map_only(Tensor, lambda x: owners[id(x)] if id(x) in owners else wrapped(x), found)


def _copied(source: Tensor, target: Tensor) -> Tensor:
    kinds = [x.device.type == NAME for x in (source, target)]
    if kinds[0] != kinds[1]:
        copies.append(("to the CPU" if kinds[0] else "to the device", source.numel(), _where()))
    held(target).copy_(held(source))
    return target


def _where() -> str:
    """The innermost line of ours, `file.py:function`."""
    frames = [f for f in traceback.extract_stack() if "/distillkit/" in f.filename or "/domains/" in f.filename]
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].name}" if frames else ""


_setup_privateuseone_for_python_backend(NAME)
_library = torch.library.Library("_", "IMPL")
_library.fallback(kernel, "PrivateUse1")
_aten = torch.library.Library("aten", "IMPL")
_aten.impl(
    "convolution_overrideable", lambda *args: kernel(torch.ops.aten.convolution.default, *args), "PrivateUse1"
)
