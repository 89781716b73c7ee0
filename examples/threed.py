"""Distil both stages of the embedded 3D flows into one-step students, and draw shapes with them.

python examples/threed.py [--steps 1200] [--out runs/example-threed]
"""

import argparse
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything

from distillkit import load_student
from distillkit.callbacks.progress import Progress
from distillkit.cli.lightning import quiet
from distillkit.data import DistillData
from distillkit.diffusion.times import LogNormal
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from distillkit.teachers.base import Teacher
from domains.threed.chain import sample_chain
from domains.threed.data import FeaturesData, StructureData
from domains.threed.solids import Solids
from domains.threed.teacher import SolidsFeatures, SolidsStructure


def distil(teacher: Teacher, data: DistillData, steps: int, folder: Path) -> None:
    """Distil one stage; the method does not know which."""
    levels = LogNormal(0.7, 1.4)
    method = DMD(
        teacher,
        student=Adam(lr=5e-4),
        fake_score=Adam(lr=1e-3, updates=2),
        student_times=levels,
        fake_times=levels,
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
    method.export(folder)


def main(steps: int = 1200, out: str = "runs/example-threed") -> None:
    quiet()  # fewer messages of Lightning
    seed_everything(0, verbose=False)
    stages = {
        "structure": (SolidsStructure(), StructureData(Solids(), batch_size=16)),
        "features": (SolidsFeatures(), FeaturesData(Solids(), batch_size=16)),
    }
    for name, (teacher, data) in stages.items():
        distil(teacher, data, steps, Path(out) / name)

    # the second stage gets the output of the first, never a real structure
    structure, features = (load_student(Path(out) / name) for name in stages)
    samples, cond = sample_chain(structure, features, 10, seed=1)
    data.media.picture(samples, cond).save(Path(out) / "shapes.png")
    print(f"picture: {Path(out) / 'shapes.png'}; voxels at the surface: {cond['mask'].sum(1).tolist()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200, help="optimiser steps of each stage (default 1200)")
    parser.add_argument("--out", default="runs/example-threed", help="folder for the students and the picture")
    main(**vars(parser.parse_args()))
