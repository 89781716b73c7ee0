"""Low-rank adapters (LoRA, arXiv 2106.09685) on any network, whose weights are in memory once."""

from __future__ import annotations

import copy
import hashlib
import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.files import hash_weights
from distillkit.networks.blocks import Told, zero
from distillkit.networks.dtypes import cast
from distillkit.spec import Recorded

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Base(Recorded):
    """The source of the adapters' frozen network.

    Its text names the source in sentences such as "weights of {base}".
    """

    @abstractmethod
    def read(self) -> nn.Module:
        """The network with its weights."""

    @cached_property
    def network(self) -> nn.Module:
        """The network, frozen and in eval mode, read once."""
        return self.read().requires_grad_(False).eval()

    @cached_property
    def sha256(self) -> str:
        """Hash of the network's weights."""
        digest = hashlib.sha256()
        hash_weights(digest, self.network)
        return digest.hexdigest()

    def __deepcopy__(self, memo):
        return self


class TeacherBase(Base):
    """The network of a teacher.

    Args:
        teacher: the teacher; only `teacher.frozen_network()` and `teacher.id` are used.
    """

    def __init__(self, teacher: nn.Module):
        self.teacher = teacher

    def read(self) -> nn.Module:
        return self.teacher.frozen_network()

    def __str__(self) -> str:
        return f"the teacher {self.teacher.id}"


class LowRank(nn.Module):
    """A low-rank change of one layer, `layer(x) + up(down(x))`, as a forward hook of the layer.

    `down` has the layer's input (same kernel, stride, padding, dilation and groups) and `rank`
    outputs for each group; `up` acts on every position by itself. `up` starts at zero, and the
    weight of the change is 1. Both are float32 and compute in it; the sum has the layer's dtype.

    Args:
        layer: one of `LAYERS`.
        rank: the rank of the change.
    """

    def __init__(self, layer: nn.Module, rank: int):
        super().__init__()
        kind, made = type(layer), {"bias": False, "device": layer.weight.device, "dtype": torch.float32}
        if kind is nn.Linear:
            self.down = nn.Linear(layer.in_features, rank, **made)
            up = nn.Linear(rank, layer.out_features, **made)
        else:
            places = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
            inner = rank * layer.groups
            self.down = kind(layer.in_channels, inner, *places, **made, padding_mode=layer.padding_mode)
            up = kind(inner, layer.out_channels, 1, groups=layer.groups, **made)
        self.up, self.merged = zero(up), False

    def forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if self.merged:
            return out
        return (out + self.up(self.down(inputs[0].to(self.down.weight.dtype)))).to(out.dtype)

    def delta(self) -> Tensor:
        """The change of the layer's weight, shaped like it."""
        up, down, groups = self.up.weight, self.down.weight, getattr(self.down, "groups", 1)
        change = up.reshape(groups, -1, len(down) // groups) @ down.reshape(groups, len(down) // groups, -1)
        return change.reshape(len(up), *down.shape[1:])


class Adapters(Recorded, nn.Module):
    """A frozen network with trainable low-rank changes of its layers.

    Its parameters and state are those of the changes, of the conditions that the network was told
    (each `Told` in it), and of the submodules that the network names in `own_parts`. The network
    itself is `tree`, a copy with the same weights in the same memory. It is moved and cast with the
    adapters but is not one of their submodules: it is never trained, averaged, stored or sharded,
    and stays in eval mode. All other attributes (`features`, `embed`, `centred` ...) are the
    network's.

    Args:
        base: the source of the network.
        rank: of each change, at least 1.
        targets: endings of the names of the layers that change, such as `to_q` or `to_out.0`; None
            means all linear layers and convolutions. Subclasses of these, such as the output layer
            of `nn.MultiheadAttention` (which is never called), are left alone.
        sha256: hash of the network's weights, kept in folders; None computes it.

    Raises:
        ValueError: the weights are not those of `sha256`, or no layer has such a name.
    """

    def __init__(self, base: Base, rank: int, targets: list[str] | None = None, sha256: str | None = None):
        super().__init__()
        checks.whole(1, rank=rank)
        network = base.network
        if isinstance(network, Adapters):
            raise ValueError(f"the network of {base} is adapters itself: give their own base, or merge them first")
        if sha256 not in (None, base.sha256):
            raise ValueError(
                f"this student is adapters on other weights than those of {base}: restore them, for on these they mean nothing"
            )
        self.base, self.rank, self.targets = base, rank, targets
        tree = copy.deepcopy(network, {id(p): p for p in network.parameters()})
        self.__dict__["tree"] = tree
        self.layers = nn.Module()
        for name, layer in _chosen(tree, targets).items():
            change = LowRank(layer, rank)
            layer.register_forward_hook(change)
            _place(self.layers, name, change)
        self.told = nn.Module()
        for name, told in [(name, module) for name, module in tree.named_modules() if isinstance(module, Told)]:
            own = cast(copy.deepcopy(told), "float32").requires_grad_(True)
            tree.set_submodule(name, own)
            _place(self.told, name, own)
        for name in getattr(tree, "own_parts", ()):
            setattr(self, name, getattr(tree, name))

    def recorded(self):
        return {"base": self.base, "rank": self.rank, "targets": self.targets, "sha256": self.base.sha256}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call the network."""
        return self.tree(*args, **kwargs)

    @contextmanager
    def merged(self) -> Iterator[None]:
        """A context in which this copy has the changes in its weights and cannot be trained.

        Sampling then costs no more than with the plain network. The changed weights are the
        copy's own; those in shared memory stay as they are and are restored afterwards.
        """
        changes = {name: c for name, c in self.layers.named_modules() if isinstance(c, LowRank) and not c.merged}
        shared = {name: self.tree.get_submodule(name).weight for name in changes}
        try:
            for name, change in changes.items():
                with torch.no_grad():
                    weight = (shared[name] + change.delta()).to(shared[name].dtype)
                self.tree.get_submodule(name).weight = nn.Parameter(weight, requires_grad=False)
                change.merged = True
            yield
        finally:
            for name, change in changes.items():
                self.tree.get_submodule(name).weight, change.merged = shared[name], False

    def merge(self) -> nn.Module:
        """Returns a trainable network of the base's class with the changes in its weights."""
        with self.merged():
            plain = copy.deepcopy(self.tree)
        for module in plain.modules():
            for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, LowRank)]:
                del module._forward_hooks[key]
        return plain.requires_grad_(True)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "tree" not in self.__dict__:
                raise
            return getattr(self.tree, name)

    def __deepcopy__(self, memo):
        own = {id(p) for p in self.parameters()}
        memo.update((id(p), p) for p in self.tree.parameters() if id(p) not in own)
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        self.tree._apply(fn, recurse)
        return self


def _chosen(network: nn.Module, targets: list[str] | None) -> dict[str, nn.Module]:
    """Layers to adapt by name: all, or those whose names have one of these endings."""
    layers = {name: layer for name, layer in network.named_modules() if name and type(layer) in LAYERS}
    endings = sorted({re.search(r"[^.]+(\.\d+)*$", name)[0] for name in layers})
    asked = {target: {n for n in layers if f".{n}".endswith(f".{target}")} for target in targets or ()}
    if missing := [target for target, found in asked.items() if not found]:
        raise ValueError(
            f"no linear layer or convolution of {type(network).__name__} has a name that ends in {missing[0]}: give some of "
            f"{', '.join(endings)}"
        )
    found = set(layers) if targets is None else set().union(*asked.values())
    if not found:
        raise ValueError(
            f"there is nothing to adapt in {type(network).__name__}: give targets among {', '.join(endings) or 'none'}"
        )
    return {name: layer for name, layer in layers.items() if name in found}


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module under its dotted name."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]
    root.add_module(last, module)
