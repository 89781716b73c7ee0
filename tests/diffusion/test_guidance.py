"""Guidance in one convention: number and inputs of network evaluations, and the guided law."""

import pytest
import torch
from helpers import PROCESSES
from torch import nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.guidance import drop_condition, guided
from distillkit.diffusion.process import RectifiedFlow, VariancePreserving
from distillkit.networks.mlp import MLP
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactDenoiser, Mixture

MEAN_0, MEAN_C, STD = -0.4, 0.9, 0.7
COND, NULL = {"label": torch.ones(5, dtype=torch.long)}, {"label": torch.zeros(5, dtype=torch.long)}


class Spy(nn.Module):
    """A denoiser that passes calls on and keeps their inputs."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, []

    def forward(self, x_t, t, cond):
        self.calls.append((x_t, t, cond))
        return self.inner(x_t, t, cond)


@pytest.fixture
def network():
    mlp = MLP([2], width=8, depth=1, classes={"label": 2})
    for parameter in mlp.parameters():
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
    return Spy(Denoiser(mlp, RectifiedFlow()))


def classes(process, mean_c=MEAN_C):
    """Exact denoiser of two Gaussians of equal width; class 0 stands for the unconditional law."""
    return ExactDenoiser(Mixture([[MEAN_0], [mean_c]], [[[STD**2]]] * 2, labels=[0, 1]), process, "label")


@pytest.mark.parametrize("kappa, own", [(1.0, COND), (1, COND), (0.0, NULL), (0, NULL)])
def test_one_and_zero_are_one_plain_call(network, kappa, own):
    x, t = torch.randn(5, 2), torch.rand(5)
    found = guided(network, x, t, COND, NULL, kappa)
    assert len(network.calls) == 1 and network.calls[0][0] is x and network.calls[0][2] is own
    assert torch.equal(found, network.inner(x, t, own))


@pytest.mark.parametrize("kappa", [-1.0, 0.5, 4.0])
def test_others_are_one_call_of_both_halves(network, kappa):
    x, t = torch.randn(5, 2), torch.rand(5)
    found = guided(network, x, t, COND, NULL, kappa)
    ((seen, times, cond),) = network.calls
    assert torch.equal(seen, torch.cat([x, x])) and torch.equal(times, torch.cat([t, t]))
    assert cond["label"].tolist() == [1] * 5 + [0] * 5
    with_cond, without = network.inner(x, t, COND), network.inner(x, t, NULL)
    assert (with_cond - without).abs().max() > 1e-3
    torch.testing.assert_close(found, without + kappa * (with_cond - without), rtol=1e-5, atol=1e-6)


KAPPAS = torch.tensor([-1.0, 0.0, 1.0, 2.5, 41.0], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_sample_may_have_its_own_kappa(network, dtype):
    """Each row of the joint call equals the call with its number; 1 and 0 are one plain pass."""
    network.inner.to(dtype)
    x, t = torch.randn(5, 2, dtype=dtype), torch.rand(5, dtype=dtype)
    found = guided(network, x, t, COND, NULL, KAPPAS)
    assert len(network.calls) == 1 and len(network.calls[0][0]) == 10 and found.dtype == dtype
    for row, kappa in enumerate(KAPPAS.tolist()):
        alone = guided(network, x, t, COND, NULL, kappa)[row]
        if kappa in (0, 1):
            torch.testing.assert_close(found[row], alone)
        else:
            assert torch.equal(found[row], alone)
    shifted = guided(network, x, t, COND, NULL, KAPPAS.roll(1))
    assert not torch.isclose(shifted, found).all(1).any()


@pytest.mark.parametrize("kappa", [-1.0, 0.3, 4.1])
def test_equal_kappas_are_one_number_bit_for_bit(network, kappa):
    x, t = torch.randn(5, 2), torch.rand(5)
    each, one = (guided(network, x, t, COND, NULL, k) for k in (torch.full((5,), kappa), kappa))
    assert torch.equal(each, one)


def test_gradient_reaches_a_tensor_of_kappas(network):
    """dD / dkappa is the difference of both passes."""
    x, t, kappa = torch.randn(5, 2), torch.rand(5), torch.full((5,), 2.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(guided(network, x, t, COND, NULL, kappa).sum(), kappa)
    with_cond, without = network.inner(x, t, COND), network.inner(x, t, NULL)
    torch.testing.assert_close(gradient, (with_cond - without).sum(1), rtol=1e-4, atol=1e-5)


class Interval(Teacher):
    """Guided while t is below 0.7 only."""

    def guidance(self, t, kappa):
        return kappa if t < 0.7 else 1.0


@pytest.mark.parametrize("kind", [Teacher, Interval])
def test_a_teacher_passes_kappas_on_to_every_step(network, kind):
    """A sampler's run with one kappa for each sample is, row by row, the run with that number."""
    teacher, noise = kind(network.inner, (2,), {"label": 2}), torch.randn(5, 2)
    found = teacher.sample(noise, COND, steps=4, kappa=KAPPAS)
    for row, kappa in enumerate(KAPPAS.tolist()):
        alone = teacher.sample(noise, COND, steps=4, kappa=kappa)[row]
        torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-4)


def test_a_scalar_time_is_doubled_too(network):
    x = torch.randn(5, 2)
    found = guided(network, x, torch.tensor(0.3, dtype=torch.float64), COND, NULL, 2.0)
    assert network.calls[0][1].shape == (10,)
    torch.testing.assert_close(found, guided(network, x, torch.full((5,), 0.3), COND, NULL, 2.0))


def test_without_a_condition_there_is_nothing_to_guide(network):
    network.inner = Denoiser(MLP([2], width=8, depth=1), RectifiedFlow())
    x, t = torch.randn(5, 2), torch.rand(5)
    assert torch.equal(guided(network, x, t, {}, {}, 7.0), network.inner(x, t, {})) and len(network.calls) == 1


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("kappa", [-1.0, 0.0, 0.3, 1.0, 3.5])
def test_the_guided_law_is_a_gaussian_further_out(process, kappa):
    """Equal widths: guidance moves the mean to m_0 + kappa (m_c - m_0) at every noise level."""
    x = torch.linspace(-3, 3, 5, dtype=torch.float64)[:, None]
    t = process.from_ratio(torch.logspace(-1, 1.5, 5, dtype=torch.float64))
    moved = classes(process, MEAN_0 + kappa * (MEAN_C - MEAN_0))(x, t, COND)
    torch.testing.assert_close(guided(classes(process), x, t, COND, NULL, kappa), moved, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kappa", [-1.0, 2.5])
def test_guidance_commutes_with_conversions(kappa):
    """Guiding noise, score or velocity, then reading x_0, is guiding x_0."""
    process = VariancePreserving()
    exact, moved = classes(process), classes(process, MEAN_0 + kappa * (MEAN_C - MEAN_0))
    x, t = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None], torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    for reading in ("eps", "score", "velocity"):
        with_cond, without = (getattr(exact, reading)(x, t, cond) for cond in (COND, NULL))
        torch.testing.assert_close(without + kappa * (with_cond - without), getattr(moved, reading)(x, t, COND))


def test_gradient_reaches_both_branches(network):
    x = torch.randn(5, 2, requires_grad=True)
    t = torch.rand(5)
    found, halves = guided(network, x, t, COND, NULL, 3.0), [network.inner(x, t, cond) for cond in (COND, NULL)]
    (gradient,) = torch.autograd.grad(found.sum(), x)
    of_cond, of_null = (torch.autograd.grad(half.sum(), x)[0] for half in halves)
    torch.testing.assert_close(gradient, 3 * of_cond - 2 * of_null, rtol=1e-4, atol=1e-6)


def test_dropped_rows_become_null():
    cond = {"label": torch.tensor([3, 4, 5]), "text": torch.ones(3, 2, 2)}
    null = {"label": torch.tensor([9, 9, 9]), "text": torch.zeros(3, 2, 2)}
    found = drop_condition(cond, null, torch.tensor([False, True, False]))
    assert found["label"].tolist() == [3, 9, 5] and found["text"].sum((1, 2)).tolist() == [4, 0, 4]
    assert cond["label"].tolist() == [3, 4, 5]
