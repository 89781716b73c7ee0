"""What is asked of scenes beside their looks, by hand."""

import math

import pytest
import torch

from distillkit.rendering.regularisers import binarisation, sparsity, total_variation


def test_total_variation_by_hand():
    """A slope of 1 along x, 2 along y and -3 along z costs 6; what is even costs nothing."""
    z, y, x = torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij")
    grid = torch.stack([x + 2 * y - 3 * z, torch.full_like(x, 5)])[None]
    assert float(total_variation(grid)) == pytest.approx(3)  # the mean over both channels
    assert float(total_variation(grid[:, :, 0], axes=2)) == pytest.approx(1.5)
    even = torch.ones(1, 4, 3, 3, 3, requires_grad=True)
    total_variation(even).backward()
    assert (even.grad == 0).all()


def test_sparsity_and_binarisation_by_hand():
    opacity = torch.tensor([0.0, 0.5, 1.0, 0.25]).view(1, 1, 2, 2)
    assert float(sparsity(opacity)) == pytest.approx(1.75 / 4)
    sure = -(0.999 * math.log(0.999) + 0.001 * math.log(0.001))
    unsure = math.log(2) - (0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    found = binarisation(opacity.requires_grad_())
    assert found.item() == pytest.approx((2 * sure + unsure) / 4, rel=1e-5)
    found.backward()
    assert opacity.grad.isfinite().all() and opacity.grad[0, 0, 1, 1] > 0  # towards 0 from below a half
    assert opacity.grad[0, 0, 0, 0] == 0
