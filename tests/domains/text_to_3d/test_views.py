"""Words about views, and the network that is told them."""

import math

import pytest
import torch

from distillkit.diffusion.guidance import null_condition
from distillkit.rendering.cameras import orbit
from distillkit.spec import from_spec, to_spec
from domains.text_to_3d.views import VIEWS, ViewUNet, texts, view_of

WORDS = [
    ((0, 0), "front"),
    ((44, 10), "front"),
    ((-44, -10), "front"),
    ((46, 0), "side"),
    ((-90, 59), "side"),
    ((134, 0), "side"),
    ((136, 0), "back"),
    ((-136, 20), "back"),
    ((180, 0), "back"),
    ((0, 61), "overhead"),
    ((100, 89), "overhead"),
]


@pytest.mark.parametrize(("angles", "word"), WORDS)
def test_words(angles, word):
    azimuth, elevation = map(math.radians, angles)
    assert VIEWS[int(view_of(orbit(azimuth, elevation, 2.0, 0.9)))] == word


def test_each_prompt_has_a_text_for_each_word():
    found = texts(["a cat", "a dog"])
    assert found[4 * 1 + VIEWS.index("back")] == "a dog, back view" and len(set(found)) == 8


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = ViewUNet((3, 8, 8), channels=8, classes={"prompt": 3})
    for p in made.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return made.eval()


def test_the_network_is_told_the_word_and_not_the_camera(network):
    x, time = torch.randn(1, 3, 8, 8).expand(4, -1, -1, -1), torch.full((4,), 0.3)
    camera = orbit(torch.tensor([0.0, 0.5, 3.0, 0.0]), torch.tensor([0.0, 0.2, 0.0, 1.4]), 2.0, 0.9)
    out = network(x, time, {"prompt": torch.ones(4, dtype=torch.int64), "camera": camera})
    assert torch.equal(out[0], out[1])
    assert (out[0] - out[2]).abs().max() > 1e-3 and (out[0] - out[3]).abs().max() > 1e-3


def test_without_prompt_the_word_stays(network):
    camera = orbit(torch.tensor([0.0, 3.0]), 0.0, 2.0, 0.9)
    cond = {"prompt": torch.tensor([1, 1]), "camera": camera}
    null = null_condition(cond, {"prompt": 3}, network)
    assert null["prompt"].tolist() == [3, 3] and torch.equal(null["camera"], camera)
    x, time = torch.randn(1, 3, 8, 8).expand(2, -1, -1, -1), torch.full((2,), 0.3)
    out = network(x, time, null)
    assert (out[0] - out[1]).abs().max() > 1e-3


def test_features_hear_the_word_too_and_a_missing_camera_is_named(network):
    x, time = torch.randn(2, 3, 8, 8), torch.full((2,), 0.3)
    cond = {"prompt": torch.tensor([1, 1]), "camera": orbit(torch.tensor([0.0, 3.0]), 0.0, 2.0, 0.9)}
    assert network.features(x, time, cond).shape[0] == 2
    with pytest.raises(ValueError, match="conditioned on 'camera'"):
        network(x, time, {"prompt": torch.tensor([1, 1])})


def test_a_folder_makes_it_again(network):
    again = from_spec(to_spec(network))
    again.load_state_dict(network.state_dict())
    x, time = torch.randn(1, 3, 8, 8), torch.tensor([0.3])
    cond = {"prompt": torch.tensor([1]), "camera": orbit(0.0, 0.0, 2.0, 0.9)}
    assert torch.equal(again(x, time, cond), network(x, time, cond))
