"""VideoDiT: which token looks where, the first frame, the fake score's step."""

import pytest
import torch
from helpers import wake

from distillkit.networks.video_dit import VideoDiT

SHAPE = (1, 4, 4, 6)  # two moments of two frames, two by three places of 2 x 2


def network(depth=2, **settings):
    return wake(VideoDiT(SHAPE, width=8, depth=depth, heads=2, patch=2, tube=2, **settings))


def moved(net, at, cond=None):
    """Where the output changes when the input changes at (frame, row, column), bool [T, H, W]."""
    x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
    y = x.clone()
    y[(0, 0, *at)] += 1
    return ((net(x, torch.ones(1), cond or {}) - net(y, torch.ones(1), cond or {})).abs() > 1e-6)[0, 0]


def test_a_token_is_a_tubelet():
    changed = moved(network(depth=0), (1, 3, 4))
    assert changed[:2, 2:, 4:].all() and changed.sum() == 8


def test_blocks_look_along_space_then_along_time():
    space = moved(network(depth=1), (0, 0, 0))
    assert space[:2].all() and not space[2:].any()
    net = network(depth=2)
    assert moved(net, (0, 0, 0)).all()
    net.blocks = net.blocks[
        1:
    ]  # the second alone, in the first's place, still sees one moment: places are what it mixes
    assert not moved(net, (0, 0, 0))[2:].any()
    net = network(depth=2)
    for parameter in net.blocks[0].parameters():
        torch.nn.init.zeros_(parameter)  # the identity
    time = moved(net, (0, 0, 0))
    assert time[:, :2, :2].all() and time.sum() == 16


def test_at_the_start_it_predicts_zero_and_any_shape_comes_back():
    net = VideoDiT((3, 6, 8, 4), width=8, depth=2, heads=2, patch=4, tube=3, classes={"label": 3})
    x, cond = torch.randn(2, 3, 6, 8, 4), {"label": torch.tensor([0, 3])}
    assert net(x, torch.ones(2), cond).shape == x.shape and not net(x, torch.ones(2), cond).any()
    assert net.features(x, torch.ones(2), cond).shape == (2, 8, 2, 2)


def test_classes_and_time_are_heard_by_their_own_sample():
    net = network(classes={"label": 3})
    x = torch.randn(1, *SHAPE).expand(3, *SHAPE)
    out = net(x, torch.tensor([0.5, 0.5, 0.7]), {"label": torch.tensor([1, 2, 1])})
    assert not torch.allclose(out[0], out[1]) and not torch.allclose(out[0], out[2])
    alone = net(x[:1], torch.tensor([0.5]), {"label": torch.tensor([1])})
    torch.testing.assert_close(alone[0], out[0])
    net.embed.add("step", 4)  # as few-step fake scores do
    same = net(x, torch.tensor([0.5, 0.5, 0.7]), {"label": torch.tensor([1, 2, 1]), "step": torch.arange(3)})
    torch.testing.assert_close(same, out)


def test_the_first_frame_is_shown_to_every_moment():
    net = network(depth=0, context=["first"])
    x, first = torch.zeros(1, *SHAPE), torch.zeros(1, 1, 4, 6)
    other = first.clone()
    other[0, 0, 0, 0] = 1
    changed = (net(x, torch.ones(1), {"first": first}) - net(x, torch.ones(1), {"first": other})).abs()[0, 0] > 1e-6
    assert changed[:, :2, :2].all() and changed.sum() == 16
    with pytest.raises(ValueError, match=r"given \[first\] or nothing"):
        network(context=["last"])


@pytest.mark.parametrize("shape", [(1, 5, 4, 4), (1, 4, 4, 5), (1, 4, 4)])
def test_what_tubelets_do_not_divide_is_refused(shape):
    with pytest.raises(ValueError, match="frames divisible by 2 and sides by 4"):
        VideoDiT(shape, width=8, heads=2)
