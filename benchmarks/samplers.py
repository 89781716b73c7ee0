"""What learned samplers of tokens are worth: every sampler at equal network calls, on worlds whose law is known.

    python benchmarks/samplers.py --out runs/samplers [--world potts] [--noise uniform] [--calls 4 8 16]

`potts`: KL(world | sampler) in nats, exact, without sampling. `countdown`: the share of neighbours that break the rule, in
`--samples` sequences. LSD and LSD+ are trained as `fit` trains them. What is printed is markdown; OUT/samplers.json has the same.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from distillkit.discrete.jump import jump_your_steps
from distillkit.discrete.laws import kl, law
from distillkit.discrete.learned import LearnedSampler
from distillkit.discrete.noise import fresh
from distillkit.discrete.process import Absorbing
from distillkit.discrete.sampling import SAMPLERS
from distillkit.files import write_text
from distillkit.methods.lsd import LSD, LSDPlus
from distillkit.quality import number
from domains.discrete.data import WorldData
from domains.discrete.evaluation import countdown_errors
from domains.discrete.teacher import Countdown, Potts

WORLDS = {"potts": Potts, "countdown": Countdown}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare samplers of tokens at equal network calls.")
    parser.add_argument("--out", type=Path, default=Path("runs/samplers"), help="default runs/samplers")
    parser.add_argument("--world", choices=WORLDS, default="potts", help="default potts")
    parser.add_argument("--noise", choices=("absorbing", "uniform"), default="absorbing", help="default absorbing")
    parser.add_argument("--calls", nargs="+", type=int, default=[4, 8, 16, 32, 64], help="default 4 8 16 32 64")
    parser.add_argument("--rounds", type=int, default=4, help="of matching (default 4)")
    parser.add_argument("--batch", type=int, default=512, help="sequences of a solution (default 512)")
    parser.add_argument("--samples", type=int, default=256, help="sequences of the countdown (default 256)")
    args = parser.parse_args(argv)

    warnings.filterwarnings("ignore", module="lightning")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    teacher = WORLDS[args.world](noise=args.noise)
    rows: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for calls in args.calls:
        for name, sampler in samplers(teacher, calls, args.rounds, args.batch):
            start = time.perf_counter()
            solver, times = sampler()
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
            rows.setdefault(name, []).append(error(teacher, solver, times, args.samples))
            print(f"# {calls} {name}: {rows[name][-1]:.5g}", flush=True)
    facts = {key: value for key, value in vars(args).items() if key != "out"}
    write_text(args.out / "samplers.json", json.dumps({**facts, "rows": rows, "seconds_to_fit": seconds}, indent=1))
    print(table(args.calls, rows))
    return 0


def samplers(teacher: Any, calls: int, rounds: int, batch: int):
    """`(name, () -> (solver, times))` for each that is compared."""
    process = teacher.process
    for name in ("euler", "tau_leap", "tweedie", "theta_trapezoidal"):
        times = process.grid((calls - 1) // SAMPLERS[name].calls + 1)
        yield name.replace("_", "-"), lambda name=name, times=times: (name, times)
    if not isinstance(process, Absorbing):
        yield "tweedie, squared times", lambda: ("tweedie", process.grid(calls) ** 2)
    yield "tweedie, Jump-Your-Steps", lambda: ("tweedie", jumps(teacher, calls))
    paper = {"objective": "score_l2", "couple": False, "rule": "euler", "guard": 0}
    for name, cls, settings, steps in (
        ("LSD, the paper's regression", LSD, paper, rounds),
        ("LSD", LSD, {"guard": 2000}, rounds * (calls - 1)),
        ("LSD+", LSDPlus, {"guard": 2000}, rounds * (calls - 1)),
    ):
        yield name, lambda cls=cls, settings=settings, steps=steps: learned(cls, teacher, calls, settings, steps, batch)


def jumps(teacher: Any, calls: int) -> torch.Tensor:
    x_0 = teacher.clean_samples(64, {}, seed=0)
    return jump_your_steps(teacher.denoiser, x_0, calls, fresh(0, *x_0.shape, teacher.process.num_states)(0))


def learned(cls: type, teacher: Any, calls: int, settings: dict, steps: int, batch: int):
    """A trained sampler, and its times."""
    seed_everything(0, verbose=False)
    guard = min(settings["guard"], 2000 if teacher.event_shape[0] < 10 else 128)
    model = cls(teacher, num_steps=calls, num_pairs=4 * batch, **settings | {"guard": guard})
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    run = Trainer(max_steps=steps, max_epochs=-1, enable_model_summary=False, accelerator="cpu", **silent)
    run.fit(model, WorldData(teacher, batch_size=batch))
    return model.student, model.student.times().detach()


@torch.no_grad()
def error(teacher: Any, solver: Any, times: torch.Tensor, num: int) -> float:
    """Exact KL where the world is small, else the share of wrong neighbours."""
    if isinstance(teacher, Countdown):
        return countdown_errors(teacher.generate(num, {}, 1, solver, times))["pair_error"]
    steps = solver.steps() if isinstance(solver, LearnedSampler) else SAMPLERS[solver]
    return float(kl(teacher.table(), law(teacher.denoiser, teacher.event_shape[0], times, steps)))


def table(calls: list[int], rows: dict[str, list[float]]) -> str:
    lines = ["| network calls | " + " | ".join(map(str, calls)) + " |", "| :-- |" + " --: |" * len(calls)]
    best = [min(column) for column in zip(*rows.values(), strict=True)]
    for name, values in rows.items():
        cells = [f"**{number(v)}**" if v == low else number(v) for v, low in zip(values, best, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
