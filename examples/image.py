"""Distil the embedded teacher of digits (35 network evaluations a sample) into a one-step student.

python examples/image.py [--steps 1200] [--out runs/example-image]
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from distillkit import load_student
from distillkit.callbacks.progress import Progress
from distillkit.cli.lightning import quiet
from distillkit.methods.base import Adam
from distillkit.methods.sid import SiD
from domains.image.data import Digits
from domains.image.teacher import Digits as Teacher


def main(steps: int = 1200, out: str = "runs/example-image") -> None:
    quiet()  # fewer messages of Lightning
    seed_everything(0, verbose=False)
    teacher, data = Teacher(), Digits(batch_size=64)
    rates = {role: Adam(lr=1e-4, betas=(0.0, 0.999)) for role in ("student", "fake_score")}
    method = SiD(teacher, num_steps=1, ema_halflife=5_000, **rates)
    trainer = Trainer(
        max_steps=steps,  # of both roles: half of them are the student's
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=Progress(),
    )
    trainer.fit(method, data)

    method.export(Path(out) / "student")
    student = load_student(Path(out) / "student")
    noise = torch.randn((500, *student.event_shape), generator=torch.Generator().manual_seed(1))
    cond = student.default_condition(500)  # digits in turn: 0, 1, 2 ...
    rows = {
        "student": student.sample(500, cond, seed=1),  # from the same noise
        "teacher": teacher.sample(noise, cond),
        "teacher, 1 step": teacher.sample(noise, cond, steps=1),
    }
    for name, samples in rows.items():
        metrics = data.evaluator()(samples, cond)
        print(f"{name:<16} frechet {metrics['frechet']:.2f}  class agreement {metrics['class_agreement']:.2f}")
    data.media.compare(rows).save(Path(out) / "comparison.png")
    print(f"picture: {Path(out) / 'comparison.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200, help="optimiser steps of all roles (default 1200)")
    parser.add_argument("--out", default="runs/example-image", help="folder for the student and the picture")
    main(**vars(parser.parse_args()))
