"""Scenes and the generator as networks of students."""

import copy
import warnings

import pytest
import torch

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import DiscreteVariancePreserving
from distillkit.rendering.cameras import orbit
from distillkit.rendering.regularisers import binarisation, total_variation
from distillkit.spec import from_spec, to_spec
from domains.text_to_3d.generator import Generator
from domains.text_to_3d.scenes import Scenes, _jitter
from domains.text_to_3d.solids import PROMPTS

TWO = ["a red sphere", "a blue cube"]
BLUE_CUBE = PROMPTS.index("a blue cube")


def cond(prompts, azimuth=0.3):
    return {"prompt": torch.tensor(prompts), "camera": orbit(azimuth, 0.2, torch.full((len(prompts),), 2.1), 0.9)}


def noise(num, seed=0):
    return torch.randn(num, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def scenes(**settings):
    return Scenes(only=TWO, **{"side": 16, "resolution": 8} | settings)


def test_a_sample_is_the_render_of_its_own_scene():
    net = scenes()
    net.field.grid.data[1, 1] = 8.0  # the second is red
    net.eval()
    asked = cond([0, BLUE_CUBE])
    out = net(noise(2), torch.zeros(2), asked)
    for i in range(2):
        expected = net.field.render(asked["camera"][i : i + 1], torch.tensor([i]), 16, 16).image
        assert torch.allclose(out[i : i + 1], 2 * expected - 1, atol=1e-6)
    assert out[1, 0, 8, 8] > out[0, 0, 8, 8] + 0.5
    assert torch.equal(out, net(noise(2, 7), torch.ones(2), asked))  # neither noise nor time has a say


@pytest.mark.parametrize("kind", ["voxels", "triplane", "gaussians"])
def test_gradients_reach_the_scene_that_is_seen_alone(kind):
    net = scenes(kind=kind, smooth=0.1, sparse=0.1, resolution=32 if kind == "gaussians" else 8).train()
    out = net(noise(2), torch.zeros(2), cond([BLUE_CUBE] * 2))
    (out.square().mean() + net.penalty).backward()
    for name, p in net.named_parameters():
        assert p.grad[0].abs().max() == 0, name
    assert any(p.grad[1].abs().max() > 0 for p in net.parameters())


def test_noise_chooses_one_of_the_particles():
    net = scenes(particles=3).eval()
    x = noise(300)
    prompt = torch.full((300,), BLUE_CUBE)
    found = net.scene(prompt, x)
    counts = torch.bincount(found, minlength=6)
    assert counts[:3].sum() == 0 and counts[3:].min() > 60  # those of the second prompt, each as often
    assert torch.equal(found, net.scene(prompt, 80 * x))
    with pytest.raises(ValueError, match="particles"):
        scenes(particles=5)


def test_the_penalty_is_its_three_terms():
    net = scenes(smooth=0.2, sparse=0.3, opaque=0.4, late=0.5).train()
    asked = cond([BLUE_CUBE])
    terms = {}
    for done in (0.49, 0.5):
        net.progress(done)
        net(noise(1), torch.zeros(1), asked)
        terms[done] = net.penalty.detach()
    opacity = net.field.render(asked["camera"], torch.tensor([1]), 16, 16, jitter=_jitter(noise(1), 16)).opacity
    early = 0.2 * total_variation(net.field.grid[1:]) + 0.3 * opacity.mean()
    assert torch.allclose(terms[0.49], early, atol=1e-6)
    assert torch.allclose(terms[0.5], early + 0.4 * binarisation(opacity), atol=1e-6)
    net.eval()(noise(1), torch.zeros(1), asked)
    assert net.penalty is None
    with torch.no_grad():
        net.train()(noise(1), torch.zeros(1), asked)
    assert net.penalty is None


def test_the_first_share_of_a_run_renders_at_half_the_size():
    net = scenes(coarse=0.3).train()
    asked, sizes = cond([0]), []
    render = net.field.render
    net.field.render = lambda camera, scene, height, width, **more: (
        sizes.append(height) or render(camera, scene, height, width, **more)
    )
    for done in (0.0, 0.29, 0.3):
        net.progress(done)
        assert net(noise(1), torch.zeros(1), asked).shape == (1, 3, 16, 16)
    net.progress(0.0)
    net.eval()(noise(1), torch.zeros(1), asked)
    assert sizes == [8, 8, 16, 16]


def test_jitter_is_uniform_whatever_the_noise_level():
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = _jitter(x, 64)
    assert torch.allclose(found, _jitter(0.01 * x, 64), atol=1e-6) and found.min() >= 0 and found.max() < 1
    shares = torch.histc(found, 8, 0, 1) / found.numel()
    assert (shares - 1 / 8).abs().max() < 0.01


@pytest.mark.parametrize("made", [scenes, lambda: Generator(only=TWO, side=16, width=8)], ids=["scenes", "generator"])
def test_folders_and_copies_after_a_step(made):
    net = made().train()
    net.smooth = 0.1
    net(noise(1), torch.zeros(1), cond([0])).mean().backward()
    copied = copy.deepcopy(net)  # whose penalty would be a tensor of a graph
    assert copied.penalty is None
    again = from_spec(to_spec(net))
    again.load_state_dict(net.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked = cond([0])
        assert torch.equal(again.eval()(noise(1), torch.zeros(1), asked), net.eval()(noise(1), torch.zeros(1), asked))
    Denoiser(net, DiscreteVariancePreserving(), "x0")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": torch.tensor([1])}, "no scene of 'a green sphere'"),
        ({"prompt": torch.tensor([16])}, "no scene of 'no prompt'"),
        ({"camera": orbit(0.0, 0.0, torch.tensor([0.5]), 0.9)}, "inside of the object"),
        ({"camera": 2 * orbit(0.0, 0.0, torch.tensor([2.0]), 0.9)}, "not a rotation"),
        ({"camera": torch.zeros(1, 12)}, "cameras must be floats"),
    ],
)
def test_what_cannot_be_seen_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        scenes().check_context(cond([0]) | change)


def test_prompts_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there are no prompts"):
        Scenes(only=[])
    with pytest.raises(ValueError, match="'a cat', which is none of the 16 prompts"):
        Scenes(only=["a cat"])
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    with pytest.raises(ValueError, match=r"^resolution must be at most 512, got 1000$"):
        Scenes(only=TWO, kind="gaussians", resolution=1000)
    net = Scenes(texts=str(tmp_path / "prompts.txt"), resolution=4)
    assert net.texts == ["a cat", "a dog"] and len(net.field.grid) == 2
    assert from_spec(to_spec(net)).texts == net.texts


def test_texts_can_be_asked_for():
    net = scenes().eval()
    net.field.grid.data[1, 0] = -9.0  # the second scene is empty
    net.ask(["a blue cube", "a red sphere"])
    out = net(noise(2), torch.zeros(2), cond([0, 1]))
    assert out[0].min() > 0.9 and out[1].min() < 0.5
    with pytest.raises(ValueError, match="no scene of 'a cat'"):
        net.ask(["a cat"])


def test_the_generator_knows_its_words_and_says_what_is_new():
    net = Generator(held_out=["a red cone", "a blue cube"], side=16, width=8)
    assert "cone" in net.words and len(net.trained) == 14
    with pytest.raises(ValueError, match="never saw the word 'teapot'"):
        net.ask(["a red teapot"])
    with pytest.warns(UserWarning, match="not trained on 'a red cone'"):
        net.check_context(cond([PROMPTS.index("a red cone")]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.check_context(cond([0]))
    without = Generator(only=["a red sphere", "a red cube", "a red cone"], held_out=1, side=16, width=8)
    assert without.trained == ["a red sphere", "a red cube"]
    with pytest.raises(ValueError, match="never saw the word 'cone'"):
        without.check_context(cond([PROMPTS.index("a red cone")]))
    with pytest.raises(ValueError, match="needs a prompt"):
        net.check_context(cond([16]))


def test_the_generator_makes_each_prompt_once_and_reads_words_in_any_order():
    net = Generator(side=16, width=8).eval()
    made = net.grids(torch.tensor([0, BLUE_CUBE]))
    assert made.shape == (2, 4, 24, 24, 24) and not torch.equal(made[0], made[1])
    calls = []
    net.grow.register_forward_hook(lambda module, inputs, out: calls.append(len(out)))
    out = net(noise(4), torch.zeros(4), cond([BLUE_CUBE, 0, 0, 0]))
    assert calls == [2] and torch.equal(out[1], out[2]) and not torch.equal(out[0], out[1])
    net.ask(["sphere red a"])
    assert torch.allclose(net.grids(torch.tensor([0])), made[:1], atol=1e-6)
