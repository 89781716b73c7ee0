"""Make 3D scenes of two texts by score distillation from the embedded teacher of images.

python examples/text_to_3d.py [--steps 250] [--out runs/example-text-to-3d]
"""

import argparse
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything

from distillkit import load_student
from distillkit.callbacks.progress import Progress
from distillkit.cli.lightning import quiet
from distillkit.diffusion.times import Annealed, Uniform
from distillkit.methods.base import Adam
from distillkit.methods.sds import SDS
from distillkit.students.makers import Scene
from domains.text_to_3d.data import Solids
from domains.text_to_3d.scenes import Scenes
from domains.text_to_3d.teacher import ColouredSolids

PROMPTS = ["a red sphere", "a yellow cone"]


def main(steps: int = 250, out: str = "runs/example-text-to-3d") -> None:
    quiet()  # fewer messages of Lightning
    seed_everything(0, verbose=False)
    teacher, data = ColouredSolids(), Solids(PROMPTS, batch_size=8)
    method = SDS(
        teacher,
        student_maker=Scene(Scenes(only=PROMPTS)),  # a grid of voxels for each
        kappa=7.5,
        eta=0.1,  # ASD: the teacher at a later time in the place of the noise
        student_times=Annealed(Uniform(0.5, 0.98), Uniform(0.02, 0.5)),
        student=Adam(lr=0.05, betas=(0.5, 0.99)),
        ema_halflife=200,
    )
    trainer = Trainer(
        max_steps=steps,
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
    num = len(data.test)
    cond = data.conditions(num)  # both prompts, by cameras that training did not have
    views = student.sample(num, cond)
    metrics = data.evaluator()(views, cond)
    for name in ("solid_rank", "psnr_to_solid", "janus"):
        print(f"{name.replace('_', ' '):<16} {metrics[name]:.2f}")
    data.media.picture(views[:16], cond).save(Path(out) / "views.png")
    print(f"picture: {Path(out) / 'views.png'}")
    for path in data.media.of_student(student, cond, out):
        print(f"file: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=250, help="optimiser steps (default 250)")
    parser.add_argument("--out", default="runs/example-text-to-3d", help="folder for the student and the files")
    main(**vars(parser.parse_args()))
