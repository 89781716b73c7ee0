"""The discrete teacher: samples, folder, guidance, training."""

import copy

import numpy as np
import pytest
import torch
from helpers import f64, trainer
from torch import nn

from distillkit.data import DistillData, TensorData
from distillkit.discrete.denoiser import DiscreteDenoiser, Guided, Mean, Ratio
from distillkit.discrete.exact import Table, potts
from distillkit.discrete.noise import fresh
from distillkit.discrete.process import Absorbing, Uniform
from distillkit.discrete.teacher import DiscreteFolderTeacher, DiscreteTeacher
from distillkit.discrete.worlds import sequences
from distillkit.losses.discrete import score_entropy
from distillkit.methods.base import Adam
from distillkit.methods.pretrain import Pretrain
from distillkit.methods.pretrain_tokens import PretrainTokens
from distillkit.spec import Recorded, from_spec, to_spec
from distillkit.teachers.folder import FolderTeacher


class Lookup(Recorded, nn.Module):
    """Logits from the states of a position and its left neighbour, and the class."""

    def __init__(self, num_states: int, classes: int = 0):
        super().__init__()
        self.own, self.left = (nn.Embedding(num_states, num_states) for _ in range(2))
        self.label = nn.Embedding(classes + 1, num_states) if classes else None

    def forward(self, x_t, t, cond):
        assert t.shape == (len(x_t),) and t.dtype == torch.float32
        out = self.own(x_t) + self.left(x_t.roll(1, -1)) * (1 - t)[:, None, None]
        return out if self.label is None else out + self.label(cond["label"])[:, None]


class Tokens(DistillData):
    event_shape, classes, domain = (2,), {}, "tokens"

    def load(self):
        table = Table(potts(3, 2, 1.5), Absorbing(3))
        return tuple(
            TensorData({"data": table.draw(num, torch.Generator().manual_seed(num))}) for num in (4096, 256, 256)
        )


def potts_teacher(process=Absorbing):
    return DiscreteTeacher(Table(potts(3, 5, 1.5), process(3)), (5,))


class Everything(DiscreteDenoiser):
    """A denoiser whose process noises to each state in turn, so that a batch is an enumeration."""

    def __init__(self, denoiser, states):
        super().__init__(copy.copy(denoiser.process))
        self.denoiser = denoiser
        self.process.add_noise = lambda x_0, t, noise: states

    def forward(self, x_t, t, cond=None):
        return self.denoiser(x_t, t, cond)


@pytest.mark.parametrize("process", [Absorbing, Uniform])
def test_the_score_entropy_of_an_exact_model_is_the_entropy_of_the_data(process):
    """Its integral over t is the information on x_0 lost in x_1, by enumeration and quadrature."""
    table = Table(potts(2, 2, 1.5), process(2))
    clean, states = sequences(2, 2), sequences(table.process.num_states, 2)
    data, denoiser = table.probabilities.flatten(), Everything(table, states)

    def law(x_0, t):
        kernel = table.process.transition(x_0[None], table.process.alpha(t).reshape(1, 1, 1))[0]
        return kernel[0, states[:, 0]] * kernel[1, states[:, 1]]

    bound = 0.0
    for node, weight in zip(*np.polynomial.legendre.leggauss(60), strict=True):
        u = (node + 1) / 2
        t, weight = f64(u**3), 3 * u**2 * weight / 2  # the integrand grows like log(1 / t)
        for x_0, chance in zip(clean, data, strict=True):
            loss = score_entropy(denoiser, x_0.expand(len(states), 2), t.expand(len(states)), None)
            reached = law(x_0, t) > 0
            bound += weight * float(chance * (law(x_0, t) * loss)[reached].sum())
    joint = data[:, None] * torch.stack([law(x_0, f64(1.0)) for x_0 in clean])
    known = (torch.xlogy(joint, joint) - torch.xlogy(joint, data[:, None] * joint.sum(0))).sum()
    assert bound + float(known) == pytest.approx(float(table.entropy()), abs=1e-6)


def test_samples_follow_the_model_and_do_not_depend_on_how_they_are_cut():
    teacher = potts_teacher()
    whole = teacher.generate(20, {}, seed=3)
    assert torch.equal(whole, teacher.generate(20, {}, seed=3, chunk=7))
    assert torch.equal(whole[:8], teacher.generate(8, {}, seed=3))
    assert not torch.equal(whole, teacher.generate(20, {}, seed=4))
    assert whole.shape == (20, 5) and whole.max() < 3


def test_an_exact_teacher_is_rebuilt_from_its_spec():
    teacher = potts_teacher(Uniform)
    again = from_spec(to_spec(teacher))
    assert isinstance(again, DiscreteTeacher) and again.fingerprint() == teacher.fingerprint()
    assert potts_teacher().fingerprint() != teacher.fingerprint()


@pytest.mark.parametrize("kind", [Mean, Ratio])
def test_a_folder_brings_the_same_teacher_back(kind, tmp_path):
    torch.manual_seed(0)
    teacher = DiscreteTeacher(kind(Lookup(4, 2), Absorbing(3)), (5,), {"label": 2})
    teacher.save(tmp_path / "t", id="mine")
    again = DiscreteFolderTeacher(str(tmp_path / "t"), trust=[Lookup.__module__.split(".")[0]])
    cond = {"label": torch.arange(20) % 2}
    assert again.id == "mine" and again.classes == {"label": 2} and again.fingerprint() == teacher.fingerprint()
    assert torch.equal(again.generate(20, cond, 0), teacher.generate(20, cond, 0))
    with pytest.raises(ValueError, match="denoiser cannot be"):
        FolderTeacher(str(tmp_path / "t"), trust=[Lookup.__module__.split(".")[0]])


def test_guidance_is_a_power_of_the_ratio_of_two_means():
    torch.manual_seed(0)
    denoiser = Mean(Lookup(4, 2), Absorbing(3))
    teacher = DiscreteTeacher(denoiser, (5,), {"label": 2})
    x, cond = torch.tensor([[3, 0, 3, 1, 3]]), {"label": torch.tensor([1])}
    with_cond, without = (denoiser(x, f64(0.5), own).log_mean() for own in (cond, {"label": torch.tensor([2])}))
    expected = (without.exp() * (with_cond.exp() / without.exp()) ** 3)[0, 0]
    got = Guided(denoiser, teacher.null_condition, 3.0)(x, f64(0.5), cond).log_mean().exp()
    torch.testing.assert_close(got[0, 0], expected / expected.sum())
    assert got[0, 1].tolist() == [1, 0, 0]
    assert not torch.equal(
        teacher.generate(64, {"label": torch.ones(64).long()}, 0, kappa=5.0),
        teacher.generate(64, {"label": torch.ones(64).long()}, 0),
    )


def test_an_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="there is no solver 'heun'"):
        potts_teacher().generate(4, {}, 0, solver="heun")


@pytest.mark.parametrize("process, prediction", [(Absorbing, "mean"), (Absorbing, "ratio"), (Uniform, "mean")])
def test_pretraining_on_tokens_lowers_the_bound_towards_the_entropy(process, prediction):
    data = Tokens(batch_size=256)
    torch.manual_seed(0)
    settings = {"prediction": prediction, "student": Adam(lr=1e-2)}
    model = PretrainTokens(Lookup(process(3).num_states), process(3), [2], **settings)
    trainer(max_steps=300).fit(model, data)
    x_0, t = data.test.tensors["data"], (torch.arange(256) + 0.5) / 256
    bound = score_entropy(model.student, x_0, t, fresh(0, 256, 2)(0)).mean()
    assert bound < Table(potts(3, 2, 1.5), process(3)).entropy() + 0.4  # an untrained one: 3.8 against 1.9
    assert model.sample({}, 8, 0).shape == (8, 2)
    assert isinstance(model.product(), DiscreteTeacher)


def test_a_prediction_of_the_other_world_is_refused():
    with pytest.raises(ValueError, match="mean or ratio"):
        PretrainTokens(Lookup(4), Absorbing(3), [2], prediction="edm")
    with pytest.raises(ValueError, match=r"pretrain_tokens.PretrainTokens, Pretrain takes no Absorbing"):
        Pretrain(Lookup(4), Absorbing(3), [2])


@pytest.mark.parametrize("process", [Absorbing, Uniform])
@pytest.mark.parametrize("passes", [1, 2, 5, 8])
def test_what_a_student_has_to_beat_costs_no_more_than_it(process, passes):
    """Every sampler that aims at the model's law, with as many network evaluations as fit."""
    teacher = potts_teacher(process)
    choices = teacher.few_step_choices(passes, [1.0, 0.3] if passes == 2 else ())
    costs = [teacher.network_passes(solver, len(times)) for solver, times in choices]
    assert max(costs) == passes and min(costs) >= max(1, passes - 1)
    names = {solver for solver, _ in choices}
    assert "confidence" not in names and ("first_hitting" in names) == (process is Absorbing and passes > 1)
    assert all(times[0] == 1 and times[-1] > 0 for _, times in choices)
    assert passes != 2 or any(times.tolist() == [1.0, 0.3] for _, times in choices)
