"""What a step of discrete diffusion costs beside its network, at a real vocabulary.

    python benchmarks/tokens.py [--length 1024] [--states 50257] [--noise absorbing]
        [--samplers ancestral tweedie ...] [--repeats 3]

The network is a small DDiT (width 128, four blocks) with random weights, so nearly all of its cost
is the last layer, from 128 numbers to all states: published models cost more, and their steps the
same. There is one sequence and one thread. The state of `mid-run` is the process's at t = 0.5 and
the step leads to 0.49; `last` is the call that draws the clean tokens from t = 0.5, `start` that
one from t = 1 (absorbing noise: from masks alone, every position is drawn).

A column counts CPU seconds, the least of the repeats, as other load falls on all: the noise of one
call, everything else beside the network (kernel and draw), and the network's calls. Each row is
measured in a process of its own; its memory is the peak beyond that of the network's calls alone,
their outputs included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.discrete.denoiser import Mean
from distillkit.discrete.noise import fresh
from distillkit.discrete.process import Absorbing, DiscreteProcess, Uniform
from distillkit.discrete.sampling import DENOISE, SAMPLERS, Step
from distillkit.networks.ddit import DDiT

PROCESSES = {"absorbing": Absorbing, "uniform": Uniform}
NAMES = {"absorbing": list(SAMPLERS), "uniform": [n for n in SAMPLERS if n not in ("confidence", "first_hitting")]}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Cost of noise, kernel and draw of tokens beside the network.")
    parser.add_argument("--length", type=int, default=1024, help="positions (default 1024)")
    parser.add_argument("--states", type=int, default=50_257, help="real tokens (default 50257)")
    parser.add_argument("--noise", choices=PROCESSES, default="absorbing", help="default absorbing")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, help="default all")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement (default 3)")
    args = parser.parse_args(argv)
    print(f"{args.noise} noise, 1 x {args.length} positions, {args.states} tokens: CPU seconds, MB\n")
    print("| step | noise | kernel and draw | network | share of the network | memory beside the network |")
    print("| :-- | --: | --: | --: | --: | --: |", flush=True)
    rows = [("mid-run", name) for name in args.samplers or NAMES[args.noise]]
    for when, name in [*rows, ("last", None), ("start", None)]:
        given = (when, name, args.noise, args.length, args.states, args.repeats)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            noise, step, network, memory = pool.apply(measured, given)
        share = (noise + step) / network
        print(
            f"| {' '.join(filter(None, (when, name)))} | {noise:.4f} | {step:.3f} | {network:.3f} | {share:.0%} "
            f"| {memory:.0f} |",
            flush=True,
        )
    return 0


class Timed(nn.Module):
    """A network, and the CPU seconds spent in it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        began = time.process_time()
        out = self.network(x_t, t, cond)
        self.seconds += time.process_time() - began
        return out


@torch.no_grad()
def measured(when: str, name: str | None, noise: str, length: int, states: int, repeats: int) -> tuple[float, ...]:
    """Seconds of noise, of kernel and draw, and of the network; megabytes of memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    process: DiscreteProcess = PROCESSES[noise](states)
    network = DDiT(states, mask=isinstance(process, Absorbing), width=128, depth=4, heads=4).eval()
    nn.init.normal_(network.output_layer.linear.weight, std=0.1)
    timed = Timed(network)
    step: Step = SAMPLERS[name] if name else DENOISE
    t, s = torch.tensor([1.0 if when == "start" else 0.5, 0.49], dtype=torch.float64)
    draws = fresh(0, 1, length)
    x = process.start(draws(100))
    if when != "start":
        clean = torch.randint(states, (1, length))
        x = process.add_noise(clean, t, draws(101))
    held = [network(x, t.float().expand(1), {}) for _ in range(step.calls)]  # as many outputs as a step has
    del held
    before = peak()
    noises = [draws(i) for i in range(step.calls)]
    seconds = best(lambda: [draws(i) for i in range(step.calls)], lambda: 0.0, repeats)
    denoiser = Mean(timed, process)
    inside: list[float] = []

    def run() -> None:
        timed.seconds = 0.0
        step(denoiser, x, t, s, *noises)
        inside.append(timed.seconds)

    return seconds, best(run, lambda: timed.seconds, repeats), min(inside), (peak() - before) / 2**20


def best(call: Callable[[], Any], apart: Callable[[], float], repeats: int) -> float:
    """The least CPU seconds of a call, less those that `apart` tells after it."""
    found = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        found.append(time.process_time() - began - apart())
    return min(found)


def peak() -> int:
    """The largest memory of this process up to here, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    raise SystemExit(main())
