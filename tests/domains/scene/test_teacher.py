"""The embedded teacher of rooms, and a student that starts from the coarse clip."""

import torch
from helpers import UNMEASURED

import distillkit
from distillkit.cli import front
from domains.scene.data import Rooms
from domains.scene.teacher import RoomClips


def psnr(x, y):
    return (10 * torch.log10(4 / (x - y).square().flatten(1).mean(1))).mean()


def test_the_teacher_makes_clips_of_their_ends_alone():
    data, teacher = Rooms(train=8, val=2, test=6), RoomClips()
    data.setup()
    batch = data.test[torch.arange(6)]
    assert teacher.context == ("first", "coarse") and teacher.event_shape == data.event_shape
    cond = teacher.condition(batch)
    noise = torch.randn(6, *teacher.event_shape, generator=torch.Generator().manual_seed(0))
    made = teacher.sample(noise, cond, steps=3)
    assert torch.equal(made, teacher.sample(noise, cond | {"coarse": torch.zeros_like(batch["coarse"])}, steps=3))
    other = teacher.sample(noise, cond | {"first": batch["first"].roll(1, 0)}, steps=3)
    assert psnr(made, batch["data"]) > psnr(other, batch["data"]) + 5
    noised = teacher.process.add_noise(batch["data"], noise, torch.full((6,), 0.3))
    assert psnr(teacher.denoiser(noised, torch.full((6,), 0.3), cond), batch["data"]) > 22


def test_a_student_starts_from_the_coarse_clip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "domain=scene",
        "method=dmd",
        "student.level=0.3",
        "data.train=8",
        "data.val=2",
        "data.test=2",
        "data.batch_size=2",
    ]
    steps = ["trainer.max_steps=2", "trainer.val_check_interval=null", "trainer.limit_val_batches=0"]
    assert front.main(["fit", *words, *steps, *UNMEASURED, "--out", "run"]) == 0
    student = distillkit.load_student("run")
    assert (student.start.base, student.start.level, list(student.times)) == ("coarse", 0.3, [0.3])
    data = Rooms(train=8, val=2, test=2)
    cond = data.conditions(2)
    made = student.sample(2, cond, seed=0)
    assert psnr(made, data.real(2)["data"]) > psnr(cond["coarse"], data.real(2)["data"])
    greyed = student.sample(2, cond | {"coarse": torch.zeros_like(cond["coarse"])}, seed=0)
    assert psnr(greyed, made) < 25
