"""Moving digits: every motion against its formula, and where the digits come from."""

import math

import pytest
import torch

from domains.image.data import Digits
from domains.video.clip import FRAMES, MOTIONS, SIDE
from domains.video.data import DIGIT, ROOM, SPEED, MovingDigits, clips, drawn, folded, paths


@pytest.fixture(scope="module")
def small():
    data = MovingDigits(train=60, val=30, test=30)
    data.setup()
    return data


def test_a_batch_has_clips_and_their_classes(small):
    batch = small.train[torch.tensor([4, 0])]
    assert small.event_shape == (1, FRAMES, SIDE, SIDE) == (1, 16, 16, 16)
    assert batch["data"].shape == (2, 1, 16, 16, 16) and batch["data"].dtype == torch.float32
    assert small.classes == {"label": 10, "motion": 3} and set(batch) == {"data", "label", "motion"}
    whole = small.train.tensors
    assert whole["data"].min() == -1 and 0.8 < whole["data"].max() <= 1
    pairs = set(zip(whole["label"][:30].tolist(), whole["motion"][:30].tolist(), strict=True))
    assert len(pairs) == 30  # in turn
    asked = small.conditions(30)
    assert torch.equal(asked["label"], whole["label"][:30]) and torch.equal(asked["motion"], whole["motion"][:30])


def test_the_parts_are_of_different_digits_and_functions_of_the_seed(small):
    for part, digits, start in zip((small.train, small.val, small.test), Digits().load(), range(3), strict=True):
        again = clips(digits.tensors, len(part), torch.Generator().manual_seed(start))
        assert torch.equal(again["data"], part.tensors["data"])
    larger = MovingDigits(train=90, val=30, test=30).load()
    assert torch.equal(larger[1].tensors["data"], small.val.tensors["data"])
    assert not torch.equal(
        MovingDigits(train=1, val=30, test=1, seed=1).load()[1].tensors["data"], larger[1].tensors["data"]
    )


def test_the_digit_is_of_the_class():
    levels = torch.arange(20) % 10 / 10 + 0.05  # a grey square for each class
    digits = {"data": levels[:, None, None, None].expand(-1, 1, DIGIT, DIGIT) * 2 - 1, "label": torch.arange(20) % 10}
    made = clips(digits, 30, torch.Generator().manual_seed(0))
    brightest = (made["data"].flatten(1).amax(1) + 1) / 2
    torch.testing.assert_close(brightest, made["label"] / 10 + 0.05, atol=1e-5, rtol=0)


def test_a_drawn_digit_is_where_it_should_be_and_keeps_its_ink():
    """Bilinear interpolation keeps sum and centre of mass, to rounding; whole pixels are copied."""
    rng = torch.Generator().manual_seed(0)
    ink = torch.rand(5, 2, DIGIT, DIGIT, generator=rng, dtype=torch.float64)
    ink[:, 1] = 0
    places = torch.rand(5, 2, 7, 2, generator=rng, dtype=torch.float64) * ROOM
    frames = drawn(ink, places)
    assert frames.shape == (5, 7, SIDE, SIDE)
    torch.testing.assert_close(frames.sum((2, 3)), ink[:, 0].sum((1, 2))[:, None].expand(-1, 7))

    def centre(x):
        axis = torch.arange(x.shape[-1], dtype=torch.float64)
        return torch.stack([(x.sum(-1) * axis).sum(-1), (x.sum(-2) * axis).sum(-1)], -1) / x.sum((-2, -1))[..., None]

    torch.testing.assert_close(centre(frames), centre(ink[:, 0])[:, None] + places[:, 0])
    whole = drawn(ink, torch.tensor([3.0, 5.0], dtype=torch.float64).expand(5, 2, 1, 2))[:, 0]
    torch.testing.assert_close(whole[:, 3:11, 5:13], ink[:, 0])
    around = drawn(ink, torch.tensor([12.0, 5.0], dtype=torch.float64).expand(5, 2, 1, 2))[:, 0]
    torch.testing.assert_close(around[:, [12, 13, 14, 15, 0, 1, 2, 3], 5:13], ink[:, 0])  # the edges meet


def test_the_brighter_of_two_is_seen():
    ink = torch.stack([torch.full((DIGIT, DIGIT), 0.3), torch.full((DIGIT, DIGIT), 0.7)])[None]
    frame = drawn(ink, torch.tensor([[[[4.0, 0.0]], [[4.0, 4.0]]]]))[0, 0]
    assert frame[8].unique_consecutive().tolist() == pytest.approx([0.3, 0.7, 0])


def test_walls_reflect():
    place = torch.tensor([-3.0, 0.0, 2.5, 8.0, 9.0, 16.0, 17.5, 25.0])
    assert folded(place).tolist() == [3, 0, 2.5, 8, 7, 0, 1.5, 7]


def test_every_motion_is_what_it_is_called():
    motion = torch.arange(900) % 3
    found = paths(motion, torch.Generator().manual_seed(0)).double()
    assert found.shape == (900, 2, FRAMES, 2) and found.min() >= 0 and found.max() < SIDE
    bounce, crossing, drift = (found[motion == i] for i in range(len(MOTIONS)))

    steps = bounce[:, 0].diff(dim=1)
    assert bounce.max() <= ROOM
    speed = steps.norm(dim=-1).amax(1)
    assert speed.min() > SPEED[0] - 1e-4 and speed.max() < SPEED[1] + 1e-4
    turned = ((steps[:, 1:] * steps[:, :-1]) < 0).flatten(1).any(1)
    assert turned.double().mean() > 0.8

    gap = (crossing[:, 0] - crossing[:, 1]).diff(dim=1)
    moves = crossing.diff(dim=2).abs().amax(2) > 1e-6  # [n, 2, 2]
    assert (moves.sum(-1) == 1).all() and torch.equal(moves[:, 0], moves[:, 1])  # along one axis, both the same
    along = torch.where(moves[:, 0, None], crossing[:, 0] - crossing[:, 1], 0).sum(-1)
    assert (along.amax(1) > 1).all() and (along.amin(1) < -1).all()  # first on one side, then on the other
    assert gap.abs().amax() < 2 * SPEED[1] + 1e-4 and crossing.max() <= ROOM

    steps = (drift[:, 0].diff(dim=1) + SIDE / 2) % SIDE - SIDE / 2
    assert (steps - steps.mean(1, keepdim=True)).abs().max() < 1e-5  # an even glide
    assert (drift[:, 0] > ROOM).any(-1).any(-1).double().mean() > 0.99  # beyond where walls would be
    heading = torch.atan2(*steps.mean(1).unbind(-1))
    assert torch.histc(heading, 4, -math.pi, math.pi).min() > 40


def test_the_first_frames_are_a_context():
    data = MovingDigits(train=40, val=10, test=10, given=3)
    data.setup()
    batch = data.train[torch.tensor([7, 3])]
    assert data.context == ("first",) and torch.equal(batch["first"], batch["data"][:, :, :3])
    asked = data.conditions(12)
    assert set(asked) == {"label", "motion", "first"} and torch.equal(asked["first"][10], asked["first"][0])
    assert torch.equal(asked["first"][:10], data.test.tensors["data"][:, :, :3])
    with pytest.raises(ValueError, match="given must be at least 0, got -1"):
        MovingDigits(given=-1)
    with pytest.raises(ValueError, match="at least 1"):
        MovingDigits(train=0)
