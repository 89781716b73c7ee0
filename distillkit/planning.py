"""What a run takes, found before it: memory by its parts, and passes through its networks.

Steps are made as in training, at the run's own batch size, on weights that have a shape and no
content (torch's fake tensors): they take neither the memory nor the time of a step. The times,
noise and conditions of a step are real. A step that looks at the content of what a network gives is
made for real with few samples instead, and what it takes is extended in a straight line.
"""

from __future__ import annotations

import copy
import math
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from statistics import median
from types import SimpleNamespace

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from distillkit import devices
from distillkit.checkpointing import checkpoints
from distillkit.data import DistillData
from distillkit.methods.base import Distiller
from distillkit.modules import blocks, modules

COST = {"forward": 1, "input gradient": 2, "forward mode": 2, "train": 3}  # of a pass, in forward passes
AGAIN = ", again"  # of a pass with gradients whose activations are computed once more backwards
COST |= {kind + AGAIN: COST[kind] + 1 for kind in ("input gradient", "train")}
FAKE = FakeTensorMode(allow_non_fake_inputs=True)
LARGE = 2**20  # bytes from which on a tensor's copies have no content
FEW = (2, 4)  # samples in the batches of steps that are made for real
CALLS = ("forward", "features")  # of networks
Passes = Counter[tuple[str, str]]  # samples that go through a network, by its name and the kind of the pass


@dataclass(frozen=True)
class Part:
    """A part of what a run holds; all sizes but the numbers of parameters are in bytes.

    Args:
        name: `teacher`, a role, `ema`, `target` or `other`.
        trained, frozen: numbers of parameters.
        weights: size of parameters and buffers. Those that two parts share count in the first one.
        gradients: size of the gradients in the role's step.
        moments: size of the optimiser's state.
        gathered: size of what FSDP2 holds whole at once, see the function.
        whole: whether every device holds all of it, even where weights are shared.
    """

    name: str
    trained: int = 0
    frozen: int = 0
    weights: int = 0
    gradients: int = 0
    moments: int = 0
    gathered: int = 0
    whole: bool = False


@dataclass(frozen=True)
class Turn:
    """A step of one role.

    Args:
        role: its name.
        updates: its steps in a cycle.
        steps: its steps in the run; infinity where the run's end is not known.
        activations: bytes that the step makes, alive at once, besides the role's own gradients.
        passes: of an average step over all its micro-batches.
    """

    role: str
    updates: int
    steps: float
    activations: int
    passes: Passes = field(default_factory=Counter)

    @property
    def cost(self) -> float:
        """The step's passes in forward passes of one sample."""
        return sum(COST[kind] * number for (_, kind), number in self.passes.items())


@dataclass(frozen=True)
class Plan:
    """What a run takes on one device.

    Args:
        parts: what it holds.
        turns: the steps of its roles.
        samples: samples in a step on one device.
        pairs: bytes of the teacher's samples that are kept in the memory of the CPU.
        first: forward passes of the teacher before the first step, one sample each.
        real: whether steps were made for real, with few samples.
    """

    parts: tuple[Part, ...]
    turns: tuple[Turn, ...]
    samples: int
    pairs: int = 0
    first: int = 0
    real: bool = False

    @property
    def held(self) -> int:
        """Bytes held between steps."""
        return sum(part.weights + part.moments for part in self.parts)

    @property
    def gradients(self) -> dict[str, int]:
        """Bytes of the gradients by role."""
        return {part.name: part.gradients for part in self.parts}

    @property
    def largest(self) -> Turn:
        """The step that takes most."""
        return max(self.turns, key=lambda turn: turn.activations + self.gradients[turn.role])

    @property
    def peak(self) -> int:
        """Bytes of one process, without what stays in the memory of the CPU."""
        return self.held + self.largest.activations + self.gradients[self.largest.role]

    @property
    def bucket(self) -> int:
        """Bytes that DDP adds to each device: a copy of the gradients of all roles."""
        return sum(self.gradients.values())

    def sharded(self, devices: int) -> int:
        """Bytes on each of some devices that share weights, gradients and moments (FSDP2).

        One block is gathered at a time, and activations are not shared.
        """
        if devices == 1:
            return self.peak
        whole = sum(part.weights for part in self.parts if part.whole)
        shared = self.held - whole + self.gradients[self.largest.role]
        gathered = max(part.gathered for part in self.parts if not part.whole)
        return whole - (-shared // devices) + gathered + self.largest.activations

    @property
    def passes(self) -> float:
        """Passes of the run on one device in forward passes of one sample, with the pairs'."""
        return self.first + sum(turn.steps * turn.cost for turn in self.turns)


class Rehearsal:
    """Steps of a method outside of a Trainer.

    Args:
        method: the method; its weights move unless they are fake.
        data: its data.
        trainer: the Trainer that a run would have, on the CPU.
        devices: number of devices that train together.

    Raises:
        ValueError: the run would be refused before its first step, or makes none.
    """

    def __init__(self, method: Distiller, data: DistillData, trainer: Trainer, devices: int = 1):
        self.trainer, self.pairs, self.first = trainer, 0, 0
        self.total = math.inf if trainer.max_steps == -1 else trainer.max_steps
        self.place = SimpleNamespace(
            datamodule=data,
            lightning_module=method,
            world_size=devices,
            global_step=0,
            global_rank=0,
            is_global_zero=True,
            accumulate_grad_batches=trainer.accumulate_grad_batches,
            max_steps=trainer.max_steps,
            log_every_n_steps=sys.maxsize,  # no row is due
            precision=trainer.precision,
            state=SimpleNamespace(fn="fit"),
            strategy=None,
        )
        method._trainer = data.trainer = self.place
        data.prepare_data()
        data.setup("fit")
        self.data, self.dataset = data, data.train
        batches, limit = len(data.train_dataloader()), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            self.total = min(self.total, math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs)
        if batches == 0 or self.total == 0:
            raise ValueError(
                "this run makes no step: raise trainer.max_steps, trainer.max_epochs or trainer.limit_train_batches"
            )
        self.place.estimated_stepping_batches = self.total
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method.setup("fit")
        self.method = trainer.precision_plugin.convert_module(method)
        if hasattr(method, "pairs"):
            method.pairs.make = lambda data, seed, strategy=None: self._pretend(data)
        method.on_fit_start()

    def _pretend(self, data: object) -> None:
        pairs = self.method.pairs
        self.first, num = pairs.passes(), pairs.num
        size = pairs.pretend(data, self.data.batch_size)
        self.pairs = 0 if pairs.folder else num * size

    def batch(self, num: int) -> dict[str, Tensor]:
        """The first `num` training samples, or the longest ones of sets of different sizes."""
        rows = torch.arange(num) % len(self.dataset)
        if (lengths := getattr(self.dataset, "lengths", None)) is not None:
            rows = lengths.argsort(descending=True, stable=True)[rows]
        return self.dataset[rows]

    def begin(self, num: int, device: torch.device | str = "cpu") -> None:
        """Begins anew with batches of `num` samples."""
        given = {name: value.to(device) for name, value in self.batch(num).items()}
        self.given = self.trainer.precision_plugin.convert_input(given)
        self.optimizer = self.method.configure_optimizers()["optimizer"]
        self.method.focus(None)

    def step(self, number: int) -> None:
        """Makes optimiser step `number`, with two micro-batches if it has several."""
        method, many = self.method, self.trainer.accumulate_grad_batches
        self.place.global_step = number

        def closure() -> Tensor:  # in Lightning's order: the last step's gradients go after the forward pass
            for micro in range(min(many, 2)):
                with self.trainer.precision_plugin.forward_context():
                    loss = method.training_step(self.given, micro) / many
                if micro == 0:
                    self.optimizer.zero_grad()
                loss.backward()
            method.configure_gradient_clipping(self.optimizer, self.trainer.gradient_clip_val)
            self.optimizer.found_inf = None  # what a step takes that is not skipped
            return loss.detach()

        method.optimizer_step(0, number, self.optimizer, closure)

    def turns(self) -> dict[str, list[int]]:
        """The roles of the run's last whole cycle, each with its first steps in it: one or two."""
        turns = self.method.turns
        number = max(i for i, edge in enumerate(turns.edges) if edge < self.total)
        begin, updates = turns.edges[number], turns.active[number]
        cycle, found = sum(updates.values()), {}
        if self.total < math.inf:
            begin += max((int(self.total) - begin) // cycle - 1, 0) * cycle
        for role, many in updates.items():
            found[role] = [begin, begin + 1][:many]
            begin += many
        return found


def plan(rehearsal: Rehearsal) -> Plan:
    """What a run takes on one device.

    Raises:
        Exception: of any kind, if a step fails; or if it looks at the content of what a network
            gives, and the method was built with `Copies`.
    """
    method, size = rehearsal.method, rehearsal.data.batch_size
    parts, real = parts_of(method), False
    try:
        with fake(method):
            turns, moments = rehearsed(rehearsal, size)
    except Exception:  # of any kind: what is wrong with the step itself is raised again below
        if any(isinstance(tensor, FakeTensor) for tensor in held(method)):
            raise
        turns, moments = extended(rehearsal, size)
        real = True
    parts = [replace(part, moments=moments.get(part.name, 0)) for part in parts]
    samples = size * rehearsal.trainer.accumulate_grad_batches
    return Plan(tuple(parts), tuple(turns), samples, rehearsal.pairs, rehearsal.first, real)


def rehearsed(rehearsal: Rehearsal, size: int) -> tuple[list[Turn], dict[str, int]]:
    """The turns with batches of `size` samples, and the bytes of each role's moments.

    A random whole number, such as which step of the student is trained, is the smallest in one
    cycle and the largest in another.
    """
    method, total = rehearsal.method, rehearsal.total
    rehearsal.begin(size)
    with counted(method) as passes, devices.Peak(held(method)) as peak:
        with_numbers = [_cycle(rehearsal, peak, passes, share) for share in (0, 0, 1)][
            1:
        ]  # the first makes the moments
    turns = []
    for role in rehearsal.turns():
        (low, few), (high, many) = (cycle[role] for cycle in with_numbers)
        mean = Counter({key: (few[key] + many[key]) / 2 for key in few.keys() | many.keys()})
        steps = total if total == math.inf else method.updates_before(role, int(total))
        turns.append(Turn(role, method.settings[role].updates, steps, max(low, high, 0), mean))
    return turns, {role: moments(rehearsal.optimizer, i) for i, role in enumerate(method.roles)}


def _cycle(rehearsal: Rehearsal, peak: devices.Peak, passes: Passes, share: int) -> dict[str, tuple[int, Passes]]:
    """By role the bytes and the passes of a step.

    Args:
        share: 0 for the smallest of random whole numbers, 1 for the largest.
    """
    method, made = rehearsal.method, {}
    micro = rehearsal.trainer.accumulate_grad_batches
    method.randint = lambda high, purpose: share * (high - 1)
    for role, steps in rehearsal.turns().items():
        most, mean = 0, Counter()
        weights = [1, method.settings[role].updates - 1]  # steps after the second are like it
        for step, weight in zip(steps, weights, strict=False):
            passes.clear()
            peak.restart()
            rehearsal.step(step)
            most = max(most, peak.bytes)
            for key, number in passes.items():
                mean[key] += number * weight / sum(weights) * micro / min(micro, 2)
        kept = moments(rehearsal.optimizer) + gradients(method, role)
        made[role] = most - kept, mean
    del method.randint
    return made


def extended(rehearsal: Rehearsal, size: int) -> tuple[list[Turn], dict[str, int]]:
    """As `rehearsed`, in a straight line from steps with few samples."""
    if size <= FEW[-1]:
        return rehearsed(rehearsal, size)
    (small, _), (large, state) = (rehearsed(rehearsal, few) for few in FEW)

    def line(one: float, other: float) -> float:
        return one + (other - one) * (size - FEW[0]) / (FEW[1] - FEW[0])

    turns = []
    for one, other in zip(small, large, strict=True):
        passes = Counter(
            {key: line(one.passes[key], other.passes[key]) for key in one.passes.keys() | other.passes.keys()}
        )
        activations = max(round(line(one.activations, other.activations)), other.activations)
        turns.append(replace(other, activations=activations, passes=passes))
    return turns, state


def seconds(rehearsal: Rehearsal, device: torch.device | str, times: int = 3) -> dict[str, float]:
    """Seconds of a step by role, the median of some real ones; the method's weights move."""
    rehearsal.method.to(device)
    if hasattr(plugin := rehearsal.trainer.precision_plugin, "device"):
        plugin.device = torch.device(device).type
    rehearsal.begin(rehearsal.data.batch_size, device)
    found = {}
    for role, steps in rehearsal.turns().items():
        rehearsal.step(steps[0])
        spent = []
        for _ in range(times):
            devices.wait_for(torch.device(device))
            begun = time.perf_counter()
            rehearsal.step(steps[-1])
            devices.wait_for(torch.device(device))
            spent.append(time.perf_counter() - begun)
        found[role] = median(spent)
    return found


# What a run holds


def held(root: nn.Module) -> list[Tensor]:
    """The parameters and buffers of all modules under `root`."""
    own = (chain(module._parameters.values(), module._buffers.values()) for module in modules(root))
    return [tensor for tensor in chain.from_iterable(own) if tensor is not None]


def parts_of(method: Distiller) -> list[Part]:
    """What a method holds, without moments; tensors that parts share count in the first one."""
    homes = {"teacher": ["teacher"], **{role: [*names] for role, names in method.roles.items()}}
    homes |= {"ema": ["ema"], "target": ["target"], "other": []}
    counted, parts = set(), []
    for name, attributes in homes.items():
        roots = [method] if name == "other" else [getattr(method, each, None) for each in attributes]
        roots = [root for root in roots if isinstance(root, nn.Module)]
        own = []
        for tensor in chain.from_iterable(map(held, roots)):
            if (place := tensor.untyped_storage()._cdata) not in counted:
                counted.add(place)
                own.append(tensor)
        trained = {id(each) for each in (method.role_parameters(name) if name in method.roles else ())}
        frozen = [each for each in own if isinstance(each, nn.Parameter) and id(each) not in trained]
        if own:
            parts.append(
                Part(
                    name,
                    trained=sum(each.numel() for each in own if id(each) in trained),
                    frozen=sum(each.numel() for each in frozen),
                    weights=sum(each.untyped_storage().nbytes() for each in own),
                    gradients=gradients(method, name) if name in method.roles else 0,
                    gathered=max((gathered(root) for root in roots), default=0),
                    whole=name == "teacher" and not method.spreads_teacher,
                )
            )
    return parts


def gathered(root: nn.Module) -> int:
    """Bytes of the largest entry of a list of modules under `root`, and of what is in no list.

    So `distillkit.sharding` divides a network into blocks; a list in an entry has its own.
    """
    entries = set(blocks(root))

    def own(module: nn.Module) -> int:
        direct = sum(each.nbytes for each in module.parameters(recurse=False))
        return direct + sum(own(child) for child in module.children() if child not in entries)

    return own(root) + max(map(own, entries), default=0)


def gradients(method: Distiller, role: str) -> int:
    """Bytes of the gradients of a role."""
    return sum(parameter.nbytes for parameter in method.role_parameters(role))


def moments(optimizer: torch.optim.Optimizer, group: int | None = None) -> int:
    """Bytes of the optimiser's state, of all parameters or of one group."""
    groups = optimizer.param_groups if group is None else [optimizer.param_groups[group]]
    states = (optimizer.state.get(parameter, {}) for each in groups for parameter in each["params"])
    tensors = (x for state in states for x in state.values() if isinstance(x, Tensor))
    return sum({x.untyped_storage()._cdata: x.nbytes for x in tensors}.values())  # some are shared


# Weights without content


class Copies(TorchDispatchMode):
    """A mode in which copies of large tensors have no content and take no memory."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.clone.default and args[0].nbytes >= LARGE:
            with FAKE:
                return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def fake(method: Distiller) -> Iterator[None]:
    """A context in which the weights of a method have no content.

    Whatever is computed with them has none either; the rest is computed.
    """
    made: dict[int, Tensor] = {}
    states = {name: copy.copy(value) for name, value in vars(method).items() if isinstance(value, list | dict)}
    stores = [store for module in modules(method) for store in (module._parameters, module._buffers)]
    real = [dict(store) for store in stores]
    try:
        for store in stores:
            for name, tensor in store.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        made[id(tensor)] = tensor if isinstance(tensor, FakeTensor) else FAKE.from_tensor(tensor)
                    store[name] = made[id(tensor)]
        yield
    finally:
        for store, own in zip(stores, real, strict=True):
            store.update(own)
        vars(method).update(states)


@contextmanager
def counted(method: Distiller) -> Iterator[Passes]:
    """A context that counts the samples that go through networks, under names of denoisers."""
    passes: Passes = Counter()
    networks: dict[int, tuple[str, nn.Module]] = {}
    for name, module in method.named_modules():
        if isinstance(getattr(module, "network", None), nn.Module) and hasattr(module, "process"):
            networks.setdefault(id(module.network), (name.removesuffix(".denoiser"), module.network))
    watched = [(name, net, call) for name, net in networks.values() for call in CALLS if hasattr(net, call)]
    for name, net, call in watched:
        vars(net)[call] = _counting(passes, name, net, getattr(net, call))
    try:
        yield passes
    finally:
        for _, net, call in watched:
            del vars(net)[call]


def _counting(passes: Passes, name: str, network: nn.Module, own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, *args: object, **options: object) -> Tensor:
        passes[name, kind(network, x)] += len(x)
        return own(x, *args, **options)

    return call


def kind(network: nn.Module, x: Tensor) -> str:
    """The kind of the pass that begins, a key of `COST`."""
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        return "forward mode"
    trains = any(parameter.requires_grad for parameter in network.parameters())
    if not torch.is_grad_enabled() or not (trains or x.requires_grad):
        return "forward"
    return ("train" if trains else "input gradient") + (AGAIN if checkpoints(network) else "")
