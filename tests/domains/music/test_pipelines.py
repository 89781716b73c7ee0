"""Pipelines of sound as teachers: our samplers against the pipelines' own, on tiny random ones."""

import json
import shutil
from functools import partial

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_audio

from distillkit.diffusion.sampling import dpm_solver_sde
from domains.music.pipelines import MusicPipeline

PROMPTS = ["a cat runs", "a dog sleeps on the moon", "a cat on the moon"]
NEGATIVE = "blurry"
ORDER = [2, 0]  # of the prompts in a batch
MADE = {
    "stable_audio": tiny_audio.stable_audio,
    "stable_audio_3": tiny_audio.stable_audio_3,
    "pingpong": partial(tiny_audio.stable_audio_3, stochastic=True),
    "audioldm2": tiny_audio.audioldm2,
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return str(file)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder and pipeline of each kind."""
    folder, kept = tmp_path_factory.mktemp("sound"), {}
    for name, make in MADE.items():
        kept[name] = folder / name, make(folder / name)
        kept[name][1].set_progress_bar_config(disable=True)
    return kept


def drawn(teacher, num=2, seed=1):
    return torch.randn(num, *teacher.event_shape, generator=torch.Generator().manual_seed(seed))


def draws(teacher, steps):
    """The draws of a stochastic solver by step."""
    noises = [drawn(teacher, seed=10 + i) for i in range(steps)]
    return lambda i: noises[i]


def close(ours, theirs, within):
    print((ours - theirs).abs().max(), theirs.abs().max(), theirs.std())
    assert ours.shape == theirs.shape and theirs.std() > 0.3
    assert (ours - theirs).abs().max() < within * max(1, float(theirs.abs().max()))


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_stable_audio_is_the_pipeline(negative, made, prompts, monkeypatch):
    folder, pipeline = made["stable_audio"]
    teacher = MusicPipeline(str(folder), prompts, negative_prompt=negative, seconds=0.006)
    assert teacher.event_shape == (4, 16) and teacher.best == {"solver": "dpm_solver_sde", "steps": 100}
    noise, steps, cond = drawn(teacher), 6, {"prompt": torch.tensor(ORDER)}
    given = draws(teacher, steps)
    counted = iter(range(1, steps))

    class Draws:
        """Our draws in place of a Brownian tree's."""

        def __init__(self, x, **options):
            self.last = torch.zeros_like(x)

        def __call__(self, sigma, sigma_next):
            return given(next(counted)) if sigma_next > 0 else self.last

    monkeypatch.setattr(tiny_audio.cosine(), "BrownianTreeNoiseSampler", Draws)
    asked = {"prompt": [PROMPTS[i] for i in ORDER], "num_inference_steps": steps, "audio_end_in_s": 0.006}
    asked |= {"negative_prompt": negative and [negative] * 2, "latents": teacher.grid(steps)[0].sin().float() * noise}
    for kappa in (4.0, 1.0):
        counted = iter(range(1, steps))
        ours = teacher.sample(noise, cond, steps, kappa=kappa, draw=given)
        close(ours, pipeline(guidance_scale=kappa, **asked, output_type="latent").audios, 1e-4)
    counted = iter(range(1, steps))
    sounds = pipeline(guidance_scale=1.0, **asked).audios
    assert sounds.shape == (2, 2, 96)
    torch.testing.assert_close(teacher.codec.decode(ours, {}), sounds.clamp(-1, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["stable_audio_3", "pingpong"])
def test_stable_audio_3_is_the_pipeline(kind, made, prompts, monkeypatch):
    folder, pipeline = made[kind]
    teacher = MusicPipeline(str(folder), prompts, negative_prompt=NEGATIVE, seconds=0.0061)
    best = {"solver": "renoise", "steps": 8} if kind == "pingpong" else {"solver": "euler", "steps": 100}
    assert teacher.event_shape == (6, 13) and teacher.best == best
    noise, steps, cond = drawn(teacher), 6, {"prompt": torch.tensor(ORDER)}
    given = draws(teacher, steps)
    from diffusers.schedulers import scheduling_flow_match_euler_discrete as module

    asked = {"prompt": [PROMPTS[i] for i in ORDER], "num_inference_steps": steps, "duration": 0.0061}
    asked |= {"negative_prompt": [NEGATIVE] * 2, "latents": noise}
    for kappa in (3.0, 1.0):
        counted = iter([*range(1, steps), 0])
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: given(next(counted)))
        ours = teacher.sample(noise, cond, steps, kappa=kappa, draw=given)
        close(ours, pipeline(guidance_scale=kappa, **asked, output_type="latent").audios, 1e-4)
    counted = iter([*range(1, steps), 0])
    sounds = pipeline(guidance_scale=1.0, **asked).audios
    assert sounds.shape == (2, 2, 97)
    torch.testing.assert_close(teacher.codec.decode(ours, {}), sounds, atol=1e-4, rtol=0)


def test_audioldm2_is_the_pipeline(made, prompts):
    """The prompts one by one, and guided where the negative one has as many tokens."""
    folder, pipeline = made["audioldm2"]
    teacher = MusicPipeline(str(folder), prompts, negative_prompt="the dog sleeps", seconds=0.0041)
    assert teacher.event_shape == (4, 3, 4) and teacher.best == {"solver": "ddim", "steps": 200}
    noise, steps = drawn(teacher, 1), 4
    asked = {"num_inference_steps": steps, "audio_length_in_s": 0.0041, "negative_prompt": "the dog sleeps"}
    asked |= {"latents": teacher.process.sigma(teacher.grid(steps)[0]).float() * noise}
    for i, kappa in ((0, 3.0), (0, 1.0), (2, 1.0)):
        ours = teacher.sample(noise, {"prompt": torch.tensor([i])}, steps, kappa=kappa)
        own = asked | {"prompt": PROMPTS[i], "guidance_scale": kappa}
        close(ours, pipeline(**own, output_type="latent").audios, 3e-4)
        sounds = pipeline(**own, output_type="pt").audios
        assert sounds.shape == (1, 60)
        torch.testing.assert_close(teacher.codec.decode(ours, {})[:, 0], sounds, atol=1e-4, rtol=0)
