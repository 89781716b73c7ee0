"""Overhead of a training step beyond the network passes that its algorithm needs.

    python benchmarks/step_time.py [--methods sid dmd] [--batch 32] [--channels 64] [--size 16]
        [--cycles 10] [--where | --memory]

The step is the real one: Lightning's Trainer around the method, from the end of one step to the end
of the next. It includes fetching the batch, hooks, logging, clipping and the student's EMA. The
bare step is the same passes of the same networks on the same batch, with a fused AdamW step. The
two alternate in one process. Times are CPU seconds on a CPU, so that other load of the machine does
not count; a ratio is that of the shortest ones.

One F is one forward pass of the network on the batch; a backward to the input costs another F, a
full backward two. A pass in forward mode, which gives a value and a derivative, counts as two, and
features as a whole pass, though they end in the middle; the bare step makes what the real one
makes. The passes are counted in a real step, by hooks on the networks: a call without gradient, one
whose input has a gradient, one whose weights have. They are compared with `NEEDS`, what the papers'
losses need, and a difference is said.

`--memory` gives instead, for each method in a process of its own, what its networks, averages and
optimisers hold and the growth of the process's peak over some steps, in units of one network's
weights.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import resource
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from dataclasses import replace
from importlib import import_module
from inspect import signature
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from distillkit.data import DistillData, TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.methods.base import Distiller
from distillkit.methods.pretrain import Pretrain
from distillkit.methods.sampler import SamplerDistiller
from distillkit.methods.turns import Turns
from distillkit.networks.unet import UNet
from distillkit.planning import COST, kind
from distillkit.students.few_step import END, SIDE
from distillkit.teachers.base import Teacher

CLASSES = {"label": 10}
WARMUP = 2  # cycles that are not timed
FEW = 64  # pairs of noise and samples, of methods that have them
CONF = Path(__file__).parents[1] / "conf"

# What the loss of each role needs, in F, at the settings of the methods' yamls.
NEEDS = {
    # fake score: a sample (1), its denoising loss (3)
    # student: a sample (3), the teacher and the fake score (1 each)
    "dmd": {"fake_score": 4, "student": 5},
    "msd": {"fake_score": 4, "student": 5},  # as dmd: each sample goes through one of the networks
    "swiftbrush": {"fake_score": 4, "student": 7},  # as dmd, with both scores guided: two passes each
    "sid": {"fake_score": 4, "student": 7},  # as dmd, with gradients through both scores
    # velocity matching and distillation: the student (3), the teacher (1), the student a hop on (1)
    # distillation besides: the student where its sample was noised to (1)
    "mdt_dist": {"student": 11},
    "pairs": {"student": 3},
    "reflow": {"student": 3},
    "pretrain": {"student": 3},
    "lsd": {"student": 11},  # six steps of the teacher's network: the first has no gradient (1), the others do (2)
    "lsd_plus": {"student": 12},  # the first time is learned too
    # hops: the student at one end (3), itself or its average at the other (1), the teacher between
    "consistency": {"student": 6},  # Heun: two calls
    "ctm": {"student": 6},
    "lcm": {"student": 6},  # DDIM, guided: two calls
    "tcd": {"student": 6},
    "consistency_training": {"student": 4},  # along the datum: none
    "ict": {"student": 4},
    "ect": {"student": 4},
    # and the discriminator's features: of one end to the input (2); of both (2)
    "pcm": {"heads": 6, "student": 8},
    "hyper_sd": {"heads": 5, "student": 7},
    # tangents: the student (3) and its derivative (2), the teacher's velocity (1)
    "scm": {"student": 6},
    "tbcm": {"student": 91},  # at 15 states of 16 that the teacher visits
    "sana_sprint": {"heads": 3, "student": 11},  # besides a sample and the features of it, and for heads of data
    "rcm": {"fake_score": 4, "student": 11},  # scm and dmd, where one step is simulated
    "meanflow": {"student": 4.5},  # the derivative for a quarter of the rows
    # flow map on 3/4 of the rows: the student (3), the teacher (1), two jumps behind its hop (2)
    # the rest: a sample (3), the denoising loss of it (3), the two sides that rectify it (2)
    "twinflow": {"student": 6.5},
}

COLUMNS = {
    "method": "method",
    "role": "role",
    "updates": "updates",
    "step_ms": "step ms",
    "bare_ms": "bare ms",
    "ratio": "ratio",
    "passes": "passes/F",
}

# Functions that `--where` times separately, beside the networks' passes.
PARTS = {
    "note": "metrics",
    "log_noted": "metrics",
    "generator": "generators",
    "focus": "requires_grad",
    "configure_gradient_clipping": "norm and clip",
    "update_ema": "average",
    "diffuse": "diffuse",
    "backward": "backward",
}


def settings(method: str) -> tuple[type[Distiller], dict[str, Any]]:
    """The class of a method of `conf/method` and what its yaml says of the arguments."""
    said, cls = read(CONF / "method" / f"{method}.yaml"), None
    arguments: dict[str, Any] = {}
    for entry in said.get("defaults", ()):
        if isinstance(entry, str) and entry != "_self_":  # a preset
            cls, arguments = settings(entry)
        elif isinstance(entry, dict):
            ((group, choice),) = entry.items()
            if not group.startswith("override"):  # a network from nothing is a copy here
                group = group.rpartition("/")[2]
                arguments[f"{group}_maker"] = made(read(CONF / group / f"{choice}.yaml"))
    model = said.get("model", {})
    for key, value in model.items():
        before = arguments.get(key)
        if isinstance(value, dict):  # as Hydra joins them
            arguments[key] = (before if isinstance(before, dict) else {}) | value
        elif key != "_target_" and not str(value).startswith("${"):
            arguments[key] = value
    return imported(model["_target_"]) if "_target_" in model else cls, arguments


def read(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def made(said: Any) -> Any:
    """What a yaml says, with an object for each `_target_`."""
    if not isinstance(said, dict):
        return said
    parts = {key: made(value) for key, value in said.items() if key != "_target_"}
    return imported(said["_target_"])(**parts) if "_target_" in said else parts


def imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


class RandomImages(DistillData):
    """Noise of the right shape: its content does not change the cost of a step."""

    domain = "image"

    def __init__(self, shape: tuple[int, ...], batch_size: int):
        super().__init__(batch_size)
        self.event_shape, self.classes = shape, CLASSES

    def load(self):
        num = 20 * self.batch_size
        data = TensorData({"data": torch.randn(num, *self.event_shape), "label": torch.arange(num) % 10})
        return data, data, data

    def build_evaluator(self, held_out):
        return None

    @property
    def media(self):
        return None


def network(shape: tuple[int, ...], channels: int) -> UNet:
    """A U-Net without its initial zeros."""
    net = UNet(shape, channels, classes=CLASSES)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return net


def build(name: str, shape: tuple[int, ...], channels: int) -> Distiller:
    cls, said = settings(name)
    arguments = {key: made(value) for key, value in said.items()}
    net, process = network(shape, channels), VarianceExploding()
    if cls is Pretrain:
        return cls(net, process, list(shape), CLASSES)
    if "num_pairs" in signature(cls).parameters or issubclass(cls, SamplerDistiller):
        arguments["num_pairs"] = FEW
    method = cls(Teacher(Denoiser(net, process), shape, CLASSES), **arguments)
    method.settings = {role: replace(of, start=0) for role, of in method.settings.items()}
    method.turns = Turns(method.settings)  # all roles from the first step on
    return method


Call = tuple[str, str, str, int]  # the network's name, its function, the kind of pass, the rows that go through


class Bare:
    """The passes of one role's step by hand, on copies of the method's networks as they are now.

    Args:
        networks: by name; those that the role trains require gradients.
        calls: the passes, in order. The first makes the samples, the others judge them.
    """

    def __init__(self, networks: dict[str, nn.Module], calls: list[Call]):
        self.calls = [*calls]
        self.networks = {name: copy.deepcopy(networks[name]) for name, *_ in calls}
        for net in self.networks.values():
            for function in ("forward", "features"):
                net.__dict__.pop(function, None)  # the stopwatch's
        trained = [p for net in self.networks.values() for p in net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True) if trained else None

    def step(self, batch: dict[str, Tensor]) -> None:
        data, outputs = batch["data"], []
        for name, function, how, rows in self.calls:
            x = outputs[0] if outputs and outputs[0].shape == data.shape else data
            if how == "input gradient" and not x.requires_grad:
                x = x.clone().requires_grad_()
            x, cond = repeated(x, rows), {key: repeated(batch[key], rows) for key in CLASSES}
            call, time = getattr(self.networks[name], function), torch.zeros(len(x), device=x.device)
            cond |= {END: time, "kappa": time, SIDE: time.long()}  # whoever was told
            if how == "forward mode":
                with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                    torch.func.jvp(lambda x, t: call(x, t, cond), (x, time), (x, time))  # noqa: B023
            else:
                with torch.set_grad_enabled(how != "forward"):
                    outputs.append(call(x, time, cond))
        if moved := [out.square().mean() for out in outputs if out.requires_grad]:
            torch.stack(moved).sum().backward()
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad()


def repeated(x: Tensor, rows: int) -> Tensor:
    """As many rows of x, again and again, [rows, ...]."""
    return torch.cat([x] * -(-rows // len(x)))[:rows]


class Stopwatch(Callback):
    """Times each real step, from the end of the one before, and then the bare one.

    Args:
        bare: whether bare steps are made; without, the real ones are measured alone.

    Attributes:
        calls: the passes in a step of each role.
        pairs: by role `(step, bare)` in milliseconds.
    """

    def __init__(self, bare: bool = True):
        self.bare, self.counted = bare, {}
        self.calls: dict[str, list[Call]] = {}
        self.pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def on_train_start(self, trainer, pl_module) -> None:
        self.networks = {name: m.network for name, m in pl_module.named_modules() if isinstance(m, Denoiser)}
        self.made: list[Call] = []
        for name, network in self.networks.items():
            for function in ("forward", "features"):
                self.count(name, network, function)
        self.start = now()

    def count(self, name: str, network: nn.Module, function: str) -> None:
        """Notes each call of a function of a network."""
        own = getattr(network, function)

        def counted(x: Tensor, *args: Any, **options: Any) -> Any:
            self.made.append((name, function, kind(network, x), len(x)))
            return own(x, *args, **options)

        setattr(network, function, counted)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        end, role = now(), pl_module.turn(trainer.global_step - 1)
        if trainer.global_step <= cycle_of(pl_module):
            if role not in self.calls:
                self.calls[role] = [*self.made]
                if self.bare:
                    self.counted[role] = Bare(self.networks, self.made)
            self.made.clear()
            if trainer.global_step == cycle_of(pl_module):
                for network in self.networks.values():
                    del network.forward, network.features
        end_of_counting = now()
        if self.bare:
            self.counted[role].step(batch)
        if trainer.global_step > WARMUP * cycle_of(pl_module):
            self.pairs[role].append((1000 * (end - self.start), 1000 * (now() - end_of_counting)))
        self.start = now()


def now() -> float:
    """Seconds: those of this process on a CPU; on a GPU after all its queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Ledger(Callback):
    """Milliseconds of a step in named functions, each without the named functions inside it.

    Args:
        method: the method; its functions are wrapped, so build a fresh one.
    """

    def __init__(self, method: Distiller):
        self.spent: dict[tuple[str, str], float] = defaultdict(float)  # (role, part)
        self.steps: dict[str, int] = defaultdict(int)
        self.role, self.inside = "", []
        for name, part in PARTS.items():
            if hasattr(method, name):
                self.watch(method, name, part)
        for role in method.roles:
            self.watch(method, f"{role}_loss", "losses")
        for module in method.modules():
            if isinstance(module, Denoiser):
                self.watch(module, "forward", "conversions")
                self.watch(module.network, "forward", "network forward")

    def watch(self, owner: nn.Module, name: str, part: str) -> None:
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            start = now()
            self.inside.append(0.0)
            result = function(*args, **kwargs)
            total = 1000 * (now() - start)
            self.spent[self.role, part] += total - self.inside.pop()
            if self.inside:
                self.inside[-1] += total
            return result

        object.__setattr__(owner, name, timed)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.role = pl_module.turn(trainer.global_step)
        self.steps[self.role] += 1
        if trainer.global_step == WARMUP * cycle_of(pl_module):
            self.spent.clear()
            self.steps = defaultdict(int, {self.role: 1})

    def summary(self, role: str, step: float) -> str:
        """Milliseconds per step of a role that took `step` in all, largest part first."""
        parts = {part: ms / self.steps[role] for (r, part), ms in self.spent.items() if r == role}
        parts["optimiser and Lightning's loop"] = step - sum(parts.values())
        return ", ".join(f"{part} {ms:.2f}" for part, ms in sorted(parts.items(), key=lambda item: -item[1]))


def cycle_of(method: Distiller) -> int:
    """Optimiser steps in a cycle through all roles."""
    return sum(settings.updates for settings in method.settings.values())


def measure(method: Distiller, data: DistillData, cycles: int, *watchers: Callback) -> None:
    """Train for `cycles` and the warm-up before them."""
    trainer = Trainer(
        max_steps=(WARMUP + cycles) * cycle_of(method),
        max_epochs=-1,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=20,
        callbacks=list(watchers),
    )
    trainer.fit(method, data)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description="Training steps against the bare network passes that they need.")
    parser.add_argument("--methods", nargs="+", choices=NEEDS, default=list(NEEDS), help="default all")
    parser.add_argument("--batch", type=int, default=32, help="samples in a batch (default 32)")
    parser.add_argument("--channels", type=int, default=64, help="width of the U-Net (default 64)")
    parser.add_argument("--size", type=int, default=16, help="height and width of the RGB images (default 16)")
    parser.add_argument("--cycles", type=int, default=10, help="measured cycles through all roles (default 10)")
    also = parser.add_mutually_exclusive_group()
    also.add_argument("--where", action="store_true", help="afterwards, say where the time of a step goes")
    also.add_argument("--memory", action="store_true", help="measure memory instead, each method in a fresh process")
    args = parser.parse_args(argv)

    if not torch.cuda.is_available():
        torch.set_num_threads(int(os.environ.get("DISTILLKIT_THREADS", "1")))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")

    shape = (3, args.size, args.size)
    if args.memory:
        return memory(args, shape)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread"
    size = sum(p.numel() for p in network(shape, args.channels).parameters()) / 1e6
    print(f"torch {torch.__version__}, {device}; U-Net of {size:.1f} M parameters, batch {args.batch} x {shape}")
    line = "{:<20} {:<12} {:>8} {:>9} {:>9} {:>7} {:>9}"
    print(line.format(*COLUMNS.values()))

    rows = []
    for name in args.methods:
        seed_everything(0, verbose=False)
        method, data = build(name, shape, args.channels), RandomImages(shape, args.batch)
        watch = Stopwatch()
        measure(method, data, args.cycles, watch)
        total = {"step_ms": 0.0, "bare_ms": 0.0, "passes": 0}
        for role, of in method.settings.items():
            step, bare = (min(column) for column in zip(*watch.pairs[role], strict=True))
            passes = sum(COST[how] * rows for *_, how, rows in watch.calls[role]) / args.batch
            row = {"step_ms": step, "bare_ms": bare, "passes": passes}
            total = {key: total[key] + of.updates * value for key, value in row.items()}
            rows.append({"method": name, "role": role, "updates": of.updates, "ratio": step / bare, **row})
            if (needs := NEEDS.get(name, {}).get(role)) != passes:
                print(f"  the {role} of {name} makes {passes:g} F, its loss needs {needs or 'what NEEDS does not say'}")
        ratio = total["step_ms"] / total["bare_ms"]
        rows.append({"method": name, "role": "cycle", "updates": cycle_of(method), "ratio": ratio, **total})
        for row in rows[-len(method.settings) - 1 :]:
            print(line.format(*(cell(row[key]) for key in COLUMNS)), flush=True)
        if args.where:
            method = build(name, shape, args.channels)
            ledger, watch = Ledger(method), Stopwatch(bare=False)
            measure(method, data, args.cycles, watch, ledger)
            for role in method.roles:
                print(f"  a {role} step, in ms: {ledger.summary(role, mean(step for step, _ in watch.pairs[role]))}")
    return rows


def memory(args: argparse.Namespace, shape: tuple[int, ...]) -> list[dict]:
    """What each method holds and its peak in some steps, over the weights of one network."""
    if args.methods != [(name := args.methods[0])]:
        words = ["--memory", "--batch", args.batch, "--channels", args.channels, "--size", args.size]
        for name in args.methods:
            subprocess.run([sys.executable, __file__, *map(str, words), "--methods", name], check=True)
        return []
    seed_everything(0, verbose=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    method, data = build(name, shape, args.channels), RandomImages(shape, args.batch)
    measure(method, data, 1)
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    weights = sum(p.numel() * p.element_size() for p in method.teacher.denoiser.parameters())
    states = [v for o in method.trainer.optimizers for state in o.state.values() for v in state.values()]
    held = {t.data_ptr(): t.numel() * t.element_size() for t in [*method.parameters(), *method.buffers(), *states]}
    row = {"method": name, "held": sum(held.values()) / weights, "peak": peak / weights}
    print(
        f"{name:<20} holds {row['held']:5.1f}, peak {row['peak']:6.1f} networks of {weights / 2**20:.1f} MiB, batch {args.batch}",
        flush=True,
    )
    return [row]


def cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:.1f}"
    return str(value)


if __name__ == "__main__":
    main()
