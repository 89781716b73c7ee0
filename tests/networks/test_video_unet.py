"""VideoUNet: receptive fields, context frames, the fake score's step."""

import pytest
import torch
from helpers import wake

from distillkit.networks.video_unet import Attention, Block, VideoUNet

SHAPE = (1, 8, 8, 12)


def network(**settings):
    return wake(VideoUNet(SHAPE, channels=8, **settings))


def seen(layer, shape, at):
    """Positions whose output changes with the input at (frame, row, column), bool [t, h, w]."""
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    y = x.clone()
    y[(0, slice(None), *at)] += 1
    return ((layer(x) - layer(y)).abs() > 1e-6)[0].any(0)


def test_a_block_is_two_steps_in_space_and_one_in_time():
    block = wake(Block(4, 4, 6))
    block.norm0 = block.norm1 = torch.nn.Identity()  # norms see everything
    found = seen(lambda x: block(x, torch.zeros(1, 6)), (4, 7, 9, 9), (3, 4, 4))
    assert found[2:5, 2:7, 2:7].all() and found.sum() == 3 * 5 * 5


def test_attention_looks_everywhere():
    layer = wake(Attention(8, 2))
    layer.norm = torch.nn.Identity()
    assert seen(layer, (8, 3, 2, 2), (0, 0, 1)).all()
    x = torch.randn(2, 8, 3, 2, 2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    turned = layer(x.flatten(2)[:, :, order].reshape(x.shape)).flatten(2)
    torch.testing.assert_close(turned, layer(x).flatten(2)[:, :, order])


def test_at_the_start_it_predicts_zero_and_any_shape_comes_back():
    net = VideoUNet((3, 12, 16, 8), channels=8, multipliers=(1, 2, 2), patch=2, tube=3, heads=0, classes={"label": 3})
    x, cond = torch.randn(2, 3, 12, 16, 8), {"label": torch.tensor([0, 3])}
    assert net(x, torch.ones(2), cond).shape == x.shape and not net(x, torch.ones(2), cond).any()
    assert net.features(x, torch.ones(2), cond).shape == (2, 16, 1, 2, 1)


def test_pixels_stay_where_they_are():
    """A tubelet's numbers enter and leave in the same order: the identity can be read off."""
    net = VideoUNet(SHAPE, channels=8, multipliers=(1,), heads=0)
    x = torch.arange(2 * 8 * 8 * 12).reshape(2, *SHAPE).float()
    net.inp, net.norm, net.out = (torch.nn.Identity() for _ in range(3))
    net.encoder, net.middle, net.decoder = (torch.nn.ModuleList() for _ in range(3))
    net.place = torch.nn.Parameter(torch.zeros(1))
    net.inp.weight = net.place  # which the dtype is read off
    torch.testing.assert_close(net(x, torch.ones(2), {}), torch.nn.functional.silu(x))


def test_classes_and_time_are_heard_by_their_own_sample():
    net = network(classes={"label": 3})
    x = torch.randn(1, *SHAPE).expand(3, *SHAPE)
    out = net(x, torch.tensor([0.5, 0.5, 0.7]), {"label": torch.tensor([1, 2, 1])})
    assert not torch.allclose(out[0], out[1]) and not torch.allclose(out[0], out[2])
    alone = net(x[:1], torch.tensor([0.5]), {"label": torch.tensor([1])})
    torch.testing.assert_close(alone[0], out[0], rtol=1e-4, atol=1e-5)
    net.embed.tell("step", categories=4)  # as few-step fake scores do
    same = net(x, torch.tensor([0.5, 0.5, 0.7]), {"label": torch.tensor([1, 2, 1]), "step": torch.arange(3)})
    torch.testing.assert_close(same, out)


def test_every_first_frame_is_seen_at_every_moment():
    net = network(given=2, multipliers=(1,), heads=0)
    x, first = torch.randn(1, *SHAPE), torch.zeros(1, 1, 2, 8, 12)
    before = net(x, torch.ones(1), {"first": first})
    for frame in range(2):
        other = first.clone()
        other[0, 0, frame] = 1
        moved = (net(x, torch.ones(1), {"first": other}) - before).abs()[0, 0].flatten(1).amax(1)
        assert (moved > 1e-4).all()
    with pytest.raises(RuntimeError):
        net(x, torch.ones(1), {"first": first[:, :, :1]})


@pytest.mark.parametrize("shape", [(1, 6, 8, 8), (1, 8, 8, 10), (1, 8, 8)])
def test_what_levels_do_not_divide_is_refused(shape):
    with pytest.raises(ValueError, match="frames divisible by 4 and sides by 4"):
        VideoUNet(shape)
