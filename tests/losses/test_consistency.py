"""The consistency distance: its value, whose gradient it has, and the mask of sets."""

import pytest
import torch
from helpers import f64

from distillkit.losses.consistency import charbonnier


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
