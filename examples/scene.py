"""Distil the embedded teacher of rooms into a student of one step that starts from a coarse clip.

python examples/scene.py [--steps 300] [--out runs/example-scene]
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
from distillkit.students.makers import Leap
from domains.scene.data import Rooms
from domains.scene.teacher import RoomClips


def main(steps: int = 300, out: str = "runs/example-scene") -> None:
    quiet()  # fewer messages of Lightning
    seed_everything(0, verbose=False)
    teacher, data = RoomClips(), Rooms(batch_size=8)
    levels = LogNormal(0.0, 1.4)
    method = DMD(
        teacher,
        student_maker=Leap("coarse", level=0.5),
        student=Adam(lr=2e-4),
        fake_score=Adam(lr=5e-4, updates=2),
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

    method.export(Path(out) / "student")
    student = load_student(Path(out) / "student")
    cond = data.conditions(64)  # the end views and coarse clips of held-out rooms
    rows = {
        "coarse": cond["coarse"],
        "student": student.sample(64, cond, seed=1),  # one step from there
        "teacher": teacher.generate(64, cond, seed=1),  # twelve from noise
    }
    for name, samples in rows.items():
        print(f"{name:<8} psnr {data.evaluator()(samples, cond)['psnr']:.2f}")

    shown = {name: samples[:3] for name, samples in rows.items()} | {"rooms": data.real(3)["data"]}
    picture = data.media.compare(shown, cond)
    picture.save(Path(out) / "comparison.png")
    print(f"picture: {Path(out) / 'comparison.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", default="runs/example-scene")
    main(**vars(parser.parse_args()))
