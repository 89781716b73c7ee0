"""Distil the embedded teacher of LiDAR scenes into a one-step student: sparse scans completed.

python examples/lidar.py [--steps 450] [--out runs/example-lidar]
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from distillkit import load_student
from distillkit.callbacks.progress import Progress
from distillkit.cli.lightning import quiet
from distillkit.diffusion.times import Uniform
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from domains.lidar.data import Streets
from domains.lidar.files import write_bin
from domains.lidar.teacher import Streets as StreetsTeacher


def main(steps: int = 450, out: str = "runs/example-lidar") -> None:
    quiet()  # fewer messages of Lightning
    seed_everything(0, verbose=False)
    teacher, data = StreetsTeacher(), Streets(batch_size=4)
    method = DMD(
        teacher,
        num_steps=1,
        student=Adam(lr=1e-4, betas=(0.0, 0.99), clip=1.0),
        fake_score=Adam(lr=2e-4, betas=(0.0, 0.99), clip=1.0, updates=2),
        student_times=Uniform(0.02, 0.98),
        fake_times=Uniform(0.0, 1.0),
        ema_halflife=100,
    )
    trainer = Trainer(
        max_steps=steps,  # of both roles: a third of them are the student's
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
    cond = data.conditions(32)  # partial scans of streets that nobody has seen
    rows = {
        "student": student.sample(32, cond, seed=1),  # from the same noise
        "teacher": teacher.generate(32, cond, seed=1),
        "teacher, 1 step": teacher.generate(32, cond, 1, "ddim", torch.tensor(student.times)),
        "copied scan": data.evaluator().baselines(cond)["copy"],
    }
    for name, samples in rows.items():
        metrics = data.evaluator()(samples, cond)
        said = "  ".join(f"{key.replace('_', ' ')} {metrics[key]:.3f}" for key in ("chamfer", "to_truth", "from_truth"))
        print(f"{name:<15} {said}")
    data.media.compare({**rows, "real": data.real(32)["data"]}, cond).save(Path(out) / "comparison.png")
    print(f"picture: {Path(out) / 'comparison.png'}")

    scan = write_bin(Path(out) / "scan.bin", data.test.views[0].scan.points)  # any scan of a user's
    complete = student.codec.answering(student, seed=0, kappa=None, tile=None, overlap=0)  # `sample --input`
    complete(scan, Path(out) / "completed.ply")
    print(f"{scan}: {Path(out) / 'completed.ply'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=450, help="optimiser steps of all roles (default 450)")
    parser.add_argument("--out", default="runs/example-lidar", help="folder for the student and the pictures")
    main(**vars(parser.parse_args()))
