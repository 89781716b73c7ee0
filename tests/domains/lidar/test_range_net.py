"""The network of range images turns with its input, and sees the given rays."""

import pytest
import torch
from torch.nn import functional as F

from distillkit.networks.unet import UNet
from domains.lidar.range_net import Around, RangeUNet
from domains.lidar.rays import given

SHAPE = (2, 8, 32)


def net(**settings) -> RangeUNet:
    """A small network whose output is not zero."""
    torch.manual_seed(0)
    made = RangeUNet(SHAPE, channels=8, **settings)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


X, RAYS = drawn(0, 2, *SHAPE), given(drawn(1, 2, *SHAPE), 4, torch.tensor([0, 3]))


@torch.no_grad()
def called(network, x=X, rays=RAYS, time=0.3):
    return network(x, torch.full((len(x),), time), {"rays": rays})


def test_a_new_network_adds_nothing():
    assert not called(RangeUNet(SHAPE, channels=8)).any()


@pytest.mark.parametrize("by", [4, -4, 12, 32])
def test_the_output_turns_with_the_input(by):
    """By multiples of patch 2 x 2 for its two levels."""
    network = net()
    turned = called(network, X.roll(by, -1), RAYS.roll(by, -1))
    torch.testing.assert_close(turned, called(network).roll(by, -1), rtol=1e-4, atol=1e-4)


def test_beams_have_places():
    """Unlike columns: an image that is shifted by beams comes out otherwise."""
    network, shifted = net(), (X.roll(4, -2), RAYS.roll(4, -2))
    assert (called(network, *shifted) - called(network).roll(4, -2)).abs().max() > 1e-2
    assert network.place.shape == (1, 8, 4, 1) and len(torch.unique(network.place[0, :, :, 0], dim=1).T) == 4


def test_a_convolution_goes_around():
    """Its borders are those of the same convolution on the image repeated three times."""
    layer, x = Around(2, 3), drawn(2, 1, 2, 5, 8)
    wide = F.conv2d(torch.cat([x, x, x], -1), layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), wide[..., 8:16])
    assert Around(2, 3, 2)(x).shape == (1, 3, 3, 4)


def test_all_inputs_are_seen():
    network, out = net(), called(net())
    assert out.shape == X.shape
    assert not torch.allclose(called(network, rays=-RAYS), out)
    assert not torch.allclose(called(network, time=0.9), out)
    assert len(network.features(X, torch.ones(2), {"rays": RAYS}, [0, 1])) == 2


def test_the_images_unet_is_as_it_was():
    """Its keys and its zero padding; the convolutions are shared."""
    network = UNet((1, 8, 8), channels=8)
    assert {type(layer) for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)} == {torch.nn.Conv2d}
    assert "encoder.0.conv1.weight" in network.state_dict()


@pytest.mark.parametrize("shape", [(2, 8, 30), (2, 6, 32), (2, 8)])
def test_sizes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="divisible by 4, got"):
        RangeUNet(shape)


@pytest.mark.parametrize("rays", [RAYS[:, :2], RAYS[..., :16], 2 * RAYS, RAYS * torch.nan])
def test_impossible_rays_are_refused(rays):
    with pytest.raises(ValueError, match=r"\[n, 3, 8, 32\]"):
        net().check_context({"rays": rays})
    net().check_context({"rays": RAYS})
