"""Distil the embedded teacher of photographs into a one-step student: 4 times larger.

python examples/super_resolution.py [--steps 600] [--out runs/example-super-resolution]
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from PIL import Image

from distillkit import load_student
from distillkit.callbacks.progress import Progress
from distillkit.cli.lightning import quiet
from distillkit.diffusion.times import LogNormal
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from domains.super_resolution.data import Photos
from domains.super_resolution.teacher import Photos as PhotosTeacher


def main(steps: int = 600, out: str = "runs/example-super-resolution") -> None:
    quiet()  # fewer messages of Lightning
    seed_everything(0, verbose=False)
    teacher, data = PhotosTeacher(), Photos(scale=4, crop=48, batch_size=16)
    method = DMD(
        teacher,
        num_steps=1,
        student=Adam(lr=1e-4),
        fake_score=Adam(lr=5e-4, updates=4),
        student_times=LogNormal(-1.4, 1.2),
        fake_times=LogNormal(-2.0, 1.5),
        ema_halflife=5_000,
    )
    trainer = Trainer(
        max_steps=steps,  # of both roles: a fifth of them are the student's
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=Progress(),
    )
    trainer.fit(method, data)

    method.export(Path(out) / "student", examples=data.conditions(4))
    student = load_student(Path(out) / "student")
    cond = data.conditions(60)  # small squares of photographs that nobody has seen
    rows = {
        "student": student.sample(60, cond, seed=1),  # from the same noise
        "teacher": teacher.generate(60, cond, seed=1),
        "teacher, 1 step": teacher.generate(60, cond, 1, "ddim", torch.tensor(student.times)),
    }
    for name, samples in rows.items():
        metrics = data.evaluator()(samples, cond)
        said = "  ".join(f"{key.replace('_', ' ')} {metrics[key]:.2f}" for key in ("frechet", "psnr_y", "hf_ratio"))
        print(f"{name:<15} {said}")
    data.media.compare(rows | {"real": data.real(60)["data"]}, cond).save(Path(out) / "comparison.png")
    print(f"picture: {Path(out) / 'comparison.png'}")

    small, large = Path(out) / "small.png", Path(out) / "large.png"
    square = data.test[torch.arange(1)]["data"][0]  # any photograph: here the square itself is the small one
    Image.fromarray(((square + 1) * 127.5).round().byte().movedim(0, -1).numpy()).save(small)
    enlarge = student.codec.answering(student, seed=0, kappa=None, tile=128, overlap=32)  # `sample --input`
    enlarge(small, large)
    print(f"{small} of {Image.open(small).size} pixels: {large} of {Image.open(large).size}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps of all roles (default 600)")
    parser.add_argument(
        "--out", default="runs/example-super-resolution", help="folder for the student and the pictures"
    )
    main(**vars(parser.parse_args()))
