"""Distil the embedded flow of protein backbones into eight steps; sample at several noise scales.

python examples/protein.py [--steps 400] [--out runs/example-protein]
"""

import argparse
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything

from distillkit import load_student
from distillkit.callbacks.progress import Progress
from distillkit.cli.lightning import quiet
from distillkit.diffusion.times import LogNormal, LogUniform
from distillkit.methods.base import Adam
from distillkit.methods.sid import SiD
from domains.protein.data import ProteinData, lengths
from domains.protein.folds import IdealFolds
from domains.protein.teacher import Folds


def main(steps: int = 400, out: str = "runs/example-protein") -> None:
    quiet()  # fewer messages of Lightning
    seed_everything(0, verbose=False)
    data = ProteinData(IdealFolds(), batch_size=16)
    method = SiD(
        Folds(),
        alpha=1.0,
        times=[0.708, 0.385, 0.21, 0.114, 0.0621, 0.0338, 0.0184, 0.01],
        student_times=LogUniform(),
        fake_times=LogNormal(-0.9, 1.5),
        student=Adam(lr=3e-4, betas=(0.0, 0.99), clip=1.0),
        fake_score=Adam(lr=5e-4, betas=(0.0, 0.99), clip=1.0),
        ema_halflife=1_000,
    )
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

    # a helix bundle, a sheet and a sheet with a helix on it, of 40 and of 56 residues
    cond = lengths([40, 40, 40, 56, 56, 56], [0, 1, 2, 0, 1, 2])
    student, rows = load_student(Path(out) / "student"), {}
    for scale in (1.0, 0.7, 0.45):
        student.noise_scale = scale
        rows[f"noise {scale}"] = student.sample(6, cond, seed=1)
        metrics = data.evaluator()(student.sample(100, data.conditions(100), seed=1), data.conditions(100))
        names = "frechet", "bond_valid", "clash", "helix", "strand"
        print(f"noise scale {scale}: " + ", ".join(f"{name} {metrics[name]:.3g}" for name in names))
    data.media.compare(rows, cond).save(Path(out) / "chains.png")
    paths = data.media.save(rows["noise 1.0"], cond, Path(out))
    print(f"picture: {Path(out) / 'chains.png'}; chains: {paths[0]} and {len(paths) - 1} more")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps (default 400)")
    parser.add_argument(
        "--out", default="runs/example-protein", help="folder for the student, the picture and the chains"
    )
    main(**vars(parser.parse_args()))
