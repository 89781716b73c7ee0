"""DiT beyond images: any number of axes, and tokens that attention ignores."""

import pytest
import torch
from torch import nn

from distillkit.networks.dit import DiT


def randomised(network: nn.Module) -> nn.Module:
    """Returns the network with no weight at zero, so that no path is closed."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network


@pytest.mark.parametrize("shape, patch, tokens", [((2, 6), 3, 2), ((1, 4, 8), 2, 8), ((3, 4, 4, 8), 2, 16)])
def test_any_number_of_axes(shape, patch, tokens):
    network = randomised(DiT(shape, width=8, depth=2, heads=2, patch=patch))
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    assert network(x, torch.ones(3), {}).shape == x.shape
    assert network.features(x, torch.ones(3), {}).shape == (3, 8, tokens)


def test_a_token_is_a_cube_and_lies_where_it_came_from():
    """A DiT without blocks is a linear map of each cube: a changed voxel moves its cube alone."""
    network = randomised(DiT((1, 4, 4, 4), width=8, depth=1, heads=2, patch=2))
    network.blocks = torch.nn.ModuleList()
    x = torch.zeros(1, 1, 4, 4, 4)
    y = x.clone()
    y[0, 0, 3, 0, 2] = 1
    moved = (network(x, torch.ones(1), {}) - network(y, torch.ones(1), {})).abs()[0, 0] > 1e-6
    assert moved[2:4, 0:2, 2:4].all() and moved.sum() == 8


def test_masked_tokens_are_not_looked_at():
    network = randomised(DiT((1, 4, 4, 4), width=8, depth=2, heads=2, patch=2))
    x = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    y = x.clone()
    y[..., 2:, 2:, 2:] = 7  # the last token
    seen = torch.tensor([[True] * 7 + [False]])
    first, second = (network(v, torch.ones(1), {}, seen)[0, 0] for v in (x, y))
    assert torch.equal(first[:2], second[:2]) and not torch.allclose(first[2:, 2:, 2:], second[2:, 2:, 2:])
    assert not torch.allclose(*(network(v, torch.ones(1), {})[0, 0, :2] for v in (x, y)))


@pytest.mark.parametrize("shape", [(1, 4, 6), (1, 4, 4, 6), (4,)])
def test_sides_that_a_patch_does_not_divide_are_refused(shape):
    with pytest.raises(ValueError, match="a DiT with patch 4 needs sides divisible by 4"):
        DiT(shape, width=8, heads=2, patch=4)
