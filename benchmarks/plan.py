"""The memory that `plan` says, against that of real steps.

    python benchmarks/plan.py [--runs 0 3]

Each run is planned, and then really made: Lightning's Trainer for two cycles through the roles and
two steps, with the run's own batch size. What is measured is all tensors that Python knows before
the first step, except the data, and those that are made and alive at once from then on. Beside it
stands the growth of the process's resident memory over the steps, which rounds up to pages, holds
what kernels take for themselves, and misses what the process had free.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from distillkit import devices
from distillkit.cli import front
from distillkit.cli.lightning import CLI, quiet, set_threads
from distillkit.cli.plan import looked
from distillkit.data import TensorData

RUNS = (
    "domain=toy method=dmd",
    "domain=toy method=dmd trainer.precision=bf16-mixed",
    "domain=toy method=sid student=lora",
    "domain=toy method=mdt_dist",
    "domain=toy method=scm",
    "domain=toy method=pretrain trainer.accumulate_grad_batches=3",
    "domain=image method=dmd data.batch_size=16",
    "domain=image method=dmd data.batch_size=16 model.checkpointing=true",
    "domain=image method=dmd data.batch_size=16 teacher.dtype=bfloat16",
    "domain=image method=dmd data.batch_size=16 student=lora fake_score=lora teacher.dtype=bfloat16",
    "domain=image method=dmd data.batch_size=16 model.optimizer=adamw8bit",
    "domain=image method=consistency data.batch_size=16",
    "domain=image method=pairs data.batch_size=16 model.num_pairs=16 model.steps=2",
    "domain=protein method=dmd data.batch_size=2",
)
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Measured(Callback):
    """Measures the memory of steps.

    Attributes:
        tensors: bytes of all tensors at the peak.
        resident: bytes by which the process grew at most.
    """

    def on_train_start(self, trainer, pl_module) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        data = [part for part in vars(trainer.datamodule).values() if isinstance(part, TensorData)]
        known = {
            x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in gc.get_objects() if isinstance(x, Tensor)
        }
        for tensors in data:
            for x in tensors.tensors.values():
                known.pop(x.untyped_storage()._cdata, None)
        self.tensors = sum(known.values())
        self.peak = devices.Peak(x for x in gc.get_objects() if isinstance(x, Tensor))
        RESET.write_text("5")  # the largest size begins anew
        self.resident = -figure("VmRSS")
        self.peak.__enter__()

    def on_train_end(self, trainer, pl_module) -> None:
        self.peak.__exit__(None, None, None)
        self.tensors += self.peak.bytes
        self.resident += figure("VmHWM")


def figure(name: str) -> int:
    """A figure of this process in bytes."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", STATUS.read_text())[1])


class Fit(CLI):
    """A fit of two cycles that leaves nothing."""

    def __init__(self, flags: Sequence[str]):
        self.measured = Measured()
        super().__init__("fit", flags, None, "plan")

    def keep(self, checkpoint: str | None, again: bool) -> None:
        pass

    def instantiate_trainer(self, **kwargs) -> Trainer:
        many = self.config.fit.trainer
        settings = {name: many[name] for name in ("precision", "accumulate_grad_batches", "gradient_clip_val")}
        cycle = sum(role.updates for role in self.model.settings.values())
        quieted = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        return Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=2 * cycle + 2,
            max_epochs=-1,
            limit_val_batches=0,
            use_distributed_sampler=False,
            callbacks=[self.measured],
            **settings,
            **quieted,
        )


def main(argv: list[str] | None = None) -> list[tuple[str, int, int, int]]:
    """Prints and returns for each run its words, the planned bytes and the two measured ones."""
    parser = argparse.ArgumentParser(description="The memory that plan says, against that of real steps.")
    parser.add_argument("--runs", type=int, nargs="+", default=[*range(len(RUNS))], help="their numbers (default all)")
    args = parser.parse_args(argv)
    set_threads()
    quiet()
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}; MiB: planned, tensors, planned / tensors - 1, growth of resident memory")
    rows = []
    for words in (RUNS[number] for number in args.runs):
        call = front.split(words.split())
        call.no_cache = True
        plan = looked(call, 1).plan
        fits = []
        front.train("fit", call, lambda verb, flags, **_: fits.append(Fit(flags)) or 0)  # noqa: B023 (called at once)
        rows.append((words, plan.peak, fits[0].measured.tensors, fits[0].measured.resident))
        _, planned, tensors, resident = rows[-1]
        numbers = f"{planned / 2**20:9.2f} {tensors / 2**20:9.2f} {100 * (planned / tensors - 1):+7.1f} %"
        print(f"{words:<80} {numbers} {resident / 2**20:9.1f}{'  (real)' if plan.real else ''}", flush=True)
    return rows


if __name__ == "__main__":
    main()
