"""The network of photographs is local and takes any size; the codec follows the observation."""

import pytest
import torch

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import ResShift
from domains.super_resolution.codec import Upscale
from domains.super_resolution.network import PatchNet
from domains.super_resolution.resize import enlarged, shrunk


def net(depth: int = 2, patch: int = 4) -> PatchNet:
    """A small network whose output is not zero."""
    torch.manual_seed(0)
    made = PatchNet((3, 16, 16), width=8, depth=depth, patch=patch)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def called(network: PatchNet, x: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(x, torch.zeros(len(x)), {"low": low})


def test_a_new_network_adds_nothing():
    assert not called(PatchNet((3, 16, 16), 8, 1), drawn(2, 3, 16, 16), drawn(2, 3, 4, 4)).any()


@pytest.mark.parametrize("height, width", [(16, 24), (17, 19), (1, 5), (3, 40)])
def test_any_size_comes_out_as_it_went_in(height, width):
    out = called(net(), drawn(2, 3, height, width), drawn(2, 3, 3, 7))
    assert out.shape == (2, 3, height, width) and out.isfinite().all()


def test_a_part_comes_out_as_within_the_whole():
    """Away from its borders by the reach of its convolutions, a patch each: 2, and 2 per block."""
    network, reach = net(depth=2), 4 * (2 + 2 * 2)
    x, low = drawn(1, 3, 128, 128), drawn(1, 3, 32, 32, seed=1)
    whole = called(network, x, low)
    part = called(network, x[..., 32:112, 16:112], low[..., 8:28, 4:28])
    margin = reach + 8  # beside the reach of the bicubic enlargement, two observed pixels
    inside = (slice(None), slice(None), slice(margin, -margin), slice(margin, -margin))
    assert (part[inside] - whole[..., 32:112, 16:112][inside]).abs().max() < 1e-5
    assert (part - whole[..., 32:112, 16:112]).abs().max() > 1e-3  # at its borders it cannot


def test_only_what_is_near_is_seen():
    network, x = net(depth=1), drawn(1, 3, 64, 64).requires_grad_()
    out = network(x, torch.zeros(1), {"low": drawn(1, 3, 16, 16)})
    out[0, :, 32, 32].sum().backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert seen.min() >= 32 - 16 - 3 and seen.max() <= 32 + 16 + 3 and (x.grad != 0).any()


def test_features_are_those_of_each_block():
    network = net(depth=3)
    x, low = drawn(2, 3, 18, 16), drawn(2, 3, 4, 4)
    found = network.features(x, torch.zeros(2), {"low": low}, [0, 2])
    assert [tuple(h.shape) for h in found] == [(2, 8, 5, 4)] * 2  # 18 pixels are five patches, the last one padded
    assert network.feature_widths == [8] * 3 and not torch.equal(*found)


@pytest.mark.parametrize(
    "low, message",
    [
        (torch.zeros(2, 1, 4, 4), r"\[n, 3, height, width\], got float32 \[2, 1, 4, 4\]"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "got uint8"),
        (torch.zeros(2, 3, 0, 4), r"got float32 \[2, 3, 0, 4\]"),
        (torch.full((2, 3, 4, 4), 255.0), r"must lie in \[-1, 1\], got 255 to 255"),
    ],
)
def test_impossible_observations_are_refused(low, message):
    with pytest.raises(ValueError, match=message):
        net().check_context({"low": low})


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_samples_are_what_photographs_add_to_their_enlarged_observation(scale):
    data = drawn(2, 3, 24, 48)
    batch, codec = {"data": data, "low": shrunk(data, scale)}, Upscale(scale)
    residual = codec.encode(batch)
    torch.testing.assert_close(residual, data - enlarged(batch["low"], (24, 48)))
    torch.testing.assert_close(codec.decode(residual, batch), data)
    assert torch.equal(Upscale(scale, residual=False).encode(batch), data)
    assert codec.shape(5, (3, 99, 99), batch) == (5, 3, 24, 48)  # of the observation, not of training


def test_the_denoiser_of_any_size():
    denoiser = Denoiser(net(), ResShift(), "edm", 0.1)
    low = drawn(2, 3, 5, 9)
    shape = Upscale(4).shape(2, (3, 16, 16), {"low": low})
    assert denoiser(torch.randn(shape), torch.tensor(0.5), {"low": low}).shape == (2, 3, 20, 36)


def test_an_image_that_the_scale_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="17 x 16 pixels cannot be made 4 times smaller"):
        shrunk(torch.zeros(1, 3, 16, 17), 4)


def test_observations_are_kept_as_a_file_keeps_them():
    levels = (shrunk(drawn(1, 3, 16, 16), 4) + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
