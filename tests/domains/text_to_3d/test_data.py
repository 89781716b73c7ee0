"""Views of solids as data: parts, prompts, cameras, refusals."""

import math

import pytest
import torch

from distillkit.rendering.cameras import angles
from domains.text_to_3d.data import ABOVE, Orbits, Solids
from domains.text_to_3d.solids import PROMPTS, render

FEW = {"train": 6, "val": 2, "test": 3}
FOUR = ["a red sphere", "a green cube", "a blue torus", "a yellow cone"]


@pytest.fixture(scope="module")
def data():
    made = Solids(FOUR, **FEW)
    made.setup()
    return made


def test_prompts_come_in_turn_and_images_are_their_renders(data):
    batch = data.train[torch.arange(len(data.train))]
    assert batch["prompt"].tolist() == [0, 5, 10, 15] * FEW["train"]
    assert torch.allclose(batch["data"], render(batch["prompt"], batch["camera"]), atol=1e-6)
    assert [len(part) for part in (data.val, data.test)] == [8, 12]


def test_prompts_of_other_runs_are_not_called_missing(data):
    assert data.left_out() == {}


def test_no_camera_is_in_two_parts(data):
    seen = [tuple(row) for part in (data.train, data.val, data.test) for row in part.tensors["camera"].tolist()]
    assert len(set(seen)) == len(seen)


def test_prompts_and_sizes_do_not_change_other_views(data):
    alone = Solids(["a blue torus"], train=6, val=2, test=3)
    alone.setup()
    assert torch.equal(alone.train.tensors["data"], data.train.tensors["data"][2::4])


def test_colours_share_their_cameras():
    made = Solids(["a red cone", "a blue cone"], **FEW)
    made.setup()
    camera = made.test.tensors["camera"]
    assert torch.equal(camera[0::2], camera[1::2])


def test_held_out_prompts_are_asked_for_and_not_trained_on():
    made = Solids(FOUR, held_out=["a blue torus"], **FEW)
    made.setup()
    assert made.train.tensors["prompt"].unique().tolist() == [0, 5, 15]
    assert made.test.tensors["prompt"].unique().tolist() == [10] == made.conditions(5)["prompt"].unique().tolist()


def test_azimuths_are_stratified_and_some_look_from_above():
    azimuth, elevation, distance = angles(Orbits().draw(200, 0))
    sector = ((azimuth % (2 * math.pi)) / (2 * math.pi) * 200).floor()
    assert sorted(sector.tolist()) == list(range(200))
    degrees = elevation.rad2deg()
    above = degrees > 60
    assert 0.05 < float(above.float().mean()) < 0.3
    assert degrees[above].min() >= ABOVE[0] - 1e-3 and degrees[~above].max() <= 45.001 and degrees.min() >= -10.001
    assert distance.min() >= 1.9 - 1e-5 and distance.max() <= 2.4 + 1e-5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"only": []}, "there are no prompts: say data.only=null"),
        ({"only": "a red sphere"}, "there are no prompts"),
        ({"only": ["a pink sphere"]}, "no solid 'a pink sphere'"),
        ({"only": FOUR, "held_out": ["a red cone"]}, "which is not among data.only"),
        ({"only": FOUR, "held_out": FOUR}, "leaves no prompt"),
    ],
)
def test_prompts_that_are_none_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Solids(**arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"distance": [0.7, 2.0]}, "would stand inside of the objects"),
        ({"distance": [2.0, 1.0]}, "least and a largest"),
        ({"fovy": [0.0, 50.0]}, "fovy"),
        ({"elevation": [-100.0, 0.0]}, "elevation"),
    ],
)
def test_cameras_that_are_none_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Orbits(**arguments)


def test_all_prompts_are_the_default():
    assert len(Solids().asked) == len(PROMPTS)
