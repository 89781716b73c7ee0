"""Seconds and memory of the metrics of two sets of points.

    python benchmarks/metrics.py [--num 10000] [--dim 2048] [--threads 2] [--only prdc nearest]

Both sets, and the training set among which the nearest is sought, hold `--num` Gaussian points.
`first` is a model's row of a table, which also finds what belongs to the reference; `next` is that
of every further model. The output is a Markdown table: wall seconds, CPU seconds of all threads,
and the most memory of the process so far, in GB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable

import torch

from distillkit.evaluation import metrics
from distillkit.report.numbers import number

KIB = 1 if sys.platform == "darwin" else 1024  # bytes in the unit of ru_maxrss


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the metrics of two sets of points.")
    parser.add_argument("--num", type=int, default=10_000, help="points of each set (default 10000)")
    parser.add_argument("--dim", type=int, default=2048, help="features of a point (default 2048)")
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    parser.add_argument("--only", nargs="+", choices=METRICS, default=[*METRICS], metavar="METRIC", help="default all")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    first, second, real = (torch.randn(args.num, args.dim, generator=generator) for _ in range(3))
    reference = metrics.Points(real)
    print(f"{args.num:,} x {args.dim:,} points, {args.threads} threads, torch {torch.__version__}\n")
    print("| metric | first, wall s | CPU s | next, wall s | CPU s | memory, GB |\n| :-- |" + " --: |" * 5)
    for name in args.only:
        cells = []
        for samples in (first, second):
            wall, cpu = time.perf_counter(), time.process_time()
            METRICS[name](samples, reference)
            cells += [number(time.perf_counter() - wall), number(time.process_time() - cpu)]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB / 1e9
        print(f"| {name} | {' | '.join(cells)} | {number(memory)} |", flush=True)
    return 0


METRICS: dict[str, Callable[[torch.Tensor, metrics.Points], object]] = {
    "frechet": metrics.frechet_distance,
    "kernel": metrics.kernel_distance,
    "prdc": lambda samples, reference: metrics.prdc(reference, samples, precision_recall=3, density_coverage=5),
    "nearest": metrics.nearest_distance,
    "sliced_wasserstein": metrics.sliced_wasserstein,
    "energy": metrics.energy_distance,
}


if __name__ == "__main__":
    raise SystemExit(main())
