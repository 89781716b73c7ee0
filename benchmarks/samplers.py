"""Learned samplers of discrete diffusion against plain ones at equal network evaluations.

    python benchmarks/samplers.py --out runs/samplers [--world potts] [--noise uniform]
        [--calls 4 8 16] [--seeds 0 1 2]

The metrics are, for `potts`, KL(world | sampler) in nats, exact, without sampling; for `countdown`,
the share of neighbours that break the rule, and of zeros; for `text`, those of samples of the
embedded teacher, see `domains.discrete.evaluation.TextEvaluator`. LSD and LSD+ are trained as `fit`
trains them, with its guard. A seed is that of the training and of the samples. The output is
Markdown, printed after every seed: the metrics with 95 % intervals, the number of calls with which
the best plain sampler reaches the learned ones, and the duration of their fits.
OUT/samplers.json has all values, OUT/METRIC.png the curves.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from scipy import stats

from distillkit.discrete.jump import jump_your_steps
from distillkit.discrete.laws import kl, law
from distillkit.discrete.learned import LearnedSampler
from distillkit.discrete.noise import fresh
from distillkit.discrete.process import Absorbing
from distillkit.discrete.sampling import SAMPLERS
from distillkit.evaluation.pictures import save_picture
from distillkit.files import write_text
from distillkit.methods.lsd_tokens import LSDTokens
from distillkit.report.numbers import number
from domains.discrete.data import DiscreteData, TextData, WorldData
from domains.discrete.media import curves
from domains.discrete.teacher import Countdown, Potts, Text


@dataclass
class World:
    """A teacher, its metrics, and a fit's budget: sequences of a solution and of the guard."""

    teacher: Callable[..., Any]
    metrics: tuple[str, ...]
    batch: int
    guard: int


WORLDS = {
    "potts": World(Potts, ("kl",), 16_384, 4000),
    "countdown": World(Countdown, ("pair_error", "zeros"), 64, 128),
    "text": World(Text, ("trigram_tv", "perplexity", "entropy"), 64, 128),
}
PLAIN = ("euler", "tau_leap", "tweedie", "theta_trapezoidal")
Made = tuple[Any, torch.Tensor]  # the arguments of `Teacher.generate`: solver and times


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare samplers of tokens at equal network calls.")
    parser.add_argument("--out", type=Path, default=Path("runs/samplers"), help="default runs/samplers")
    parser.add_argument("--world", choices=WORLDS, default="potts", help="default potts")
    parser.add_argument("--noise", choices=("absorbing", "uniform"), default="absorbing", help="default absorbing")
    parser.add_argument("--calls", nargs="+", type=int, default=[4, 8, 16, 32, 64], help="default 4 8 16 32 64")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--rounds", type=int, default=1, help="of matching (default 1)")
    parser.add_argument(
        "--samples", type=int, default=256, help="sequences drawn, where sampling is needed (default 256)"
    )
    args = parser.parse_args(argv)

    warnings.filterwarnings("ignore", module="lightning")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    world = WORLDS[args.world]
    teacher = world.teacher(noise=args.noise)
    data = TextData() if isinstance(teacher, Text) else WorldData(teacher)
    data.setup()
    found: list[dict[str, Any]] = []
    for seed in args.seeds:
        for calls in args.calls:
            for name, make in samplers(teacher, data, world, calls, args.rounds, seed):
                start = time.perf_counter()
                solver, times = make()
                seconds = time.perf_counter() - start
                values = measure(teacher, data, solver, times, args.samples, seed)
                found.append({"seed": seed, "calls": calls, "sampler": name, "seconds": seconds, **values})
                print(
                    f"# seed {seed}, {calls} calls, {name}: " + ", ".join(f"{k} {v:.5g}" for k, v in values.items()),
                    flush=True,
                )
        facts = {key: value for key, value in vars(args).items() if key != "out"}
        write_text(args.out / "samplers.json", json.dumps({**facts, "found": found}, indent=1))
        for metric in world.metrics:
            print(f"\n{metric}\n\n{table(args.calls, found, metric)}\n", flush=True)
            save_picture(args.out / f"{metric}.png", curves(means(found, metric), metric))
        print(f"plain calls of equal {world.metrics[0]}\n\n{equal_quality(args.calls, found, world.metrics[0])}\n")
        print(f"seconds\n\n{table(args.calls, [row for row in found if learned_here(row)], 'seconds')}\n", flush=True)
    return 0


def samplers(
    teacher: Any, data: DiscreteData, world: World, calls: int, rounds: int, seed: int
) -> Iterator[tuple[str, Callable[[], Made]]]:
    """Returns `(name, () -> (solver, times))` for each compared sampler."""
    process = teacher.process
    for name in PLAIN:
        times = process.grid((calls - 1) // SAMPLERS[name].calls + 1)
        yield name.replace("_", "-"), lambda name=name, times=times: (name, times)
    if not isinstance(process, Absorbing):
        yield "tweedie, squared times", lambda: ("tweedie", process.grid(calls) ** 2)
    yield "tweedie, Jump-Your-Steps", lambda: ("tweedie", jumps(teacher, calls, seed))
    paper = {"objective": "score_l2", "couple": False, "rule": "euler", "guard": 0}
    choices = {"LSD": {}, "LSD+": {"learn_times": True}}
    if world.batch > 64:  # elsewhere a run of the teacher in 16 times as many calls takes too long
        choices = {"LSD, the paper's regression": paper, **choices}
    for name, settings in choices.items():
        settings = {"num_pairs": 2 * world.batch, "guard": world.guard, **settings}
        yield (
            name,
            lambda settings=settings: learned(teacher, data, calls, settings, rounds, world.batch, seed),
        )


def jumps(teacher: Any, calls: int, seed: int) -> torch.Tensor:
    x_0 = teacher.clean_samples(64, {}, seed)
    return jump_your_steps(teacher.denoiser, x_0, calls, fresh(seed, *x_0.shape)(0))


def learned(teacher: Any, data: DiscreteData, calls: int, settings: dict, rounds: int, batch: int, seed: int) -> Made:
    """A trained sampler, and its times."""
    seed_everything(seed, verbose=False)
    model = LSDTokens(teacher, num_steps=calls, **settings)
    data.batch_size = batch
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    run = Trainer(max_steps=rounds, max_epochs=-1, enable_model_summary=False, accelerator="cpu", **silent)
    run.fit(model, data)
    return model.student, model.student.times().detach()


@torch.no_grad()
def measure(
    teacher: Any, data: DiscreteData, solver: Any, times: torch.Tensor, num: int, seed: int
) -> dict[str, float]:
    """The exact KL of a small world, else the metrics of `num` samples."""
    if isinstance(teacher, Potts):
        steps = solver.steps() if isinstance(solver, LearnedSampler) else SAMPLERS[solver]
        return {"kl": float(kl(teacher.table(), law(teacher.denoiser, teacher.event_shape[0], times, steps)))}
    return data.evaluator()(teacher.generate(num, {}, 1000 + seed, solver, times))


def learned_here(row: dict[str, Any]) -> bool:
    return row["sampler"].startswith("LSD")


def means(found: list[dict[str, Any]], metric: str) -> dict[str, dict[int, float]]:
    """Sampler to {calls: mean over the seeds}."""
    values: dict[str, dict[int, list[float]]] = {}
    for row in found:
        values.setdefault(row["sampler"], {}).setdefault(row["calls"], []).append(row[metric])
    return {name: {calls: float(np.mean(v)) for calls, v in own.items()} for name, own in values.items()}


def equal_quality(calls: list[int], found: list[dict[str, Any]], metric: str) -> str:
    """The number of calls with which the best plain sampler on uniform times reaches a learned one.

    Lower metrics are better. The means over the seeds are interpolated log-log; outside the
    measured range only a bound is known.
    """
    mean = means(found, metric)
    best = [min(mean[name.replace("_", "-")][num] for name in PLAIN) for num in calls]
    lines = ["| calls | " + " | ".join(map(str, calls)) + " |", "| :-- |" + " --: |" * len(calls)]
    for name in dict.fromkeys(row["sampler"] for row in found if learned_here(row)):
        cells = [equal_calls(calls, best, mean[name][num]) for num in calls]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def equal_calls(calls: list[int], values: list[float], value: float) -> str:
    """The place where falling `values` reach `value`, as words."""
    values = np.minimum.accumulate(values)
    if value > values[0]:
        return f"< {calls[0]}"
    if value < values[-1]:
        return f"> {calls[-1]}"
    return number(float(np.exp(np.interp(-np.log(value), -np.log(values), np.log(calls)))))


def table(calls: list[int], found: list[dict[str, Any]], metric: str) -> str:
    """Means over the seeds, with the half width of Student's 95 % interval where they differ."""
    lines = [f"| {metric} | " + " | ".join(map(str, calls)) + " |", "| :-- |" + " --: |" * len(calls)]
    for name in dict.fromkeys(row["sampler"] for row in found):
        cells = []
        for num in calls:
            values = np.array([row[metric] for row in found if (row["sampler"], row["calls"]) == (name, num)])
            cell = number(values.mean())
            if len(values) > 1 and values.std() > 1e-9 * abs(values.mean()):
                cell += f" ± {stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5:.2g}"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
