"""Stable Diffusion's upscaler: denoiser and sampler against the pipeline's own, on a tiny one."""

import json
import shutil
from functools import partial

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_pipelines
from helpers import trainer
from mutations import Mutation, prove

from distillkit import capabilities
from distillkit.cli import config
from distillkit.data import DistillData, TensorData
from distillkit.methods.dmd import DMD
from distillkit.spec import Outside
from distillkit.students.base import load_student
from distillkit.teachers.key import samples_key
from domains.super_resolution import upscaler
from domains.super_resolution.upscaler import SDUpscale, UpscaleNetwork, grain

PROMPT, NEGATIVE, LEVEL, STEPS = "a cat runs", "blurry", 30, 4
WITHIN = 3e-4  # of latents of std 0.5 to 10
ENDS = {"set_alpha_to_one": True}  # so that the pipeline's last step ends without noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("upscaler") / "tiny-upscaler"


@pytest.fixture(scope="module")
def pipeline(folder):
    return noised_as_here(tiny_pipelines.upscaler(folder, **ENDS))


@pytest.fixture(scope="module")
def teacher(pipeline, folder):
    return SDUpscale(str(folder), PROMPT, NEGATIVE, LEVEL, crop=64)


def noised_as_here(pipeline):
    """Gives the pipeline our noise of observations, in the place of a draw."""
    scheduler = pipeline.low_res_scheduler
    own = scheduler.add_noise
    scheduler.add_noise = lambda images, noise, level: own(images, grain(images), level)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def photographs(num=2, height=16, width=20, seed=3):
    levels = torch.rand(num, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255
    return levels.round() / 127.5 - 1


def drawn(num=2, height=16, width=20):
    return torch.randn(num, 4, height, width, generator=torch.Generator().manual_seed(1))


def theirs(pipeline, noise, low, scale=3.0, kind="latent", level=LEVEL):
    """The pipeline's result, which starts at our standard deviation."""
    pipeline.scheduler.set_timesteps(STEPS)
    first = pipeline.scheduler.alphas_cumprod[pipeline.scheduler.timesteps[0]]
    texts = {"prompt": [PROMPT] * len(low), "negative_prompt": [NEGATIVE] * len(low)}
    settings = {"num_inference_steps": STEPS, "guidance_scale": scale, "noise_level": level, "output_type": kind}
    latents = (1 - first).sqrt() * noise
    return pipeline(image=(low + 1) / 2, latents=latents, **texts, **settings).images


def check_sampler(teacher, pipeline):
    low, noise = photographs(), drawn()
    for kappa in (3.0, 1.0):
        expected = theirs(pipeline, noise, low, kappa)
        found = teacher.sample(noise, {"low": low}, STEPS, kappa=kappa)
        assert expected.std() > 0.5 and (found - expected).abs().max() < WITHIN
    each = teacher.sample(noise, {"low": low}, STEPS, kappa=torch.tensor([3.0, 1.0]))
    assert (each[1] - found[1]).abs().max() < WITHIN


def test_ddim_is_the_pipeline(teacher, pipeline):
    assert teacher.event_shape == (4, 16, 16) and teacher.best == {"solver": "ddim", "steps": 75}
    check_sampler(teacher, pipeline)


@pytest.mark.parametrize(
    "fault",
    [
        ("the prompts changed places", "self.texts[null.long()]", "self.texts[(~null).long()]"),
        ("the null's observation", "torch.where(null[:, None, None, None], low - NULL, low)", "low"),
        ("observations without noise", "seen.to(x.dtype)", "low"),
        ("times of order one", "self.num_steps * time", "time"),
        ("another class", "class_labels=level", "class_labels=level + 1"),
    ],
    ids=lambda fault: fault[0],
)
def test_faults_are_noticed(fault, teacher, pipeline):
    says, old, new = fault
    prove(Mutation(says, UpscaleNetwork.forward, old, new, partial(check_sampler, teacher, pipeline)))


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_other_predictions(prediction, tmp_path):
    pipeline = noised_as_here(tiny_pipelines.upscaler(tmp_path, **ENDS, prediction_type=prediction))
    check_sampler(SDUpscale(str(tmp_path), PROMPT, NEGATIVE, LEVEL, crop=64), pipeline)


def test_the_sample_is_the_denoised_one_of_the_last_step(tmp_path):
    """Where the released scheduler leaves the noise of time 0 in it."""
    pipeline = noised_as_here(tiny_pipelines.upscaler(tmp_path))
    teacher, last, step = SDUpscale(str(tmp_path), PROMPT, NEGATIVE, LEVEL, crop=64), [], pipeline.scheduler.step

    def kept(*args, **kwargs):
        last.append(step(*args, **kwargs | {"return_dict": True}))
        return (last[-1].prev_sample,)

    pipeline.scheduler.step = kept
    low, noise = photographs(), drawn()
    left = theirs(pipeline, noise, low)
    found = teacher.sample(noise, {"low": low}, STEPS, kappa=3.0)
    assert (found - last[-1].pred_original_sample).abs().max() < WITHIN
    assert 1e-3 < (found - left).abs().max() < 0.1


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_tables_are_the_schedulers(schedule):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule=schedule)
    alpha = upscaler.table(scheduler.config).alpha(torch.arange(1000).double())
    torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod.double(), rtol=1e-5, atol=1e-8)


def test_photographs_are_those_of_the_pipeline(teacher, pipeline):
    low, noise = photographs(), drawn()
    found = teacher.codec.decode(theirs(pipeline, noise, low), {"low": low})
    expected = theirs(pipeline, noise, low, kind="pt")
    assert found.shape == (2, 3, 64, 80) and expected.std() > 0.05
    assert ((found.clamp(-1, 1) + 1) / 2 - expected).abs().max() < 1e-5
    data = photographs(2, 64, 64)
    with torch.no_grad():
        own = pipeline.vae.encode(data).latent_dist.mean * 0.08333
    assert (teacher.codec.encode({"data": data, "low": low}) - own).abs().max() < 1e-6 < own.std()


# The observation's noise


def test_noise_follows_from_the_photograph():
    low = photographs(64, 16, 16)
    noise = grain(low)
    assert torch.equal(noise, grain(low)) and torch.equal(noise[5:6], grain(low[5:6]))
    flat = noise.flatten().double()
    assert abs(flat.mean()) < 0.02 and abs(flat.var() - 1) < 0.03 and abs((flat**4).mean() - 3) < 0.2
    rows = noise.flatten(1).double()
    apart = torch.corrcoef(rows)[~torch.eye(64, dtype=torch.bool)]
    assert apart.abs().max() < 0.2 and apart.std() < 1.2 * rows.shape[1] ** -0.5
    assert abs(torch.corrcoef(torch.stack([flat[:-1], flat[1:]]))[0, 1]) < 0.03
    changed = low[:1].clone()
    changed[0, 0, 3, 4] += 2 / 255 if changed[0, 0, 3, 4] < 0 else -2 / 255
    one = torch.stack([grain(changed).flatten(), noise[0].flatten()])
    assert abs(torch.corrcoef(one)[0, 1]) < 0.15  # one grey level more, another noise
    assert torch.equal(grain(low + 1e-4), noise)  # rounding does not change it


# Students


class Squares(DistillData):
    domain, context, classes = "super_resolution", ("low",), {}
    event_shape = (3, 64, 64)

    def load(self):
        return (TensorData({"data": photographs(8, 64, 64), "low": photographs(8, 16, 16)}),) * 3


def test_a_student_needs_the_vae_alone(teacher, folder, tmp_path):
    model = DMD(teacher, num_steps=2, kappa=2.0)
    trainer(6).fit(model, datamodule=Squares(batch_size=2))
    made_in = model.export(tmp_path / "student")
    student = load_student(made_in, trust=(str(folder),))
    for size in ((16, 16), (10, 21)):
        cond = {"low": photographs(2, *size)}
        made = student.sample(2, cond, seed=1)
        assert made.shape == (2, 3, 4 * size[0], 4 * size[1]) and torch.equal(made, model.sample(cond, 2, 1))
    cond = {"low": photographs(2, 16, 16)}
    stranger = load_student(made_in)
    assert stranger.sample(2, cond, decode=False).shape == (2, 4, 16, 16)
    with pytest.raises(Outside, match=f"wants to read {folder}.*undecoded, with decode=False"):
        stranger.sample(2, cond)
    with pytest.raises(ValueError, match="latents of .* were made for observations of"):
        stranger.sample(1, {"low": photographs(1, 10, 21)}, decode=False)


def test_samples_have_a_key(teacher, folder):
    asked = (2, {"low": photographs()}, 0, "ddim", teacher.grid(2), 3.0, 2)
    key = samples_key(teacher, *asked)
    assert key and str(folder) not in str(key)
    other = SDUpscale(str(folder), "a dog", NEGATIVE, LEVEL, crop=64)
    noisier = SDUpscale(str(folder), PROMPT, NEGATIVE, LEVEL + 1, crop=64)
    assert len({each.fingerprint() for each in (teacher, other, noisier)}) == 3


# What is refused


def changed(folder, to, file, **changes):
    shutil.copytree(folder, to)
    path = to / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(to)


def test_what_is_refused(pipeline, folder, tmp_path, monkeypatch):
    def refused(said, path=folder, **changes):
        with pytest.raises(ValueError, match=said) as error:
            SDUpscale(str(path), **{"crop": 64, **changes})
        assert "\n" not in str(error.value)

    refused("there is no directory stabilityai/none.*teacher.download=true", path="stabilityai/none")
    refused("4 times larger.*got scale 2.*set data.scale", scale=2)
    refused("got scale 4 and crop 50: set data.scale and data.crop", crop=50)
    refused("noise_level must be .* 350, got 351", noise_level=351)
    other = changed(folder, tmp_path / "other", "model_index.json", _class_name="StableDiffusionPipeline")
    refused("holds a StableDiffusionPipeline, but what is needed here is a StableDiffusionUpscalePipeline", path=other)
    euler = changed(folder, tmp_path / "euler", "scheduler/scheduler_config.json", _class_name="LCMScheduler")
    refused("describes a LCMScheduler", path=euler)
    clips = changed(folder, tmp_path / "clips", "scheduler/scheduler_config.json", clip_sample=True)
    refused("cuts denoised samples", path=clips)
    code = changed(folder, tmp_path / "code", "text_encoder/config.json", auto_map={"AutoModel": "evil.Model"})
    refused("names code of its own", path=code)
    shutil.rmtree(tmp_path / "other" / "vae")
    (tmp_path / "other" / "model_index.json").write_text((folder / "model_index.json").read_text())
    refused("vae/config.json does not exist", path=other)
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    torch.save(pipeline.unet.state_dict(), pickled / "unet" / "diffusion_pytorch_model.bin")
    (pickled / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refused("does not load as a UNet2DConditionModel", path=pickled)
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    refused(r"^pipelines are read with .*pip install 'distillkit\[hf\]'")


def test_its_decoder_can_be_tuned(teacher, folder):
    words = ["domain=super_resolution", "method=yonos_decoder", "teacher=sd_upscale", "teacher.path=x"]
    assert capabilities.lacking(config.hand_over(config.compose(words)[0])) is None
    decoder, cond = teacher.codec.decoder(), {"low": photographs()}
    made = teacher.codec.with_decoder(decoder).decode(drawn(), cond)
    torch.testing.assert_close(made, teacher.codec.decode(drawn(), cond))
    made.sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.codec.autoencoder(made.device).parameters())


def test_a_gan_on_its_features_is_refused():
    words = ["domain=super_resolution", "method=dmd", "teacher=sd_upscale", "teacher.path=x"]
    assert capabilities.lacking(config.hand_over(config.compose([*words, "model.kappa=4"])[0])) is None
    said = capabilities.lacking(config.hand_over(config.compose([*words, "model.gan=0.1"])[0]))
    assert said.startswith("DMD with gan=0.1 needs features, which SDUpscale and Photos do not give")
