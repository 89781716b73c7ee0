"""A codec: training sees encoded data; evaluators, validation and users see decoded samples."""

import pytest
import torch
import yaml
from helpers import BATCH, Affine, Pairs, Tail, neural, trainer, wake

from distillkit import load_student
from distillkit.codec import Codec
from distillkit.data import TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding
from distillkit.evaluation.protocol import evaluate
from distillkit.methods.dmd import DMD
from distillkit.methods.lsd import LSD
from distillkit.methods.mdt_dist import MDTDist
from distillkit.methods.sid import SiD
from distillkit.networks.mlp import MLP
from distillkit.teachers.base import Teacher
from distillkit.teachers.folder import FolderTeacher

TRUST = ("helpers",)
LABEL = torch.tensor([0, 1, 1, 0, 1])


class Watch:
    """An evaluator that keeps what it was shown."""

    headline, better = "mean", {"mean": "lower"}

    def __init__(self):
        self.seen = []

    def __call__(self, samples, cond):
        self.seen.append((samples, cond))
        return {"mean": float(samples.mean())}

    def describe(self):
        return {}

    def floor(self, num_samples):
        return {}


class Decoded(Pairs):
    """The same points as data."""

    event_shape = (2, 1)

    def load(self):
        parts = super().load()
        data = Affine().decode(parts[0].tensors["data"], parts[0].tensors)
        return (TensorData(parts[0].tensors | {"data": data}),) * 3

    def build_evaluator(self, held_out):
        return Watch()


METHODS = {
    "dmd": lambda teacher: DMD(teacher, gan=0.1),
    "sid": lambda teacher: SiD(teacher, gan=0.1),
    "mdt_dist": lambda teacher: MDTDist(teacher),
}


@pytest.mark.parametrize("name", METHODS)
def test_real_samples_are_encoded(name):
    """The losses are bit for bit those of a teacher without a codec on the encoded data."""
    x = (8 * BATCH["data"]).round() / 8  # the codec is exact on these
    found = []
    for codec in (None, Affine()):
        batch = {**BATCH, "data": x if codec is None else codec.decode(x, BATCH)}
        torch.manual_seed(0)
        model = METHODS[name](neural(RectifiedFlow(), codec=codec))
        found.append([getattr(model, f"{role}_loss")(batch) for role in model.roles])
    assert found[0] == found[1]
    moved = {**batch, "data": batch["data"] + 1}  # and data count
    assert [getattr(model, f"{role}_loss")(moved) for role in model.roles] != found[1]


def test_validation_and_evaluation_see_decoded_samples():
    teacher, data = neural(codec=Affine()), Decoded(batch_size=8)
    model = DMD(teacher, num_steps=2)
    run = trainer(max_steps=2, limit_val_batches=2, val_check_interval=2, num_sanity_val_steps=0)
    run.fit(model, data)
    ((samples, cond),) = data.evaluator("val").seen
    raw = torch.cat([model.product().sample(8, {"label": cond["label"][:8]}, i, decode=False) for i in range(2)])
    assert samples.shape == (16, 2, 1) and torch.equal(samples, Affine().decode(raw, cond))

    student, watch = model.eval().product().eval(), data.evaluator()
    evaluate(data, teacher, student, num_samples=6, seed=3)
    cond = data.conditions(6)
    assert len(watch.seen) > 3 and all(seen.shape == (6, 2, 1) for seen, _ in watch.seen)
    assert torch.equal(watch.seen[0][0], Affine().decode(student.sample(6, cond, 3, decode=False), cond))
    own = teacher.generate(6, cond, 3, decode=False)
    assert own.shape == (6, 2) and torch.equal(watch.seen[1][0], Affine().decode(own, cond))
    torch.testing.assert_close(teacher.generate(6, cond, 3, chunk=4), watch.seen[1][0])


class Half(Codec):
    def decode(self, x, cond):
        return x / 2


def test_samples_in_a_row_go_on_from_decoded_ones():
    denoiser = wake(Denoiser(MLP([1, 3], width=8, depth=1), VarianceExploding(), "edm", 1.0))
    model = DMD(Teacher(denoiser, (1, 3), context=("first",), codec=Half(), continuation=Tail("first")), rollouts=2)
    model.randint = lambda high, purpose: high - 1
    first = torch.zeros(4, 1, 1)
    _, cond = model.rollout({"first": first}, "student")
    made = model.generate((4, 1, 3), {"first": first}, "student clip 0", 0)
    assert torch.equal(cond["first"], (made / 2)[:, :, -1:]) and made.std() > 0.1


def test_data_of_the_space_diffused_in_are_refused():
    with pytest.raises(ValueError, match=r"the data have shape \(2,\), the teacher makes \(2, 1\)"):
        trainer(max_steps=1).fit(DMD(neural(codec=Affine())), Pairs(batch_size=8))


@pytest.mark.parametrize("name", ["dmd", "lsd"])
def test_a_student_folder_keeps_the_codec(name, tmp_path):
    teacher = neural(codec=Affine(4.0))
    model = DMD(teacher, num_steps=2) if name == "dmd" else LSD(teacher, num_steps=2, guard=0)
    made = model.product()
    raw = made.sample(5, {"label": LABEL}, 1, decode=False)
    assert raw.shape == (5, 2)
    kept = FolderTeacher(str(teacher.save(tmp_path / "s" / "teacher")), trust=[*TRUST]) if name == "lsd" else None
    again = load_student(made.save(tmp_path / "s"), TRUST, kept)
    for student in (made, again):
        for size in (2, 100):  # each chunk is decoded with its own conditions
            found = student.sample(5, {"label": LABEL}, 1, batch_size=size)
            torch.testing.assert_close(found, Affine(4.0).decode(raw, {"label": LABEL}), rtol=1e-5, atol=1e-5)
        assert student.sample(0).shape == (0, 2, 1) and student.sample(0, decode=False).shape == (0, 2)
    with pytest.raises(ValueError, match="--trust helpers"):
        load_student(tmp_path / "s")


def test_a_teacher_folder_keeps_the_codec(tmp_path):
    teacher = neural(codec=Affine(4.0))
    teacher.save(tmp_path)
    again = FolderTeacher(str(tmp_path), trust=["helpers"])
    cond = {"label": LABEL}
    assert again.codec.recorded() == {"scale": 4.0}
    assert torch.equal(again.generate(5, cond, 0), teacher.generate(5, cond, 0))
    assert again.generate(5, cond, 0).shape == (5, 2, 1) and again.generate(5, cond, 0, decode=False).shape == (5, 2)
    file = tmp_path / "teacher.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"codec": 3}))
    with pytest.raises(ValueError, match="teacher.yaml is damaged: codec cannot be 3"):
        FolderTeacher(str(tmp_path))
