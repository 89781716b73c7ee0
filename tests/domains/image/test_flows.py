"""Stable Diffusion 3, FLUX.1 and Sana as teachers, against their own pipelines (tiny, random)."""

import json
import math
from functools import cache

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
import tiny_image_flow as tiny
from helpers import f64, trainer

from distillkit import load_student
from distillkit.files import read_yaml
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from distillkit.pipelines.files import local
from distillkit.pipelines.teacher import ask
from distillkit.students.makers import Lora
from domains.image.pipelines import VAE, ImagePipeline
from domains.image.pipelines.codec import DC
from domains.image.pipelines.patches import packed
from domains.image.prompts import Prompts

PROMPTS = ["a cat runs", "a dog sleeps on the moon", "a cat on the moon"]
NEGATIVE = "blurry"
EULER = diffusers.FlowMatchEulerDiscreteScheduler
SIZE = {"height": 32, "width": 64}  # which FLUX.1 cuts into 16 x 8 patches
KINDS = {  # how a pipeline is built, its arguments, and the names of its guidance scale and of further options
    "sd3": (tiny.stable_diffusion_3, {}, "guidance_scale", {}),
    "sd3_without_t5": (tiny.stable_diffusion_3, {"with_t5": False}, "guidance_scale", {}),
    "flux_dev": (tiny.flux, {}, "true_cfg_scale", {}),
    "flux_schnell": (tiny.flux, {"dev": False}, "true_cfg_scale", {}),
    "sana": (tiny.sana, {}, "guidance_scale", {"use_resolution_binning": False}),
    "sana_euler": (tiny.sana, {"scheduler": EULER(shift=3.0)}, "guidance_scale", {"use_resolution_binning": False}),
}
WITHIN = 2e-5  # of the largest latent; measured at most 4e-6, of float32 (ours guides x_0, its times are float64)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return str(file)


@pytest.fixture(scope="module")
def built(tmp_path_factory, prompts):
    """`built(kind)`: the pipeline, its folder and its teacher."""

    @cache
    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        pipeline = KINDS[kind][0](folder, **KINDS[kind][1])
        pipeline.set_progress_bar_config(disable=True)
        return pipeline, folder, ImagePipeline(str(folder), prompts, negative_prompt=NEGATIVE, **SIZE)

    return make


def drawn(teacher, num=2):
    return torch.randn(num, *teacher.event_shape, generator=torch.Generator().manual_seed(1))


def unrounded(scheduler, monkeypatch):
    """Lets a multistep solver tell its model the times of its levels, not the integers below."""
    set_timesteps = scheduler.set_timesteps

    def exact(*args, **options):
        set_timesteps(*args, **options)
        scheduler.timesteps = 1000 * scheduler.sigmas[:-1]

    monkeypatch.setattr(scheduler, "set_timesteps", exact)


# Samples


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_pipelines(kind, built, monkeypatch):
    pipeline, _, teacher = built(kind)
    _, _, scale, more = KINDS[kind]
    steps = 4
    if kind == "sana":
        unrounded(pipeline.scheduler, monkeypatch)
    pack = packed if "flux" in kind else lambda x: x
    noise, cond = drawn(teacher), {"prompt": torch.tensor([2, 0])}
    start = pack(teacher.process.sigma(teacher.grid(steps)[0]).float() * noise)  # of Sana 0.9997 noise
    asked = {"prompt": [PROMPTS[2], PROMPTS[0]], "negative_prompt": [NEGATIVE] * 2, **SIZE, **more, "latents": start}
    for kappa in (3.0, 1.0):
        ours = teacher.sample(noise, cond, steps, kappa=kappa)
        expected = pipeline(num_inference_steps=steps, output_type="latent", **{scale: kappa}, **asked).images
        assert pack(ours).shape == expected.shape and expected.std() > 1
        assert (pack(ours) - expected).abs().max() < WITHIN * expected.abs().max()
    images = pipeline(num_inference_steps=steps, output_type="pt", **{scale: 1.0}, **asked).images
    decoded = teacher.codec.decode(ours, {})
    assert decoded.shape == (2, 3, 32, 64) == (2, *teacher.codec.data_shape(teacher.event_shape))
    assert (((decoded + 1) / 2).clamp(0, 1) - images).abs().max() < 1e-4 and images.std() > 0.02


def test_the_embedded_guidance_is_a_setting(built, prompts):
    pipeline, folder, teacher = built("flux_dev")
    other = ImagePipeline(str(folder), prompts, guidance=1.5, **SIZE)
    assert teacher.denoiser.network.settings == {"guidance": 3.5}  # as the pipeline's guidance_scale
    noise, cond = drawn(teacher), {"prompt": torch.tensor([2, 0])}
    asked = {"prompt": [PROMPTS[2], PROMPTS[0]], "num_inference_steps": 1, **SIZE, "latents": packed(noise)}
    expected = pipeline(guidance_scale=1.5, output_type="latent", **asked).images
    ours = packed(other.sample(noise, cond, 1))
    assert (ours - expected).abs().max() < WITHIN * expected.abs().max()
    assert (packed(teacher.sample(noise, cond, 1)) - expected).abs().max() > 0.01


# Times


def test_times_are_the_pipelines(built):
    def shifted(u, by):
        return pytest.approx((by * u / (1 + (by - 1) * u)).tolist(), abs=1e-6)

    teachers = {kind: built(kind)[2] for kind in KINDS}
    times = {kind: teacher.grid(4).tolist() for kind, teacher in teachers.items()}
    even, end = f64(1, 3 / 4, 1 / 2, 1 / 4), 3e-3 / (1 + 2e-3)
    to_end = torch.linspace(1, end, 4, dtype=torch.float64)  # shifted when the scheduler is built, and once more
    mu = 0.5 + (1.15 - 0.5) * (128 - 256) / (4096 - 256)  # of 16 x 8 tokens
    assert times["sd3"] == times["sana_euler"] == shifted(to_end, 3)
    assert times["flux_schnell"] == shifted(even, 1) and times["flux_dev"] == shifted(even, math.exp(mu))
    assert times["sana"] == shifted(torch.linspace(0.999, 0, 5, dtype=torch.float64)[:-1], 3)
    own = {kind: teacher.process.shift for kind, teacher in teachers.items()}  # of a student's times
    assert own == {kind: 3.0 for kind in KINDS} | {"flux_schnell": 1.0, "flux_dev": pytest.approx(math.exp(mu))}
    best = {kind: tuple(teacher.best.values()) for kind, teacher in teachers.items()}
    assert best == {kind: ("euler", 28) for kind in KINDS} | {"sana": ("dpm_solver", 20), "sana_euler": ("euler", 20)}


@pytest.mark.parametrize("kind", ["sd3", "flux_dev", "sana"])
def test_a_time_of_a_students_own(kind, built):
    """x_0 = x - t v, of the model as its pipeline calls it, with a time for each sample."""
    pipeline, _, teacher = built(kind)
    x, t, model = drawn(teacher), torch.tensor([0.3137, 0.9071]), pipeline.transformer
    texts = [PROMPTS[0], PROMPTS[1]]
    with torch.no_grad():
        if kind == "sd3":
            text, _, pooled, _ = pipeline.encode_prompt(texts, texts, texts, do_classifier_free_guidance=False)
            velocity = model(x, text, pooled, 1000 * t).sample
        elif kind == "sana":
            instruction = pipeline.__call__.__wrapped__.__defaults__[-1]
            text, mask, _, _ = pipeline.encode_prompt(texts, False, complex_human_instruction=instruction)
            velocity = model(x, text, 700 * t, encoder_attention_mask=mask).sample  # its timestep_scale is 0.7
        else:
            text, pooled, text_ids = pipeline.encode_prompt(texts)
            tokens = pipeline._pack_latents(x, *x.shape)
            ids = pipeline._prepare_latent_image_ids(2, x.shape[2] // 2, x.shape[3] // 2, "cpu", torch.float32)
            out = model(tokens, text, pooled, t, ids, text_ids, torch.full((2,), 3.5)).sample
            velocity = pipeline._unpack_latents(out, *SIZE.values(), pipeline.vae_scale_factor)
    expected = x - t.reshape(2, 1, 1, 1) * velocity
    found = teacher.denoiser(x, t, {"prompt": torch.tensor([0, 1])})
    assert (found - expected).abs().max() < WITHIN * expected.abs().max() and velocity.std() > 0.5


# Latents


@pytest.mark.parametrize("kind", ["sd3", "flux_dev", "sana"])
def test_images_are_encoded_in_the_units_that_are_diffused(kind, built):
    pipeline, folder, teacher = built(kind)
    images = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    encoded, config = teacher.codec.encode({"data": images}), pipeline.vae.config
    with torch.no_grad():
        if kind == "sana":
            expected = config.scaling_factor * pipeline.vae.encode(images).latent
        else:
            expected = (pipeline.vae.encode(images).latent_dist.mean - config.shift_factor) * config.scaling_factor
    assert type(teacher.codec) is (DC if kind == "sana" else VAE) and encoded.shape == (2, *teacher.event_shape)
    assert (encoded - expected).abs().max() < 1e-5 * expected.abs().max()


# Texts


def test_texts_are_read_once(built):
    """Sana's alone are cut, for its attention alone masks the tokens that a text does not use."""
    shapes = {kind: built(kind)[2].denoiser.network.texts.shapes for kind in KINDS}
    sd3 = {"text": [3, 7 + 256, 80], "pooled": [3, 64]}
    assert shapes["sd3"] == shapes["sd3_without_t5"] == sd3
    assert shapes["flux_dev"] == {"text": [3, 512, 32], "pooled": [3, 32]}
    assert shapes["sana"] == {"text": [3, 8, 32], "mask": [3, 8]}  # [BOS], the last of the instruction, six words
    texts = built("sana")[2].denoiser.network.texts
    assert texts.mask.sum(1).tolist() == [5, 8, 7, 2]  # the negative prompt follows no instruction
    assert built("sd3_without_t5")[2].denoiser.network.texts.text[:, 7:].abs().max() == 0


# Students


def lora(teacher):
    roles = {"student": Adam(lr=1e-2), "fake_score": Adam(lr=1e-2, updates=1)}
    maker = Lora(2, ["to_q", "to_k", "to_v"])
    return DMD(teacher, num_steps=2, kappa=3.0, student_maker=maker, fake_score_maker=maker, ema_halflife=1.0, **roles)


@pytest.mark.parametrize("kind", ["sd3_without_t5", "flux_dev", "sana"])
def test_a_student_is_trained_kept_and_asked(kind, built, prompts, tmp_path):
    pipeline, folder, teacher = built(kind)
    torch.manual_seed(0)
    model, run = lora(teacher), trainer(max_steps=2)
    run.fit(model, Prompts(prompts, str(folder), SIZE, batch_size=2))
    assert run.global_step == 2 and not model.bad_steps.any()
    model.eval().export(tmp_path, domain="image")
    expected = model.product().eval().sample(2, seed=5)
    student = load_student(tmp_path, (str(folder),))
    assert torch.equal(student.sample(2, seed=5), expected) and expected.shape == (2, 3, 32, 64)
    asked = drawn(teacher), torch.tensor(0.9), {"prompt": torch.tensor([0, 1])}
    assert (student.denoiser(*asked) - teacher.denoiser(*asked)).abs().max() > 1e-6  # it has learnt something
    ask(student, [PROMPTS[1], "a dog runs"], str(folder))
    assert torch.equal(student.network.texts.text[0], teacher.denoiser.network.texts.text[1])
    settings = read_yaml(tmp_path / "student.yaml")["denoiser"]["init_args"]["network"]["init_args"]["base"]
    own = {"sd3_without_t5": {"width": 80}, "flux_dev": {"guidance": 3.5}, "sana": None}
    assert settings["init_args"].get("settings") == own[kind]


def test_a_full_copy_is_trained_and_kept(built, prompts, tmp_path):
    _, folder, teacher = built("flux_dev")
    roles = {"student": Adam(lr=1e-3), "fake_score": Adam(lr=1e-3, updates=1)}
    model, run = DMD(teacher, num_steps=2, kappa=3.0, **roles), trainer(max_steps=1)
    run.fit(model, Prompts(prompts, str(folder), SIZE, batch_size=1))
    model.eval().export(tmp_path, domain="image")
    student = load_student(tmp_path, (str(folder),))
    assert student.network.settings == {"guidance": 3.5} and student.denoiser.process == teacher.process
    assert torch.equal(student.sample(1, seed=5), model.product().eval().sample(1, seed=5))


# What is refused


def test_what_is_refused(built, prompts):
    folders = {kind: str(built(kind)[1]) for kind in KINDS}
    for kind in ("sd3", "flux_dev", "sana"):
        with pytest.raises(ValueError, match="height of an image must be a multiple of 4, got 30: set teacher.height"):
            ImagePipeline(folders[kind], prompts, height=30)
        with pytest.raises(ValueError, match="say data=prompts data.path=FILE"):
            ImagePipeline(folders[kind])
    with pytest.raises(ValueError, match="has sides up to 32, got 48: set teacher.height or teacher.width"):
        ImagePipeline(folders["sd3"], prompts, width=96)
    for kind in ("sd3", "flux_schnell", "sana"):
        with pytest.raises(ValueError, match="is not told its guidance: leave teacher.guidance null"):
            ImagePipeline(folders[kind], prompts, guidance=3.5)


@pytest.mark.parametrize(
    "make, file, changes, said",
    [
        (tiny.stable_diffusion_3, "scheduler", {"use_dynamic_shifting": True}, "set use_dynamic_shifting to false"),
        (tiny.flux, "scheduler", {"time_shift_type": "linear"}, "time_shift_type = 'linear'; only 'exponential'"),
        (tiny.flux, "scheduler", {"_class_name": "DDIMScheduler"}, "what is needed here is a FlowMatchEuler"),
        (tiny.flux, "transformer", {"in_channels": 96, "out_channels": 64}, "wants more than a text"),  # FLUX.1-Fill
        (tiny.sana, "scheduler", {"solver_order": 3}, "solver_order = 3; only 2 is known"),
        (tiny.sana, "scheduler", {"use_flow_sigmas": False}, "must say use_flow_sigmas"),
    ],
)
def test_what_other_pipelines_lead_to(make, file, changes, said, prompts, tmp_path):
    make(tmp_path)
    config = tmp_path / file / ("scheduler_config.json" if file == "scheduler" else "config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ValueError, match=said):
        ImagePipeline(str(tmp_path), prompts)


def test_only_the_folders_of_a_pipeline_are_fetched(monkeypatch, tmp_path):
    """A repository of FLUX.1 keeps the same weights beside them, of 24 GB."""
    from huggingface_hub.utils import filter_repo_objects

    kept = ["model_index.json", "transformer/config.json", "transformer/w-00001-of-00003.safetensors"]
    kept += ["tokenizer/merges.txt", "tokenizer_2/spiece.model"]
    others = ["flux1-dev.safetensors", "ae.safetensors", "text_encoder/pytorch_model.bin", "transformer/model.py"]

    def fetch(name, allow_patterns):
        assert list(filter_repo_objects([*others, *kept], allow_patterns=allow_patterns)) == kept
        return tmp_path

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert local("someone/flux", download=True) == tmp_path
