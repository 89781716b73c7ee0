"""The consistency distance: its value, whose gradient it has, and the mask of sets."""

import pytest
import torch
from helpers import f64

from distillkit.losses.consistency import charbonnier, distance


def test_it_is_the_absolute_difference():
    x, y = f64(1.0, -2.0, 0.5)[:, None], f64(0.0, 1.0, 0.5)[:, None]
    assert float(charbonnier(x, y)) == pytest.approx((1 + 3 + 1e-6) / 3)


def test_it_is_a_square_near_the_target():
    x = f64(0.01)[:, None]
    assert float(charbonnier(x, 0 * x, eps=1.0)) == pytest.approx(1 + 0.5 * 0.01**2, rel=1e-6)


def test_its_gradient_is_a_sign_and_reaches_the_student_alone():
    x, y = (value[:, None].requires_grad_() for value in (f64(1.0, -2.0, 0.5), f64(0.0, 1.0, 0.5)))
    found = torch.autograd.grad(charbonnier(x, y), [x, y], allow_unused=True)
    torch.testing.assert_close(found[0], f64(1.0, -1.0, 0.0)[:, None] / 3)
    assert found[1] is None


def test_padding_counts_nowhere():
    """Every set weighs the same, however large."""
    x = torch.tensor([[[1.0], [3.0]], [[2.0], [100.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    assert float(charbonnier(x, torch.zeros_like(x), mask=mask)) == pytest.approx((2 + 2) / 2)


@pytest.mark.parametrize("kind", ["square", "huber", "absolute"])
def test_distances_of_samples(kind):
    x, y, c = f64(3.0, -1.0, 0.0)[None], f64(0.0, 3.0, 0.0)[None], 0.5
    expected = {
        "square": 25 / 3,
        "huber": (25 / 3 + 0.25) ** 0.5 - 0.5,
        "absolute": (9.25**0.5 + 16.25**0.5 + 0.5) / 3 - 0.5,
    }
    assert float(distance(x, y, kind, c)) == pytest.approx(expected[kind])
    assert float(distance(x, x, kind, c)) == pytest.approx(0)


@pytest.mark.parametrize("kind", ["square", "huber", "absolute"])
def test_every_distance_moves_the_student_alone(kind):
    x, y = (value[:, None].requires_grad_() for value in (f64(1.0, -2.0), f64(0.0, 1.0)))
    found = torch.autograd.grad(distance(x, y, kind, 1e-3).sum(), [x, y], allow_unused=True)
    expected = f64(2.0, -6.0) if kind == "square" else f64(1.0, -1.0)
    torch.testing.assert_close(found[0], expected[:, None], rtol=1e-5, atol=1e-5)
    assert found[1] is None


def test_a_distance_counts_elements_of_a_set_alone():
    x = torch.tensor([[[1.0], [3.0]], [[2.0], [100.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    torch.testing.assert_close(distance(x, 0 * x, "square", 1.0, mask), torch.tensor([5.0, 4.0]))
