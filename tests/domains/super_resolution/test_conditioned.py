"""Teachers that are conditioned on the observation alone: EDM and flows by `method=pretrain`."""

import pytest
import torch
from helpers import UNMEASURED, Command

from distillkit.diffusion.process import RectifiedFlow, VarianceExploding
from distillkit.teachers.folder import FolderTeacher
from domains.super_resolution.codec import Upscale

PLAIN = ["vars.codec.residual=false", "vars.sigma_data=0.5"]  # photographs themselves, not their residuals
TINY = ["network.width=8", "network.depth=1", "data.crop=16", "data.batch_size=2", "trainer.max_steps=1", *UNMEASURED]


@pytest.mark.parametrize(
    "process, words, best",
    [
        (VarianceExploding(), ["model.solver=heun", "model.steps=18"], {"solver": "heun", "steps": 18}),
        (
            RectifiedFlow(),
            ["model.prediction=flow", "model.solver=euler", "model.steps=25"],
            {"solver": "euler", "steps": 25},
        ),
    ],
    ids=["edm", "flow"],
)
def test_words_train_one_and_it_makes_any_size(process, words, best, tmp_path):
    """As docs/super_resolution_teachers.md says it."""
    path = f"model.process._target_=distillkit.diffusion.process.{type(process).__name__}"
    command = ["fit", "domain=super_resolution", "method=pretrain", *PLAIN, "~recipe", path, *words]
    run = Command(*command, *TINY, "trainer.limit_val_batches=0", "--out", tmp_path / "run")
    assert run.wait(300) == 0, run.stderr
    teacher = FolderTeacher(str(tmp_path / "run" / "teacher"))
    assert teacher.process == process and teacher.best == best and teacher.context == ("low",)
    assert isinstance(teacher.codec, Upscale) and (teacher.codec.scale, teacher.codec.residual) == (4, False)
    low = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = teacher.generate(2, {"low": low}, 0, times=teacher.grid(2))
    assert made.shape == (2, 3, 20, 28) and made.isfinite().all()
    assert not torch.equal(made, teacher.generate(2, {"low": -low}, 0, times=teacher.grid(2)))
    assert teacher.codec.encode({"data": made, "low": low}) is not None and teacher.codec.base({"low": low}) == 0.0
