"""Learn a sampler of the countdown, whose law is known, with eight network evaluations, by LSD+.

python examples/discrete.py [--steps 4] [--out runs/example-discrete]
"""

import argparse
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything

from distillkit import load_student
from distillkit.cli.lightning import quiet
from distillkit.methods.lsd_tokens import LSDTokens
from domains.discrete.data import WorldData
from domains.discrete.media import curves
from domains.discrete.teacher import Countdown

NUM = 500  # samples of each sampler


def main(steps: int = 4, out: str = "runs/example-discrete") -> None:
    quiet()  # fewer messages of Lightning
    seed_everything(0, verbose=False)
    teacher = Countdown(
        num_tokens=8, length=32, noise="uniform"
    )  # its denoiser is a formula: nothing had to be trained
    data = WorldData(teacher, batch_size=256)
    method = LSDTokens(teacher, num_steps=8, learn_times=True, num_pairs=512, guard=NUM)
    trainer = Trainer(
        max_steps=steps,  # each solves for all seven powers
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(method, data)

    method.export(Path(out) / "student")
    student = load_student(Path(out) / "student")  # a few numbers, and the name of their teacher
    evaluator, lines = data.evaluator(), {}
    plain = {f"plain sampler, {calls} calls": teacher.grid(calls) for calls in (2, 4, 8, 16, 32)}
    rows = {name: teacher.generate(NUM, {}, seed=1, times=times) for name, times in plain.items()}
    rows["learned, 8 calls"] = student.sample(NUM, seed=1)
    for name, samples in rows.items():
        found = evaluator(samples)
        sampler, _, calls = name.partition(", ")
        lines.setdefault(sampler, {})[int(calls.split()[0])] = found["pair_error"]
        print(f"{name:<24} wrong neighbours {found['pair_error']:.4f}  entropy {found['entropy']:.3f}")
    real = evaluator.floor(NUM)
    print(f"{'the world itself':<24} wrong neighbours {real['pair_error']:.4f}  entropy {real['entropy']:.3f}")
    curves(lines, "wrong neighbours").save(Path(out) / "curves.png")
    data.media.compare({name: rows[name] for name in list(rows)[2::3]}).save(Path(out) / "samples.png")
    print(f"pictures: {Path(out) / 'curves.png'}, {Path(out) / 'samples.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps, rounds of matching (default 4)")
    parser.add_argument("--out", default="runs/example-discrete", help="folder for the student and the pictures")
    main(**vars(parser.parse_args()))
