"""Distil five Gaussians on a circle, whose exact law is known, into a one-step student.

python examples/toy.py [--steps 4000] [--out runs/example-toy]
"""

import argparse
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything

from distillkit import load_student
from distillkit.callbacks.progress import Progress
from distillkit.cli.lightning import quiet
from distillkit.diffusion.times import LogNormal
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from domains.toy.data import ToyData
from domains.toy.teacher import Circle


def main(steps: int = 4000, out: str = "runs/example-toy") -> None:
    quiet()  # fewer messages of Lightning
    seed_everything(0, verbose=False)
    teacher = Circle(modes=5, radius=3.0, std=0.5)  # its denoiser is a formula: nothing had to be trained
    data = ToyData(teacher, batch_size=512)
    method = DMD(
        teacher,
        student=Adam(lr=5e-4, betas=(0.0, 0.99)),
        fake_score=Adam(lr=1e-3, betas=(0.0, 0.99), updates=3),
        student_times=LogNormal(-0.5, 1.2),  # noise of the size of a mode, to that of the circle
        fake_times=LogNormal(-0.5, 1.4),
        ema_halflife=20_000,
    )
    trainer = Trainer(
        max_steps=steps,  # of all roles together: here every fourth one is the student's
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=Progress(),
    )
    trainer.fit(method, data)

    method.export(Path(out) / "student")
    student = load_student(Path(out) / "student")  # weights and a yaml: no teacher is built, no pickle is read
    samples = student.sample(4096, seed=1)
    for name, value in data.evaluator()(samples, {}).items():
        print(f"{name:<18} {value:.3f}")
    data.media.picture(samples).save(Path(out) / "samples.png")
    print(f"picture: {Path(out) / 'samples.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps of all roles (default 4000)")
    parser.add_argument("--out", default="runs/example-toy", help="folder for the student and the picture")
    main(**vars(parser.parse_args()))
