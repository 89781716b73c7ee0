"""Pipelines of sound as teachers: our samplers against the pipelines' own, on tiny random ones."""

import json
import shutil
import wave
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_audio
from helpers import trainer

from distillkit import load_student, runs
from distillkit.cli import front
from distillkit.pipelines.teacher import ask
from domains.music.pipelines import MusicPipeline
from tests.battery.conftest import build

PROMPTS = ["a cat runs", "a dog sleeps on the moon", "a cat on the moon"]
NEGATIVE = "blurry"
WITHIN = 3e-4  # of the largest latent: float32, guided; Stable Audio's pipeline starts at samples of std 500
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


def in_turn(given, steps):
    """A `randn_tensor` that gives the draws of the steps; the last one, of level 0, is not seen."""
    numbers = iter([*range(1, steps), 0])
    return lambda *_, **__: given(next(numbers))


def close(ours, theirs, within=WITHIN):
    """Latents of the pipelines; the networks are wild, so latents have a std of about 15."""
    assert ours.shape == theirs.shape and theirs.std() > 0.3
    assert (ours - theirs).abs().max() < within * max(1, float(theirs.abs().max()))


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_stable_audio_is_the_pipeline(negative, made, prompts, monkeypatch):
    folder, pipeline = made["stable_audio"]
    teacher = MusicPipeline(str(folder), prompts, negative_prompt=negative, seconds=0.006)
    assert teacher.event_shape == (4, 16) and teacher.best == {"solver": "dpm_solver_sde", "steps": 100}
    noise, steps, cond = drawn(teacher), 6, {"prompt": torch.tensor(ORDER)}
    given = draws(teacher, steps)

    class Draws:
        """Our draws in place of a Brownian tree's; the last step has none."""

        def __init__(self, x, **options):
            self.step = 0

        def __call__(self, sigma, sigma_next):
            self.step += 1
            return given(self.step % steps)

    monkeypatch.setattr(tiny_audio.cosine(), "BrownianTreeNoiseSampler", Draws)
    asked = {"prompt": [PROMPTS[i] for i in ORDER], "num_inference_steps": steps, "audio_end_in_s": 0.006}
    asked |= {"negative_prompt": negative and [negative] * 2, "latents": teacher.grid(steps)[0].sin().float() * noise}
    for kappa in (4.0, 1.0):
        ours = teacher.sample(noise, cond, steps, kappa=kappa, draw=given)
        close(ours, pipeline(guidance_scale=kappa, **asked, output_type="latent").audios)
    sounds = pipeline(guidance_scale=1.0, **asked).audios
    assert sounds.shape == (2, 2, 96)
    close(teacher.codec.decode(ours, {}), sounds)


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
        monkeypatch.setattr(module, "randn_tensor", in_turn(given, steps))
        ours = teacher.sample(noise, cond, steps, kappa=kappa, draw=given)
        close(ours, pipeline(guidance_scale=kappa, **asked, output_type="latent").audios)
    monkeypatch.setattr(module, "randn_tensor", in_turn(given, steps))
    sounds = pipeline(guidance_scale=1.0, **asked).audios
    assert sounds.shape == (2, 2, 97)
    close(teacher.codec.decode(ours, {}).clamp(-1, 1), sounds)


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
        close(ours, pipeline(**own, output_type="latent").audios)
        sounds = pipeline(**own, output_type="pt").audios
        assert sounds.shape == (1, 60) and sounds.std() > 0.03
        assert (teacher.codec.decode(ours, {})[:, 0] - sounds).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["stable_audio", "stable_audio_3", "audioldm2"])
def test_half_precision_is_near(kind, made, prompts):
    folder, _ = made[kind]
    exact, half = (MusicPipeline(str(folder), prompts, seconds=0.006, dtype=dtype) for dtype in ("float32", "bfloat16"))
    noise, cond, t = drawn(exact), {"prompt": torch.tensor(ORDER)}, exact.grid(3)[1].float()
    ours, expected = (teacher.denoiser(noise, t, cond) for teacher in (half, exact))
    assert ours.dtype == torch.float32 and half.denoiser.network.models[0].dtype == torch.bfloat16
    assert 0 < (ours - expected).abs().max() < 0.1 * expected.abs().max()  # eight bits, and wild networks


# The codecs


def test_sounds_are_encoded_in_the_units_of_the_pipeline(made):
    generator = torch.Generator().manual_seed(2)
    for kind, seconds, frames in (("stable_audio", 0.006, 16), ("stable_audio_3", 0.0061, 13)):
        folder, pipeline = made[kind]
        family = MusicPipeline.family(folder)
        codec = family.make_codec(folder, {"seconds": seconds})
        channels, samples = codec.data_shape(family.latent_shape(folder, {"seconds": seconds}))
        assert (channels, samples, codec.sample_rate) == (2, int(seconds * 16_000), 16_000)
        sound = torch.rand(2, channels, samples, generator=generator) - 0.5
        whole = torch.cat([sound, torch.zeros(2, 2, 8 * frames - samples)], 2)
        with torch.no_grad():
            theirs = pipeline.vae.encode(whole)
        theirs = theirs.latents if kind == "stable_audio_3" else theirs.latent_dist.mean
        ours = codec.encode({"data": sound})
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)  # one by one, not as a batch
        assert ours.shape[1:] == family.latent_shape(folder, {"seconds": seconds}) and ours.std() > 0.05
        assert torch.equal(codec.encode({"latent": ours}), ours)


def test_mel_latents_have_no_way_back(made):
    folder, _ = made["audioldm2"]
    codec = MusicPipeline.family(folder).make_codec(folder, {"seconds": 0.004})
    with pytest.raises(ValueError, match="makes sounds and reads none"):
        codec.encode({"data": torch.zeros(1, 1, 60)})
    assert codec.encode({"latent": torch.ones(1, 4, 3, 4)}).sum() == 48


# Times


def test_a_students_own_time_reaches_the_model(made, prompts):
    """Between the pipeline's times: x_0 by hand from the model's output."""
    cond, x = {"prompt": torch.tensor([1])}, torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(3))
    folder, pipeline = made["stable_audio"]
    teacher = MusicPipeline(str(folder), prompts)
    tables = teacher.denoiser.network.texts(cond["prompt"])
    sigma = 2.3
    scheduler = pipeline.scheduler
    with torch.no_grad():
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        rotary = get_1d_rotary_pos_embed(4, 17, use_real=True, repeat_interleave_real=False)
        seen = scheduler.precondition_inputs(x, torch.tensor(sigma))
        out = pipeline.transformer(
            seen, scheduler.precondition_noise(sigma), tables["text"], tables["global"], rotary, return_dict=False
        )[0]
    expected = scheduler.precondition_outputs(x, out, torch.tensor(sigma))
    t = teacher.process.from_ratio(torch.tensor([sigma]))
    found = teacher.denoiser(x / (1 + sigma**2) ** 0.5, t, cond)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    off = teacher.denoiser(x / (1 + sigma**2) ** 0.5, t + 0.01, cond)
    assert (off - expected).abs().max() > 100 * (found - expected).abs().max()

    folder, pipeline = made["stable_audio_3"]
    teacher = MusicPipeline(str(folder), prompts, seconds=0.004)
    tables = teacher.denoiser.network.texts(cond["prompt"])
    x, t = x.reshape(1, -1)[:, :48].reshape(1, 6, 8), torch.tensor([0.37])
    with torch.no_grad():
        v = pipeline.transformer(x, t, tables["text"], tables["global"], tables["mask"], return_dict=False)[0]
    torch.testing.assert_close(teacher.denoiser(x, t, cond), x - 0.37 * v, atol=1e-4, rtol=0)


# Refusals


def edited(folder, part, tmp_path, **settings):
    """A copy of a pipeline with other settings of a part."""
    copied = tmp_path / f"{folder.name}-{'-'.join(settings)}"
    shutil.copytree(folder, copied)
    file = copied / part
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return copied


def test_what_is_refused(made, prompts, tmp_path):
    audio, three, mel = (made[kind][0] for kind in ("stable_audio", "stable_audio_3", "audioldm2"))

    def said(folder, **arguments):
        with pytest.raises(ValueError) as error:
            MusicPipeline(**{"path": str(folder), "prompts": prompts} | arguments)
        return str(error.value)

    assert said(audio, seconds=0.009) == (
        "sounds of this pipeline last 0.008 seconds at most, got 0.009: set teacher.seconds"
    )
    assert "seconds must be positive, got 0" in said(three, seconds=0) and "set teacher.seconds" in said(
        three, seconds=-1
    )
    assert "at least one frame of 0.000625 seconds, got 0.0003: set teacher.seconds" in said(mel, seconds=0.0003)
    assert "asked for prompts" in said(audio, prompts=None)
    config = "scheduler/scheduler_config.json"
    assert "sigma_data = 0.5; only 1.0 is known here" in said(edited(audio, config, tmp_path, sigma_data=0.5))
    assert "solver_type = 'heun'" in said(edited(audio, config, tmp_path, solver_type="heun"))
    assert "describes a DDIMScheduler, but" in said(edited(audio, config, tmp_path, _class_name="DDIMScheduler"))
    assert "num_train_timesteps = 1000" in said(edited(three, config, tmp_path, num_train_timesteps=1000))
    index = "model_index.json"
    speech = edited(mel, index, tmp_path, text_encoder_2=["transformers", "VitsModel"])
    assert "reads transcriptions (VitsModel)" in said(speech)
    strange = edited(audio, index, tmp_path, projection_model=["stable_audio", "StableAudioPipeline"])
    assert "only parts of diffusers and transformers are read" in said(strange)


# Students


LORA = ["student=lora", "student.rank=2", "fake_score=lora", "fake_score.rank=2"]


def words(folder, prompts, *more, method="dmd"):
    own = [
        "domain=music",
        "teacher=diffusers",
        "data=prompts",
        f"method={method}",
        f"teacher.path={folder}",
        f"data.path={prompts}",
    ]
    own += ["teacher.seconds=0.006", "teacher.steps=2", "data.batch_size=2", "trainer.max_steps=2"]
    return [*own, *more]


@pytest.mark.parametrize("kind, more", [("stable_audio", []), ("stable_audio_3", LORA), ("audioldm2", [])])
def test_students_take_steps_and_are_read_again(kind, more, made, prompts, tmp_path):
    folder, _ = made[kind]
    own = build(*words(folder, prompts, *more, "model.kappa=3", "model.num_steps=2"))
    own.model.require(own.data)
    run = trainer(max_steps=2)
    run.fit(own.model, own.data)
    assert run.global_step == 2 and not own.model.bad_steps.any()
    own.model.export(tmp_path / "student")
    student = load_student(tmp_path / "student", (str(folder),))
    cond = own.data.conditions(2)
    sounds = student.sample(2, cond)
    assert sounds.shape == (2, *own.data.event_shape)
    assert torch.equal(sounds, own.model.sample(cond, 2, 0)) and student.codec.sample_rate == 16_000
    ask(student, ["a dog runs"])
    assert not torch.equal(student.sample(1, {"prompt": torch.tensor([0])}), sounds[:1])


def test_a_run_from_the_command_line(made, prompts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", runs.OUT):
        monkeypatch.delenv(name, raising=False)
    folder, _ = made["stable_audio"]
    asked = [*LORA, "teacher.negative_prompt=blurry", "vars.callbacks.finish.num_samples=3", "model.num_steps=2"]
    assert front.main(["fit", *words(folder, prompts, *asked), "--out", "run"]) == 0
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["student", "teacher at its best", "teacher at 2 steps"]
    assert all(np.isfinite(row["metrics"]["distance"]) for row in result["rows"])
    with wave.open(str(tmp_path / "run" / "samples" / "student" / "sound_0.wav")) as file:
        assert file.getparams()[:4] == (2, 2, 16_000, 96)
    assert (tmp_path / "run" / "samples" / "comparison.png").is_file()
