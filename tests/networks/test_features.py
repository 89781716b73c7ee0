"""Features after any block are those of a whole pass; no block runs after the last one needed."""

import pytest
import torch
from helpers import wake
from torch import nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.networks.dit import DiT
from distillkit.networks.mlp import MLP
from distillkit.networks.pair_transformer import PairTransformer
from distillkit.networks.set_dit import SetDiT
from distillkit.networks.unet import UNet
from distillkit.networks.video_unet import VideoUNet

MASK = torch.arange(6)[None] < torch.tensor([[6], [4]])
COORDS = torch.stack([torch.arange(6), torch.arange(6) % 3, torch.zeros(6, dtype=torch.long)], -1).expand(2, 6, 3)


def unet_blocks(net):
    return [block for part in (net.encoder, net.middle, net.decoder) for block in part if isinstance(block, net.Block)]


# network, shape of x, condition, its blocks, index of its middle
CASES = {
    "mlp": (MLP([3], width=8, depth=3), (3,), {}, lambda net: net.layers, 2),
    "unet": (UNet([1, 8, 8], channels=8, multipliers=[1, 2], blocks=2), (1, 8, 8), {}, unet_blocks, 5),
    "video_unet": (VideoUNet([1, 4, 8, 8], channels=8, multipliers=[1, 2]), (1, 4, 8, 8), {}, unet_blocks, 3),
    "dit": (DiT([1, 4, 4], width=8, depth=4, heads=2), (1, 4, 4), {}, lambda net: net.blocks, 1),
    "set_dit": (
        SetDiT([6, 2], side=8, width=8, depth=3, heads=2),
        (6, 2),
        {"mask": MASK, "coords": COORDS},
        lambda net: net.dit.blocks,
        1,
    ),
    "pair": (PairTransformer([6, 3], width=8, depth=3, heads=2), (6, 3), {"mask": MASK}, lambda net: net.blocks, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_features_are_what_the_blocks_make_and_the_pass_ends_with_the_last(name):
    network, shape, cond, blocks, middle = CASES[name]
    wake(network)
    row, ran, made = blocks(network), [], {}
    assert len(row) == len(network.feature_widths) and network.feature_layer == middle
    for index, block in enumerate(row):
        block.register_forward_hook(lambda _, args, out, index=index: ran.append(index) or made.__setitem__(index, out))
    x, time = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.7])
    out = network(x, time, cond)
    assert ran == list(range(len(row)))
    whole, chosen = dict(made), [len(row) - 1, 0, len(row) // 2]
    ran.clear()
    found = network.features(x, time, cond, chosen)
    assert ran == list(range(len(row))) and [h.shape[1] for h in found] == [network.feature_widths[i] for i in chosen]
    for index, h in zip(chosen, found, strict=True):
        if name != "mlp":  # whose layer is a part of its block
            expected = whole[index] if "unet" in name else whole[index].mT  # tokens are [B, L, C] inside
            assert h.shape == expected.shape and ((h == expected) | (h == 0)).all() and (h == expected).any()
    ran.clear()
    (early,) = network.features(x, time, cond, [middle])
    assert ran == list(range(middle + 1))
    ran.clear()
    assert torch.equal(network.features(x, time, cond), early) and ran == list(range(middle + 1))
    assert network.feature_channels == early.shape[1]
    assert torch.equal(network(x, time, cond), out)


@pytest.mark.parametrize("layers", [[4], [0, -1], []])
def test_blocks_that_are_not_there_are_refused(layers):
    network = DiT([1, 4, 4], width=8, depth=4, heads=2)
    with pytest.raises(ValueError, match=r"layers must be indices from 0 to 3, of the blocks of DiT, got"):
        network.features(torch.zeros(1, 1, 4, 4), torch.ones(1), {}, layers)


def test_a_denoiser_hands_its_layers_on_and_says_if_the_network_knows_none():
    network = wake(MLP([2], width=8, depth=3))
    denoiser, x, t = Denoiser(network, VarianceExploding(), "edm", 0.5), torch.randn(4, 2), torch.full((4,), 2.0)
    first, last = denoiser.features(x, t, layers=[0, 2])
    assert torch.equal(last, denoiser.features(x, t)) and not torch.equal(first, last)

    class Plain(nn.Linear):
        def features(self, x, time, cond):
            return x

    plain = Denoiser(Plain(2, 2), VarianceExploding(), "edm", 0.5)
    assert plain.features(x, t).shape == (4, 2)
    with pytest.raises(ValueError, match="Plain gives the features in its middle alone, got layers=\\[1\\]"):
        plain.features(x, t, layers=[1])
