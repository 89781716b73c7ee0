"""Samples that are sets: padding is inert from the network to the loss, whatever lies in it."""

from types import SimpleNamespace

import pytest
import torch
from helpers import at
from torch import nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding
from distillkit.losses.denoising import denoising_loss
from distillkit.losses.dmd import dmd_loss, regression_loss
from distillkit.losses.reduce import distance_scale, mean, mean_per_sample
from distillkit.losses.sid import sid_loss
from distillkit.methods.dmd import DMD
from distillkit.methods.feedback import Feedback
from distillkit.methods.mdt_dist import MDTDist
from distillkit.methods.pairs import PairDistil
from distillkit.methods.reflow import Reflow
from distillkit.methods.sds import SDS
from distillkit.methods.sid import SiD
from distillkit.methods.tad_sr import TADSR
from distillkit.spec import Recorded
from distillkit.students.base import load_student
from distillkit.teachers.base import Teacher
from distillkit.teachers.folder import FolderTeacher

SIZES = torch.tensor([5, 2, 3])
MASK = torch.arange(6)[None] < SIZES[:, None]  # [3, 6]


class DeepSet(Recorded, nn.Module):
    """Each point sees itself and the mean of the valid points; `place` is a context."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.own, self.all, self.out = nn.Linear(3, width), nn.Linear(2, width), nn.Linear(width, 2)

    def hidden(self, x, time, cond):
        mask = cond["mask"][..., None]
        pooled = (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        own = self.own(torch.cat([x, cond["place"][..., None]], dim=-1))
        return torch.tanh(own + self.all(pooled) + time[:, None, None])

    def forward(self, x, time, cond):
        return self.out(self.hidden(x, time, cond))

    def features(self, x, time, cond):
        return (self.hidden(x, time, cond) * cond["mask"][..., None]).mT


def denoiser(prediction: str = "edm") -> Denoiser:
    torch.manual_seed(0)
    process = RectifiedFlow() if prediction == "flow" else VarianceExploding()
    return Denoiser(DeepSet(), process, prediction)


def teacher() -> Teacher:
    return Teacher(denoiser(), (6, 2), context=("place", "mask"))


def batch(garbage: float = 0.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(3, 6, 2, generator=generator)
    place = torch.randn(3, 6, generator=generator)
    return {"data": torch.where(MASK[..., None], data, garbage), "place": torch.where(MASK, place, 0), "mask": MASK}


@pytest.mark.parametrize("prediction", ["x0", "eps", "edm", "flow"])
def test_padding_is_zero_after_the_denoiser_and_never_read(prediction):
    model, t = denoiser(prediction), torch.tensor([0.1, 0.5, 0.9])
    clean, dirty = batch(), batch(float("nan"))
    out = [model(b["data"], t, {"place": b["place"], "mask": MASK}) for b in (clean, dirty)]
    assert torch.equal(out[0], out[1])
    assert (out[0][~MASK] == 0).all() and (out[0][MASK] != 0).all()


def test_means_are_of_what_is_valid_and_samples_weigh_the_same():
    x = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    by_hand = torch.stack([x[i, : SIZES[i]].mean() for i in range(3)])
    torch.testing.assert_close(mean_per_sample(x, MASK).flatten(), by_hand)
    torch.testing.assert_close(mean(x, MASK), by_hand.mean())
    torch.testing.assert_close(mean(x, torch.ones_like(MASK)), x.mean())
    torch.testing.assert_close(distance_scale(x, torch.zeros_like(x), "batch", MASK), mean(x.abs(), MASK))


@pytest.mark.parametrize("loss", [sid_loss, dmd_loss])
def test_losses_of_a_padded_batch_are_the_mean_of_the_samples_alone(loss):
    generator = torch.Generator().manual_seed(3)
    x, real, fake = (torch.randn(3, 6, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    alone = [loss(*(v[i : i + 1, : SIZES[i]] for v in (x, real, fake))) for i in range(3)]
    torch.testing.assert_close(loss(x, real, fake, mask=MASK), torch.stack(alone).mean())
    hostile = [torch.where(MASK[..., None], v, 1e30) for v in (x, real, fake)]
    assert torch.equal(loss(*hostile, mask=MASK), loss(x, real, fake, mask=MASK))


def test_the_regression_of_a_padded_batch_is_the_mean_of_the_samples_alone():
    x, y = (torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4))
    alone = [regression_loss(*(v[i : i + 1, : SIZES[i]] for v in (x, y))) for i in range(3)]
    torch.testing.assert_close(regression_loss(x, y, MASK), torch.stack(alone).mean())


def test_denoising_loss_of_a_padded_batch_is_the_mean_of_the_samples_alone():
    model, t, b = denoiser(), torch.tensor([0.3, 1.0, 4.0]), batch()
    eps = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(4))
    cond = {"place": b["place"], "mask": MASK}
    alone = []
    for i, n in enumerate(SIZES):
        own = {name: value[i : i + 1, :n] for name, value in cond.items()}
        alone.append(denoising_loss(model, b["data"][i : i + 1, :n], t[i : i + 1], eps[i : i + 1, :n], own))
    torch.testing.assert_close(denoising_loss(model, b["data"], t, eps, cond), torch.stack(alone).mean())


@pytest.mark.parametrize("method", [SiD, DMD])
@pytest.mark.parametrize("role", ["student", "fake_score"])
def test_gradients_do_not_depend_on_what_lies_in_the_padding(method, role):
    gradients = []
    for garbage in (0.0, 1e6):
        torch.manual_seed(0)
        model = method(teacher(), num_steps=2, matched="last")
        nn.init.normal_(model.fake_score.network.out.weight)  # where it equals the teacher nothing pulls
        model.focus(role)
        getattr(model, f"{role}_loss")(batch(garbage)).backward()
        gradients.append([p.grad for p in model.role_parameters(role)])
    assert any(g.abs().sum() > 0 for g in gradients[0])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def padded(values: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    """The sets with more padding, whose content is none of the data's."""
    made = {}
    for name, value in values.items():
        tail = value.new_full((len(value), size - value.shape[1], *value.shape[2:]), False if name == "mask" else 0)
        made[name] = torch.cat([value, tail], 1)
    return made


KINDS = {  # of losses: method, its settings, and the role that has it
    "sid": (SiD, {"normalise": None}, "student"),
    "sid over the batch": (SiD, {"normalise": "batch"}, "student"),
    "sid's fake score": (SiD, {}, "fake_score"),
    "dmd": (DMD, {}, "student"),
    "dmd over the batch": (DMD, {"normalise": "batch"}, "student"),
    "dmd weighted": (DMD, {"weight": "sigma_alpha", "normalise": None}, "student"),
    "dmd with pairs": (DMD, {"regression": 1.0}, "student"),
    "dmd's fake score": (DMD, {}, "fake_score"),
    "pairs": (PairDistil, {}, "student"),
    "pairs l2": (PairDistil, {"distance": "l2"}, "student"),
    "delta score": (TADSR, {"regression": 0.0, "gan": 0.0, "compared": "sample"}, "student"),
    "delta score over the batch": (TADSR, {"regression": 0.0, "gan": 0.0, "normalise": "batch"}, "student"),
    "reflow": (Reflow, {}, "student"),
    "velocity matching": (MDTDist, {"lambda_vd": 0.0}, "student"),
    "velocity distillation": (MDTDist, {"lambda_vm": 0.0}, "student"),
    "sds": (SDS, {}, "student"),
    "asd": (SDS, {"eta": 0.5}, "student"),
    "feedback's hold": (Feedback, {}, "student"),
    "the released norm": (MDTDist, {"normalise_tangent": True, "lambda_vd": 0.0}, "student"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_sets_padded_further_have_the_same_loss(kind):
    """From 6 places to 12 with shared noise and large padding: a forgotten mask counts it."""
    method, settings, role = KINDS[kind]
    noise, losses = {}, []
    for size in (6, 12):
        torch.manual_seed(0)
        model = method(teacher(), **settings)
        generator = torch.Generator().manual_seed(9)
        for name in ("student", "fake_score"):
            if hasattr(model, name):
                nn.init.normal_(getattr(model, name).network.out.weight, generator=generator)

        def drawn(shape, purpose, size=size):
            if purpose not in noise:
                noise[purpose] = torch.randn(len(SIZES), 12, 2, generator=torch.Generator().manual_seed(len(noise)))
            return noise[purpose][:, :size]

        model.randn, model.seed = drawn, 3
        at(model)._trainer.datamodule = SimpleNamespace(reward=lambda x, _: 0 * x.flatten(1).sum(1))
        given = padded(batch(), size)
        if hasattr(model, "pairs"):
            z, y = (drawn(None, name) for name in ("z", "y"))
            cond = {"place": given["place"], "mask": given["mask"]}
            model.pairs.random = lambda num, generator, z=z, y=y, cond=cond: (z, y, cond)
        losses.append(getattr(model, f"{role}_loss")(given))
    assert losses[0].abs() > 1e-3
    torch.testing.assert_close(*losses)


def test_sidas_discriminator_weighs_a_set_by_its_own_number_of_elements():
    model = SiD(teacher(), gan=1.0)
    with_it, model.gan = model.fake_score_loss(batch()), 0.0
    without = model.fake_score_loss(batch())
    x_g, cond = model.rollout(batch(), "fake")
    t, eps = model.fake_times(model.rand(3, "fake t"), model.teacher.process), model.randn(x_g.shape, "fake eps")
    fake, real = (model.logits(x + t[:, None, None] * eps, t, cond) for x in (x_g, batch()["data"]))
    weight = (t**-2 + 0.5**-2) / (2 * SIZES)  # two numbers in a point
    softplus = nn.functional.softplus
    expected = weight.mean() * (softplus(fake).mean() + softplus(-real).mean()) / 2
    torch.testing.assert_close(with_it - without, expected, rtol=1e-3, atol=0)


def test_a_smaller_batch_takes_its_shape_from_the_mask():
    model = SiD(teacher())
    small = {name: value[:, :5] for name, value in batch().items()}
    x_g, cond = model.rollout(small, "student")
    assert x_g.shape == (3, 5, 2) and (x_g[~cond["mask"]] == 0).all()


def test_context_is_kept_by_the_null_condition_and_travels_in_the_folders(tmp_path):
    own = Teacher(denoiser(), (6, 2), {"label": 4}, ("place", "mask"))
    cond = own.condition(batch() | {"label": torch.tensor([0, 1, 2])})
    null = own.null_condition(cond)
    assert (null["label"] == 4).all() and null["place"] is cond["place"] and null["mask"] is cond["mask"]
    teacher().save(tmp_path / "teacher", id="sets")
    again = FolderTeacher(str(tmp_path / "teacher"), trust=[DeepSet.__module__.split(".")[0]])
    assert again.context == ("place", "mask")
    SiD(teacher()).export(tmp_path / "student")
    student = load_student(tmp_path / "student", trust=(DeepSet.__module__.split(".")[0],))
    cond = {name: value for name, value in batch().items() if name != "data"}
    samples = student.sample(3, cond)
    assert samples.shape == (3, 6, 2) and (samples[~MASK] == 0).all()
    with pytest.raises(ValueError, match=r"needs cond\['place'\] for 3 samples"):
        student.sample(3, {"mask": MASK})
    with pytest.raises(ValueError, match="no condition 'plaice'"):
        student.sample(3, cond | {"plaice": MASK})


def test_data_without_the_context_are_refused():
    model = SiD(teacher())
    with pytest.raises(ValueError, match="needs mask in a batch"):
        model.check(type("Data", (), {"event_shape": (6, 2), "classes": {}, "context": ("place",)}))


def test_teacher_samples_are_zero_in_the_padding():
    cond = {name: value for name, value in batch().items() if name != "data"}
    samples = teacher().sample(torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(5)), cond, steps=4)
    assert (samples[~MASK] == 0).all() and torch.isfinite(samples).all()
    assert (samples[MASK] != 0).all()
