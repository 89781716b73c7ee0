"""The codec of point sets: sizes follow from the scan, a refinement follows the sample."""

import pytest
import torch
import yaml
from helpers import Command

from distillkit import load_student
from domains.lidar.codec import Completion
from domains.lidar.refinement import Refinement, save_refinement

PART = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def refinement(tmp_path):
    torch.manual_seed(0)
    return save_refinement(Refinement((4,) * 9, size=0.5, factor=3), tmp_path / "refinement")


def test_without_a_refinement_samples_are_the_data():
    codec, x = Completion(4), torch.randn(2, 20, 3)
    assert codec.shape(2, (2400, 3), {"part": PART}) == (2, 20, 3) and codec.data_shape((20, 3)) == (20, 3)
    assert codec.decode(x, {"part": PART}) is x


def test_a_refinement_makes_several_points_of_each_within_a_metre(refinement):
    codec, x = Completion(4, str(refinement)), torch.randn(2, 20, 3, requires_grad=True)
    made = codec.decode(x, {"part": PART})
    assert made.shape == (2, 60, 3) and codec.data_shape((20, 3)) == (60, 3) and not made.requires_grad
    assert 0 < (made - x.repeat_interleave(3, 1)).abs().max() <= 1


def test_what_is_no_refinement_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no refinement"):
        Completion(4, str(tmp_path))


def test_a_student_keeps_its_refinement(refinement, tmp_path):
    words = ["fit", "domain=lidar", "method=dmd", f"vars.codec.refine={refinement}", "data.held_out=2"]
    words += ["data.num_full=160", "data.num_part=20", "data.batch_size=1"]
    words += ["trainer.max_steps=2", "vars.callbacks.finish.num_samples=2"]
    words += ["vars.callbacks.finish.pictures=false", "--out", tmp_path / "run"]
    run = Command(*words)
    assert run.wait(300) == 0, run.stderr
    said = yaml.safe_load((tmp_path / "run" / "student" / "student.yaml").read_text())
    assert said["codec"]["init_args"] == {"repeat": 8, "refine": str(refinement)}
    student = load_student(tmp_path / "run", trust=(str(refinement),))
    assert student.sample(1, {"part": torch.zeros(1, 6, 3)}).shape == (1, 3 * 48, 3)
    with pytest.raises(ValueError, match="wants to read"):
        load_student(tmp_path / "run").sample(1, {"part": torch.zeros(1, 6, 3)})
