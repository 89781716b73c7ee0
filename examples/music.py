"""Distil the embedded teacher of notes, chords and rhythms into a two-step student.

python examples/music.py [--steps 450] [--out runs/example-music]
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from distillkit import load_student
from distillkit.callbacks.progress import Progress
from distillkit.cli.lightning import quiet
from distillkit.diffusion.times import LogNormal
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from domains.music.data import Tones
from domains.music.teacher import Tones as Teacher


def main(steps: int = 450, out: str = "runs/example-music") -> None:
    quiet()  # fewer messages of Lightning
    seed_everything(0, verbose=False)
    teacher, data = Teacher(), Tones(batch_size=16)
    method = DMD(
        teacher,
        num_steps=2,
        student=Adam(lr=3e-4),
        fake_score=Adam(lr=5e-4, updates=2),
        student_times=LogNormal(0.3, 1.6),  # the levels at which classes are decided
        fake_times=LogNormal(-1.0, 1.2),
        ema_halflife=2_000,
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

    method.export(Path(out) / "student")
    student = load_student(Path(out) / "student")
    cond = data.conditions(96)  # timbres, pitches and rhythms in turn
    rows = {
        "student": student.sample(96, cond, seed=1),  # sounds, from the same noise
        "teacher": teacher.generate(96, cond, seed=1),
        "teacher, 2 steps": teacher.generate(96, cond, 1, "euler", torch.tensor(student.times)),
    }
    for name, samples in rows.items():
        metrics = data.evaluator()(samples, cond)
        said = "  ".join(f"{key.replace('_', ' ')} {metrics[key]:.2f}" for key in SHOWN)
        print(f"{name:<16} {said}")
    data.media.compare(rows).save(Path(out) / "comparison.png")
    print(f"picture: {Path(out) / 'comparison.png'}")
    for path in data.media.save(rows["student"][:12], cond, out):
        print(f"file: {path}")


SHOWN = ("frechet", "pitch_error", "onset_f")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=450, help="optimiser steps of all roles (default 450)")
    parser.add_argument("--out", default="runs/example-music", help="folder for the student, the picture and the files")
    main(**vars(parser.parse_args()))
