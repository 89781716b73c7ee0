"""A teacher that does not start from noise: sampler, training and student start as it does."""

import pytest
import torch
import yaml
from helpers import BATCH, neural

from distillkit import load_student
from distillkit.data import TensorData
from distillkit.diffusion.process import DiscreteVarianceExploding, RectifiedFlow
from distillkit.diffusion.start import Start
from distillkit.methods.dmd import DMD
from distillkit.methods.lsd import LSD
from distillkit.methods.mdt_dist import MDTDist
from distillkit.methods.sid import SiD
from distillkit.students.base import CONFIG
from distillkit.teachers.folder import FolderTeacher

LEVEL = 0.6  # of the flow: alpha 0.4, sigma 0.6
NEAR = 1000.0 * torch.tensor([[1.0, -1.0]]).expand(8, 2).contiguous()
COND = {"label": BATCH["label"], "near": NEAR}


def teacher(start=None):
    return neural(RectifiedFlow(), context=("near",), start=start or Start("near", LEVEL))


class Calls(list):
    """Inputs and times of all calls of a denoiser."""

    def __init__(self, denoiser):
        super().__init__()
        denoiser.register_forward_pre_hook(
            lambda module, args: self.append((args[0].detach(), torch.as_tensor(args[1])))
        )


def started(x, t, near=NEAR):
    """Whether this is `alpha base + sigma eps` at the level, eps a unit Gaussian."""
    eps = (x - 0.4 * near) / 0.6
    return (
        torch.allclose(t.double(), torch.tensor(LEVEL, dtype=torch.float64))
        and 0.4 < eps.std() < 1.8
        and eps.mean().abs() < 1
    )


def test_the_teachers_own_samplers_start_there():
    own = teacher()
    seen, noise = Calls(own.denoiser), own.noise(8, COND, seed=3)
    assert own.grid(5)[0] == LEVEL and own.grid(1)[0] == LEVEL
    expected = 0.4 * NEAR + 0.6 * noise
    own.sample(noise, COND, 5)
    torch.testing.assert_close(seen[0][0], expected)
    for solver, times in own.few_step_choices(2):
        seen.clear()
        own.generate(8, COND, 3, solver, times)
        torch.testing.assert_close(seen[0][0], expected)
        assert float(seen[0][1]) == pytest.approx(LEVEL)


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("method", [DMD, SiD])
def test_students_start_there_in_training(method, num_steps):
    model = method(teacher(), num_steps=num_steps)
    assert model.step_times[0] == LEVEL
    seen = Calls(model.student)
    for role in model.roles:
        seen.clear()
        getattr(model, f"{role}_loss")({**BATCH, "near": NEAR})
        assert started(*seen[0]), role


def test_velocity_distillation_starts_there():
    model = MDTDist(teacher())
    seen = Calls(model.student)
    model.student_loss({**BATCH, "near": NEAR})
    jumps = [(x, t) for x, t in seen if t.ndim == 0]
    assert len(jumps) == 1 and started(*jumps[0])
    assert model.last == pytest.approx(LEVEL)  # and no level beyond it is learnt


def test_pairs_of_the_original_dmd_start_at_the_level():
    own = neural(RectifiedFlow(), start=Start(level=LEVEL))
    model = DMD(own, regression=0.25, num_pairs=8)
    model.pairs.make(TensorData(BATCH), seed=0)
    noise, y, cond = model.pairs.random(8, model.generator("pairs"))
    torch.testing.assert_close(y, own.sample(noise, cond))
    seen = Calls(model.student)
    model.student_loss(BATCH)
    assert any(torch.allclose(x, 0.6 * noise) and float(t.max()) == pytest.approx(LEVEL) for x, t in seen)


@pytest.mark.parametrize("method", [DMD, LSD])
def test_a_loaded_student_starts_there(method, tmp_path):
    own = FolderTeacher(str(teacher().save(tmp_path / "s" / "teacher")))  # which the student of LSD brings along
    model = method(own, num_steps=2, **({"guard": 0} if method is LSD else {}))
    model.product().save(tmp_path / "s", examples=COND)
    student = load_student(tmp_path / "s")
    seen = Calls(student.denoiser if method is DMD else student.teacher.denoiser)
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(4))
    student.sample(8, COND, seed=4)
    torch.testing.assert_close(seen[0][0], 0.4 * NEAR + 0.6 * noise)
    assert student.times[0] == pytest.approx(LEVEL) and float(seen[0][1]) == pytest.approx(LEVEL)
    seen.clear()
    student.sample(8, seed=4)  # from the examples in its folder
    assert started(*seen[0])
    with pytest.raises(
        ValueError, match=r"cond\['near'\], from which sampling starts, must be shaped .*\[8, 2\], got \[8, 1\]"
    ):
        student.sample(8, {**COND, "near": NEAR[:, :1]})


def test_a_teacher_folder_starts_there(tmp_path):
    own = teacher()
    own.save(tmp_path)
    again = FolderTeacher(str(tmp_path))
    assert (again.start.base, again.start.level) == ("near", LEVEL)
    assert torch.equal(again.generate(8, COND, 1), own.generate(8, COND, 1))


def test_a_start_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sampling starts from 'near', which is not among the conditions"):
        neural(RectifiedFlow(), start=Start("near"))
    with pytest.raises(ValueError, match="level"):
        teacher(Start("near", 1.5))
    folder = DMD(teacher()).product().save(tmp_path / "s", examples=COND)
    config = yaml.safe_load((folder / CONFIG).read_text())
    for changed in ({"context": []}, {"start": config["start"] | {"init_args": {"base": "far", "level": LEVEL}}}):
        (folder / CONFIG).write_text(yaml.safe_dump(config | changed))
        with pytest.raises(ValueError, match="student.yaml: sampling starts from"):
            load_student(folder)


def test_a_base_with_fewer_elements_is_repeated_as_a_whole():
    process, part = DiscreteVarianceExploding(), torch.arange(12.0).reshape(2, 2, 3)
    eps, t = torch.randn(2, 6, 3), torch.tensor(999.0)
    x = Start("part")(process, eps, t, {"part": part})
    torch.testing.assert_close(x - process.sigma(t) * eps, torch.cat([part, part, part], 1))


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 0, 3), (2, 2, 2), (2, 2), (2, 12, 3), (1, 6, 3)])
def test_a_base_that_does_not_go_into_the_sample_is_refused(shape):
    with pytest.raises(ValueError, match=r"cond\['part'\].* must be shaped like the samples, \[2, 6, 3\]"):
        Start("part")(
            DiscreteVarianceExploding(), torch.randn(2, 6, 3), torch.tensor(9.0), {"part": torch.zeros(shape)}
        )
