"""Regression on pairs against closed forms: value, gradient, minimiser, noise of each sample."""

import math

import pytest
import torch
from helpers import PROCESSES, Line, f64, fit, gaussian, neural
from torch import nn

from distillkit.data import TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding, expand
from distillkit.diffusion.start import Start
from distillkit.files import read_yaml
from distillkit.methods.pairs import PairDistil
from distillkit.networks.mlp import MLP
from distillkit.students.base import load_student
from distillkit.students.makers import Fresh
from distillkit.teachers.base import Teacher

M, S, C = 0.3, 0.5, 0.03
Z = f64(1.0, -1.0)[:, None]  # has the first two moments of unit noise
SMALL = {"num_pairs": 16, "steps": 3}


class Jump(nn.Module):
    """`mu + s z` from the start `sigma z`; keeps the times it is called at."""

    def __init__(self, line, process):
        super().__init__()
        self.line, self.process, self.asked = line, process, []

    def forward(self, x_t, t, cond):
        self.asked.append(float(t))
        return self.line(x_t / expand(self.process.sigma(torch.as_tensor(t)), x_t))


def on_a_line(mu, s, process=None, pairs=(Z, M + S * Z), **settings):
    process = process or VarianceExploding()
    model = PairDistil(gaussian(M, S, process), student_maker=Fresh(MLP([1], width=8, depth=1)), **settings)
    line = Line(mu, s)
    model.student = Jump(line, process)
    if pairs:
        model.pairs.random = lambda num, generator: (*pairs, {})
    return model, line


def loss_of(model, num=2):
    return model.student_loss({"data": torch.zeros(num, 1)})


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_mean_square_in_closed_form(process):
    """`(mu - M)^2 + (s - S)^2`, with twice the differences for a gradient."""
    model, line = on_a_line(M + 0.2, S - 0.1, process, distance="l2")
    loss = loss_of(model)
    assert loss.item() == pytest.approx(0.2**2 + 0.1**2)
    assert line.gradient(loss) == pytest.approx([0.4, -0.2])
    assert model.student.asked == [process.t_max]


def test_pseudo_huber_in_closed_form():
    """`sqrt(d^2 + c^2) - c` with gradient `d / sqrt(d^2 + c^2)` at `d = (mu - M) + (s - S) z`."""
    model, line = on_a_line(M + 0.2, S - 0.1)
    off = [0.2 - 0.1, 0.2 + 0.1]  # at z = 1 and -1
    root = [math.hypot(d, C) for d in off]
    loss = loss_of(model)
    assert loss.item() == pytest.approx(sum(r - C for r in root) / 2)
    slope = [d / r for d, r in zip(off, root, strict=True)]
    assert line.gradient(loss) == pytest.approx([sum(slope) / 2, (slope[0] - slope[1]) / 2])


@pytest.mark.parametrize("distance", ["huber", "l2"])
def test_the_teachers_own_map_is_the_minimiser(distance):
    """On the store's pairs the exact map of N(M, S^2) leaves only the teacher's solver error."""
    for sign in (1.0, 0.0, -1.0):
        model, line = on_a_line(M + 0.2 * sign, S * 1.3**sign, pairs=None, distance=distance, num_pairs=512)
        model.pairs.make(TensorData({"data": torch.zeros(4, 1)}), 3)
        loss = loss_of(model, 4096)
        mean, scale = line.gradient(loss)
        assert sign * mean > 0.1 and sign * scale > 0.05 if sign else loss.item() < 1e-3, (loss, mean, scale)


@pytest.mark.parametrize("distance", ["huber", "l2"])
def test_another_noise_than_the_pairs_own_is_punished(distance):
    for pairs in ((Z.flip(0), M + S * Z), (-Z, M + S * Z)):
        model, _ = on_a_line(M, S, pairs=pairs, distance=distance)
        assert loss_of(model).item() > 0.5
    exact, _ = on_a_line(M, S, distance=distance)
    assert loss_of(exact).item() < 1e-12


def test_unpaired_samples_would_shrink_to_their_mean():
    """If noise does not decide the sample, regression gives the mean: such solvers are refused."""
    z, other = f64(1, 1, -1, -1)[:, None], f64(1, -1, 1, -1)[:, None]
    model, line = on_a_line(M, S, pairs=(z, M + S * other), distance="l2")
    assert line.gradient(loss_of(model, 4))[1] == pytest.approx(2 * S)  # at s = S it pulls s down to zero
    with pytest.raises(ValueError, match="'ancestral'"):
        PairDistil(neural(), solver="ancestral")
    drawing = neural()
    drawing.best = {"solver": "ancestral", "steps": 9}
    assert PairDistil(drawing).pairs.solver == "ddim"


def test_the_student_starts_where_the_teacher_starts():
    class Echo(Denoiser):
        def forward(self, x_t, t, cond=None):
            return x_t

    process = RectifiedFlow()
    echo = Echo(MLP([1], width=8, depth=1), process, "x0", 1.0)
    teacher = Teacher(echo, (1,), context=("scan",), start=Start("scan", 0.4))
    model = PairDistil(teacher, distance="l2")
    scan = f64(5.0, 7.0)[:, None]
    expected = 0.6 * scan + 0.4 * Z
    model.pairs.random = lambda num, generator: (Z, expected, {"scan": scan})
    assert loss_of(model).item() < 1e-12 and model.step_times.tolist() == [0.4]


class Zero(nn.Module):
    def forward(self, x_t, t, cond):
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("distance", ["huber", "l2"])
def test_what_the_mask_leaves_out_does_not_count(distance):
    mask = torch.tensor([[True, False], [True, True]])
    model = PairDistil(neural(), distance=distance)
    x = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    wild = x.clone()
    wild[0, 1] = 100.0
    losses = []
    for target in (x, wild):
        model.student = Zero()
        model.pairs.random = lambda num, generator, target=target: (x, target, {"mask": mask})
        losses.append(float(model.student_loss({"data": x})))
    assert losses[0] == losses[1] > 0


def test_gradient_goes_to_the_student_alone():
    model = PairDistil(neural(), **SMALL)
    model.pairs.make(TensorData({"label": torch.arange(8) % 2}), 0)
    loss_of(model, 8).backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.student.parameters())


def test_it_leaves_a_student_of_one_step(tmp_path):
    model = PairDistil(neural(), **SMALL, kappa=2.0)
    fit(model, 3)
    model.export(tmp_path)
    facts, student = read_yaml(tmp_path / "student.yaml"), load_student(tmp_path)
    assert facts["pairs"] == {"num": 16, "solver": "heun", "steps": 3, "kappa": 2.0} and facts["kappa"] == 2.0
    assert student.num_steps == 1 and student.times == [80.0]
    cond = {"label": torch.arange(4) % 2}
    assert torch.equal(student.sample(4, cond, 1), model.sample(cond, 4, 1))


def test_several_steps_are_refused():
    with pytest.raises(ValueError, match="need model.num_steps=1, got 2"):
        PairDistil(neural(), num_steps=2)
