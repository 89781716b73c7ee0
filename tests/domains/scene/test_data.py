"""Rooms as data: what a batch holds, and that it follows from seed and number."""

import pytest
import torch

from distillkit.rendering.cameras import check
from distillkit.students.leap import state
from domains.scene.data import Rooms, batch_of, made
from tests.battery.conftest import compose


@pytest.fixture(scope="module")
def small():
    data = Rooms(train=6, val=4, test=4)
    data.setup()
    return data


def test_a_batch_has_the_clip_its_ends_and_its_reconstruction(small):
    batch = small.train[torch.tensor([4, 0])]
    shapes = {name: tuple(value.shape) for name, value in batch.items()}
    assert shapes == {
        "data": (2, 3, 8, 32, 32),
        "first": (2, 3, 2, 32, 32),
        "coarse": (2, 3, 8, 32, 32),
        "cameras": (2, 8, 13),
        "depth": (2, 1, 8, 32, 32),
    }
    assert all(value.dtype == torch.float32 for value in batch.values())
    assert small.event_shape == (3, 8, 32, 32) and small.context == ("first", "coarse")
    assert torch.equal(batch["first"], batch["data"][:, :, [0, -1]])
    assert batch["data"].abs().max() <= 1 and batch["coarse"].abs().max() <= 1
    assert not torch.equal(batch["coarse"], batch["data"])
    check(batch["cameras"])
    levels = (batch["data"] + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)  # as a file would keep them


def test_clips_follow_from_seed_and_number(small):
    again = Rooms(train=9, val=4, test=4)
    again.setup()
    order, other = torch.tensor([5, 1, 5]), torch.tensor([1, 5])
    once, twice = small.train[order], again.train[other]
    for name, value in once.items():
        assert torch.equal(value[0], value[2]) and torch.equal(value[1], twice[name][0])
    assert not torch.equal(small.val[torch.tensor([0])]["data"], small.train[torch.tensor([0])]["data"])
    elsewhere = Rooms(train=1, val=1, test=1, seed=1)
    elsewhere.setup()
    assert not torch.equal(elsewhere.train[torch.tensor([0])]["data"], small.train[torch.tensor([0])]["data"])
    fresh = made(small.test.first + torch.tensor([2]), small.test.damage[2:3])
    kept = small.test[torch.tensor([2])]
    assert torch.equal(fresh["cameras"], kept["cameras"])
    assert torch.equal(fresh["coarse"], ((kept["coarse"] + 1) * 127.5).round().byte())


def test_damage_is_drawn_for_each_scene_within_its_range():
    data = Rooms(train=500, val=1, test=1, damage=[0.2, 0.6])
    data.setup()
    found = data.train.damage
    assert 0.2 <= found.min() < 0.22 and 0.58 < found.max() <= 0.6
    assert torch.equal(found[:9], Rooms(train=9, damage=[0.2, 0.6]).load()[0].damage)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"damage": [0.5, 0.2]}, "damage must be a range"),
        ({"damage": [0.0, 1.5]}, "damage must lie in"),
        ({"train": 0}, "train must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_wrong_numbers_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Rooms(**given)


def test_the_policy_s_state_tells_the_damage():
    """As the recipe has it: end frames are right at damage 0, and worse the more of it there is."""
    known = compose("domain=scene", "method=videoscene")["model"]["init_args"]["known"]
    found = []
    for damage in (0.0, 0.4, 0.7, 1.0):
        kept = made(torch.arange(4), torch.full((4,), damage))
        clip, coarse = (kept[name].float() / 127.5 - 1 for name in ("data", "coarse"))
        batch = batch_of(clip, coarse, kept["cameras"])
        found.append(state(batch["coarse"], batch, known).flatten(1).mean(1))
    assert not found[0].any() and (torch.stack(found).diff(dim=0) > 0).all()
