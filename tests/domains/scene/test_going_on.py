"""Going on with a student that chooses where it starts, from the command line."""

import pytest
import torch
from helpers import UNMEASURED

from distillkit import load_student, runs
from distillkit.cli import front

QUICK = [*UNMEASURED, "data.train=4", "data.val=2", "data.test=2", "data.batch_size=2", "model.warmup=0"]
QUICK += ["trainer.limit_val_batches=0", "trainer.val_check_interval=null"]


def test_a_student_goes_on_with_its_policy_and_a_checkpoint_with_its_levels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(runs.OUT, raising=False)

    def door(*words, out, code=0):
        words = ["fit", "domain=scene", "method=videoscene", *QUICK, *words, "--out", out]
        assert front.main(words) == code
        return capsys.readouterr().err

    door("trainer.max_steps=3", "student.level=0.6", out="run")
    said = door("student.level=0.8", "trainer.max_steps=6", "--ckpt_path=run/checkpoints/last.ckpt", out="no", code=2)
    assert "among 8 levels from 0.6 down, here there are 8 from 0.8 down: say student.level=0.6 model.actions=8" in said
    door("student=folder", "student.path=run/student", "trainer.max_steps=1", out="on")  # a step of the student
    old, new = load_student("run"), load_student("on")
    assert new.actions == old.actions and new.actions[0] == pytest.approx(0.6)
    assert old.policy.out.weight.any()  # it has learnt something
    assert all(torch.equal(old.policy.state_dict()[name], value) for name, value in new.policy.state_dict().items())
