"""Overhead of a training step beyond the network passes that its algorithm needs.

    python benchmarks/step_time.py [--methods sid dmd] [--batch 32] [--channels 64] [--size 16]
        [--where]

The step is the real one: Lightning's Trainer around the method, from the end of one step to the end
of the next. It includes fetching the batch, hooks, logging, clipping and the student's EMA. The
bare step is the same passes of the same networks on the same batch written by hand, with a fused
AdamW step. The two alternate in one process, and a ratio is the median over pairs of neighbours:
other load of the machine falls on both.

One F is one forward pass of the network on the batch; a backward to the input costs another F, a
full backward two.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import mean, median

import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor, nn

from distillkit.data import DistillData, TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.methods.base import Distiller
from distillkit.methods.pretrain import Pretrain
from distillkit.methods.score import ScoreDistiller
from distillkit.networks.unet import UNet
from distillkit.teachers.base import Teacher

CLASSES = {"label": 10}
WARMUP = 2  # cycles that are not counted
METHODS = Path(__file__).parents[1] / "conf" / "method"

# The passes of each role, in order: (network, kind of pass). The first makes the samples, the
# others judge them.
COST = {"forward": 1, "input gradient": 2, "train": 3}  # in F
PASSES = {
    "DMD": {
        "fake_score": [("student", "forward"), ("fake_score", "train")],
        "student": [("student", "train"), ("teacher", "forward"), ("fake_score", "forward")],
    },
    "SiD": {
        "fake_score": [("student", "forward"), ("fake_score", "train")],
        "student": [("student", "train"), ("teacher", "input gradient"), ("fake_score", "input gradient")],
    },
    "Pretrain": {"student": [("student", "train")]},
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
    "log": "log",
    "generator": "generators",
    "focus": "requires_grad",
    "configure_gradient_clipping": "norm and clip",
    "update_ema": "average",
    "diffuse": "diffuse",
    "backward": "backward",
}


def methods() -> dict[str, type[Distiller]]:
    """Every method of `conf/method` that can be built from one image teacher."""
    found = {}
    for file in sorted(METHODS.glob("*.yaml")):
        target = (yaml.safe_load(file.read_text()).get("model") or {}).get("_target_")
        if target is None:  # another method with other settings
            continue
        module, _, name = target.rpartition(".")
        cls = getattr(import_module(module), name)
        if issubclass(cls, ScoreDistiller | Pretrain):
            found[file.stem] = cls
    return found


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


def build(cls: type[Distiller], shape: tuple[int, ...], channels: int) -> Distiller:
    net, process = network(shape, channels), VarianceExploding()
    if issubclass(cls, Pretrain):
        return cls(net, process, list(shape), CLASSES)
    return cls(Teacher(Denoiser(net, process), shape, CLASSES))


class Bare:
    """The passes of every role by hand, on copies of the method's networks."""

    def __init__(self, method: Distiller, passes: dict[str, list[tuple[str, str]]]):
        self.passes, self.networks, self.optimizers = passes, {}, {}
        for role, steps in passes.items():
            for name, how in steps:
                denoiser = method.teacher.denoiser if name == "teacher" else getattr(method, name)
                self.networks[role, name] = copy.deepcopy(denoiser.network).requires_grad_(how == "train")
            trained = [p for name, how in steps if how == "train" for p in self.networks[role, name].parameters()]
            self.optimizers[role] = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step(self, role: str, batch: dict[str, Tensor]) -> None:
        x, cond = batch["data"], {name: batch[name] for name in CLASSES}
        t, outputs = torch.zeros(len(x), device=x.device), []
        for name, how in self.passes[role]:
            with torch.set_grad_enabled(how != "forward"):
                outputs.append(self.networks[role, name](outputs[0] if outputs else x, t, cond))
        samples, *judged = outputs if len(outputs) > 1 else (x, *outputs)
        loss = torch.stack([(out - samples).square().mean() for out in judged]).sum()
        loss.backward()
        self.optimizers[role].step()
        self.optimizers[role].zero_grad()


class Stopwatch(Callback):
    """Times each real step, from the end of the one before, and then the bare one.

    Args:
        bare: the bare step, `(role, batch)`; None measures the real steps alone.
    """

    def __init__(self, bare: Callable[[str, dict[str, Tensor]], None] | None = None):
        self.bare = bare
        self.pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)  # role: (step, bare) in milliseconds

    def on_train_start(self, trainer, pl_module) -> None:
        self.start = now()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        end = now()
        role = pl_module.turn(trainer.global_step - 1)
        if self.bare:
            self.bare(role, batch)
        if trainer.global_step > WARMUP * cycle_of(pl_module):
            self.pairs[role].append((1000 * (end - self.start), 1000 * (now() - end)))
        self.start = now()


def now() -> float:
    """Seconds, after all queued work of the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


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
    known = methods()
    parser.add_argument("--methods", nargs="+", choices=known, default=list(known), help="default all")
    parser.add_argument("--batch", type=int, default=32, help="samples in a batch (default 32)")
    parser.add_argument("--channels", type=int, default=64, help="width of the U-Net (default 64)")
    parser.add_argument("--size", type=int, default=16, help="height and width of the RGB images (default 16)")
    parser.add_argument("--cycles", type=int, default=10, help="measured cycles through all roles (default 10)")
    parser.add_argument("--where", action="store_true", help="afterwards, say where the time of a step goes")
    args = parser.parse_args(argv)

    if not torch.cuda.is_available():
        torch.set_num_threads(int(os.environ.get("DISTILLKIT_THREADS", "1")))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")

    shape = (3, args.size, args.size)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread"
    size = sum(p.numel() for p in network(shape, args.channels).parameters()) / 1e6
    print(f"torch {torch.__version__}, {device}; U-Net of {size:.1f} M parameters, batch {args.batch} x {shape}")
    line = "{:<10} {:<12} {:>8} {:>9} {:>9} {:>7} {:>9}"
    print(line.format(*COLUMNS.values()))

    rows = []
    for name in args.methods:
        seed_everything(0, verbose=False)
        method, data = build(known[name], shape, args.channels), RandomImages(shape, args.batch)
        passes = PASSES.get(type(method).__name__)
        watch = Stopwatch(Bare(method, passes).step if passes else None)
        measure(method, data, args.cycles, watch)
        sums, forwards = [0.0, 0.0], 0
        for role, settings in method.settings.items():
            step, bare = (median(column) for column in zip(*watch.pairs[role], strict=True))
            row = {"method": name, "role": role, "updates": settings.updates, "step_ms": step}
            if passes:
                ratio = median(a / b for a, b in watch.pairs[role])
                row |= {"bare_ms": bare, "ratio": ratio, "passes": sum(COST[how] for _, how in passes[role])}
                sums = [sums[0] + settings.updates * bare * ratio, sums[1] + settings.updates * bare]
                forwards += settings.updates * row["passes"]
            rows.append(row)
        if passes:
            row = {"method": name, "role": "cycle", "updates": cycle_of(method), "step_ms": sums[0], "bare_ms": sums[1]}
            rows.append(row | {"ratio": sums[0] / sums[1], "passes": forwards})
        for row in rows[-len(method.settings) - bool(passes) :]:
            print(line.format(*(cell(row.get(key)) for key in COLUMNS)), flush=True)
        if not passes:
            print(f"  no passes are declared for {type(method).__name__}: add them to PASSES in {Path(__file__).name}")
        if args.where:
            method = build(known[name], shape, args.channels)
            ledger, watch = Ledger(method), Stopwatch()
            measure(method, data, args.cycles, watch, ledger)
            for role in method.roles:
                print(f"  a {role} step, in ms: {ledger.summary(role, mean(step for step, _ in watch.pairs[role]))}")
    return rows


def cell(value: str | int | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:.1f}"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    main()
