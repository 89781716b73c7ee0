"""Wan and CogVideoX as teachers: our samplers against the pipelines' own.

The pipelines are tiny, random and saved by diffusers.
"""

import json
import shutil
from functools import partial

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_pipelines
from helpers import f64

from distillkit.pipelines.prompts import read_prompts
from distillkit.pipelines.texts import padded
from distillkit.spec import Outside, from_spec, to_spec
from distillkit.students.base import load_student
from distillkit.students.few_step import FewStepStudent
from distillkit.teachers.key import samples_key
from domains.image.pipelines import ImagePipeline
from domains.video.pipelines import VAE, CogVideoXNetwork, VideoPipeline, ask

SIZE = {"frames": 9, "height": 16, "width": 32}
PROMPTS = ["a cat runs", "a dog sleeps on the moon", "a cat on the moon"]
NEGATIVE = "blurry"
WITHIN = 1e-4  # of the pipelines' latents, of std about 1; see docs/measured/teachers_from_disk.md


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("wan") / "tiny-wan"


@pytest.fixture(scope="module")
def wan(folder):
    return tiny_pipelines.wan(folder)


@pytest.fixture(scope="module")
def teacher(wan, folder, prompts):
    return VideoPipeline(str(folder), prompts=prompts, negative_prompt=NEGATIVE, **SIZE)


def theirs(pipeline, noise, steps, length, kappa=5.0, output_type="latent", **options):
    """The pipeline's result for `noise` [B, C, F, H, W] and the prompts 2 and 0.

    Latents have the same layout.
    """
    frames_first = type(pipeline).__name__ == "CogVideoXPipeline"
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt=[PROMPTS[2], PROMPTS[0]],
        negative_prompt=[NEGATIVE] * 2,
        height=SIZE["height"],
        width=SIZE["width"],
        num_frames=4 * noise.shape[2] - 3,
        num_inference_steps=steps,
        guidance_scale=kappa,
        latents=noise.transpose(1, 2) if frames_first else noise,
        output_type=output_type,
        max_sequence_length=length,
        **options,
    ).frames
    return made.transpose(1, 2) if frames_first or output_type == "pt" else made


def drawn(teacher, num=2):
    return torch.randn(num, *teacher.event_shape, generator=torch.Generator().manual_seed(1))


def assert_close(ours, expected):
    assert expected.std() > 0.5 and (ours - expected).abs().max() < WITHIN


# Samplers


def test_euler_on_wan_is_the_pipeline(teacher, wan):
    noise, cond = drawn(teacher), {"prompt": torch.tensor([2, 0])}
    assert teacher.event_shape == (16, 3, 2, 4) and teacher.best == {"solver": "euler", "steps": 50}
    for steps in (1, 5):
        assert_close(teacher.sample(noise, cond, steps, kappa=5.0), theirs(wan, noise, steps, 512))
    assert_close(teacher.sample(noise, cond, 5), theirs(wan, noise, 5, 512, kappa=1.0))


def test_wan_2_2_has_two_networks_with_a_guidance_each(tmp_path, prompts):
    pipeline = tiny_pipelines.wan(tmp_path, two=True)
    teacher = VideoPipeline(str(tmp_path), prompts=prompts, negative_prompt=NEGATIVE, guidance_2=2.0, **SIZE)
    noise, cond = drawn(teacher), {"prompt": torch.tensor([2, 0])}
    times = teacher.grid(6)
    assert 0 < int((times < teacher.denoiser.network.boundary).sum()) < 6
    ours = teacher.sample(noise, cond, 6, kappa=5.0)
    assert_close(ours, theirs(pipeline, noise, 6, 512, guidance_scale_2=2.0))
    each = teacher.sample(noise, cond, 6, kappa=torch.tensor([5.0, 1.0]))  # the second is not guided by either
    assert_close(each[0], ours[0])
    assert_close(each[1], teacher.sample(noise, cond, 6)[1])
    asked = (2, cond, 0, "euler", teacher.grid(2), 5.0, 1)
    key = samples_key(teacher, *asked)
    assert str(tmp_path) not in str(key) and samples_key(teacher, *asked) == key
    teacher.guidance_2 = None
    assert samples_key(teacher, *asked) != key
    assert_close(teacher.sample(noise, cond, 6, kappa=5.0), theirs(pipeline, noise, 6, 512))
    assert (teacher.sample(noise, cond, 6, kappa=5.0) - ours).abs().max() > 100 * WITHIN
    t = torch.tensor([0.9, 0.3])  # in training a batch has times on both sides
    apart = [teacher.denoiser(noise[i : i + 1], t[i : i + 1], {"prompt": cond["prompt"][i : i + 1]}) for i in (0, 1)]
    assert (teacher.denoiser(noise, t, cond) - torch.cat(apart)).abs().max() < 1e-5


def test_a_time_for_each_token_is_the_same_as_one(tmp_path, prompts):
    """Wan 2.2 TI2V, which text to video gives all tokens one time."""
    pipeline = tiny_pipelines.wan(tmp_path, per_token=True)
    teacher = VideoPipeline(str(tmp_path), prompts=prompts, negative_prompt=NEGATIVE, **SIZE)
    noise = drawn(teacher)
    assert_close(teacher.sample(noise, {"prompt": torch.tensor([2, 0])}, 3, kappa=5.0), theirs(pipeline, noise, 3, 512))


@pytest.mark.parametrize(
    "own",
    [{}, {"rotary": True}, {"snr_shift_scale": 1.0}, {"rotary": True, "frames_in_patch": 2}],
    ids=["2b", "rotary", "5b", "1.5"],
)
def test_ddim_on_cogvideox_is_the_pipeline(own, tmp_path, prompts):
    pipeline = tiny_pipelines.cogvideox(tmp_path, **own)
    size = SIZE | ({"frames": 13} if "frames_in_patch" in own else {})
    teacher = VideoPipeline(str(tmp_path), prompts=prompts, negative_prompt=NEGATIVE, **size)
    noise, cond = drawn(teacher), {"prompt": torch.tensor([2, 0])}
    assert teacher.event_shape == (4, size["frames"] // 4 + 1, 2, 4)
    for steps in (1, 5):
        assert_close(teacher.sample(noise, cond, steps, kappa=6.0), theirs(pipeline, noise, steps, 16, kappa=6.0))


@pytest.mark.parametrize("shift, zero", [(3.0, True), (1.0, True), (3.0, False)])
def test_the_process_of_cogvideox_is_the_schedulers_table(shift, zero):
    from diffusers import CogVideoXDDIMScheduler

    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", snr_shift_scale=shift, rescale_betas_zero_snr=zero
    )
    process, prediction = CogVideoXNetwork.process(scheduler, ())
    assert prediction == "v"
    alpha = process.alpha(torch.arange(1000).double())
    torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod.double(), rtol=1e-6, atol=2e-12)


def test_unipc_on_wan_is_the_pipelines(tmp_path, prompts):
    """The same but for the times, which the pipeline rounds down to integers for its network."""
    from diffusers import UniPCMultistepScheduler

    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    pipeline = tiny_pipelines.wan(tmp_path, scheduler=UniPCMultistepScheduler(**settings))
    teacher = VideoPipeline(str(tmp_path), prompts=prompts, negative_prompt=NEGATIVE, **SIZE)
    noise, cond = drawn(teacher), {"prompt": torch.tensor([2, 0])}
    assert teacher.best["solver"] == "unipc"
    scheduler, set_timesteps = pipeline.scheduler, pipeline.scheduler.set_timesteps

    def unrounded(*args, **options):
        set_timesteps(*args, **options)
        scheduler.timesteps = 1000 * scheduler.sigmas[:-1]

    scheduler.set_timesteps = unrounded
    for steps in (1, 2, 3, 7):
        assert_close(teacher.sample(noise, cond, steps, kappa=5.0), theirs(pipeline, noise, steps, 512))
    UniPCMultistepScheduler(**settings | {"solver_order": 3}).save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match="solver_order = 3"):
        VideoPipeline(str(tmp_path), prompts=prompts, **SIZE)


def test_unipc_tells_the_same_kind_of_times(tmp_path, prompts):
    """The released Wan samples with UniPC: s u / (1 + (s - 1) u) at even u, without the final 0."""
    from diffusers import UniPCMultistepScheduler

    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    tiny_pipelines.wan(tmp_path, scheduler=UniPCMultistepScheduler(**settings))
    teacher = VideoPipeline(str(tmp_path), prompts=prompts, **SIZE)
    u = torch.linspace(1, 1e-3, 9, dtype=torch.float64)[:-1]
    assert (teacher.grid(8) - 3 * u / (1 + 2 * u)).abs().max() < 2e-6  # it begins 1e-6 below 1
    assert teacher.process.grid(9)[:-1].tolist() == pytest.approx(
        (3 * u / (1 + 2 * u)).tolist(), abs=2e-3
    )  # a student's, which ends elsewhere
    UniPCMultistepScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match="use_flow_sigmas"):
        VideoPipeline(str(tmp_path), prompts=prompts, **SIZE)


# Texts


def test_prompts_are_read_once_and_guidance_leads_away_from_the_negative_one(teacher, wan):
    table = teacher.denoiser.network.texts.text
    assert teacher.classes == {"prompt": 3} and table.shape == (4, 6, 32)  # the longest has six words
    for number, text in enumerate([*PROMPTS, NEGATIVE]):
        expected = wan.encode_prompt([text], do_classifier_free_guidance=False, max_sequence_length=512)[0]
        found = padded(teacher.denoiser.network.texts(torch.tensor([number]))["text"], 512)
        assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)
    null = teacher.null_condition({"prompt": torch.tensor([0, 2])})
    assert null["prompt"].tolist() == [3, 3] and teacher.guidable
    assert not any("ncoder" in type(module).__name__ for module in teacher.modules())


def test_files_of_prompts(tmp_path):
    (tmp_path / "lines.txt").write_text("a cat\n\n  a dog \na cat\n")
    (tmp_path / "captions.csv").write_text('file,caption\n1.mp4,"a cat, running"\n2.mp4,a dog\n')
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "other.csv").write_text("file,title\n1.mp4,a cat\n")
    assert read_prompts(str(tmp_path / "lines.txt")) == ["a cat", "a dog"]
    assert read_prompts(str(tmp_path / "captions.csv")) == ["a cat, running", "a dog"]
    for name, said in (("empty.txt", "no prompts"), ("other.csv", "column `caption`"), ("none.txt", "no file")):
        with pytest.raises(ValueError, match=said):
            read_prompts(str(tmp_path / name))


# Decoding


@pytest.mark.parametrize("make, length", [(tiny_pipelines.wan, 512), (tiny_pipelines.cogvideox, 16)])
def test_clips_are_those_of_the_pipeline(make, length, tmp_path):
    pipeline = make(tmp_path)
    channels = 16 if length == 512 else 4
    noise = torch.randn(2, channels, 3, 2, 4, generator=torch.Generator().manual_seed(2))
    codec, latents = VAE(str(tmp_path)), theirs(pipeline, noise, 1, length)
    assert codec.data_shape(latents.shape[1:]) == (3, 9, 16, 32) and "vae" not in vars(codec)  # without its weights
    clips = codec.decode(latents, {})
    expected = theirs(pipeline, noise, 1, length, output_type="pt")  # [N, 3, F, H, W] in [0, 1]
    assert clips.shape == (2, 3, 9, 16, 32) and clips.std() > 0.02
    assert (((clips + 1) / 2).clamp(0, 1) - expected).abs().max() < 1e-5
    for frames in (2, 4):  # even, as the VAE itself has it
        made = codec.decode(noise.repeat(1, 1, 2, 1, 1)[:, :, :frames], {})
        assert made.shape[1:] == codec.data_shape((channels, frames, 2, 4))
    assert torch.equal(clips[1:], codec.decode(latents[1:], {}))  # one at a time
    again = from_spec(to_spec(codec), (str(tmp_path),))
    assert torch.equal(again.decode(latents, {}), clips)


@pytest.mark.parametrize("make", [tiny_pipelines.wan, tiny_pipelines.cogvideox])
def test_clips_are_encoded_in_the_units_that_are_diffused(make, tmp_path):
    """In which the pipelines that start from a video have them."""
    pipeline = make(tmp_path)
    clips = torch.rand(2, 3, 9, 16, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    encoded, vae = VAE(str(tmp_path)).encode({"data": clips}), pipeline.vae
    with torch.no_grad():
        own = vae.encode(clips).latent_dist.mean
    if hasattr(vae.config, "scaling_factor"):
        expected = own * vae.config.scaling_factor
    else:
        mean, std = (torch.tensor(v).reshape(-1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
        expected = (own - mean) / std
    assert encoded.shape == expected.shape and encoded.shape[2:] == (3, 2, 4)
    assert (encoded - expected).abs().max() < 1e-5 and expected.std() > 1e-3


# Students


def test_a_student_needs_no_pipeline(teacher, folder, tmp_path):
    """Its folder holds the network and the embeddings of its prompts."""
    copied = teacher.new_denoiser()
    assert all(p.requires_grad and p.dtype == torch.float32 for p in copied.parameters())
    student = FewStepStudent(copied, [1.0, 0.5], teacher.event_shape, teacher.classes, codec=teacher.codec).eval()
    student.save(tmp_path / "student")
    clips = student.sample(2, seed=1)
    assert clips.shape == (2, 3, 9, 16, 32) and clips.abs().max() <= 1
    assert torch.equal(load_student(tmp_path / "student", (str(folder),)).sample(2, seed=1), clips)
    with pytest.raises(
        Outside, match=f"wants to read {folder}.*--trust {folder}.*undecoded, with decode=False"
    ) as error:
        load_student(tmp_path / "student").sample(2)
    assert "\n" not in str(error.value)
    away = folder.with_name("away")
    shutil.move(folder, away)
    try:
        moved = load_student(tmp_path / "student")
    finally:
        shutil.move(away, folder)
    again, whole = (partial(s.sample, decode=False) for s in (moved, student))
    assert torch.equal(again(4, seed=1), whole(4, seed=1)) and again(0).shape == (0, 16, 3, 2, 4)
    with pytest.raises(
        ValueError, match=f"there is no directory {folder}.*put it back, or say where.*--pipeline DIR.*decode=False"
    ):
        moved.sample(4)
    one = again(1, {"prompt": [2]})
    ask(moved, ["a cat", PROMPTS[2]], str(folder), NEGATIVE)
    assert moved.classes == {"prompt": 2} and (again(1, {"prompt": [1]}) - one).abs().max() < 1e-5
    assert again(1, {"prompt": [0]}).sub(one).abs().max() > 1e-3
    assert student.denoiser.network.texts is teacher.denoiser.network.texts and len(teacher.classes) == 1


# What is refused


def changed(folder, to, file, **changes):
    """A copy of the pipeline whose json file says something else."""
    shutil.copytree(folder, to)
    path = to / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(to)


def test_what_is_refused(wan, folder, prompts, tmp_path, monkeypatch):
    def refused(said, path=folder, cls=VideoPipeline, **changes):
        with pytest.raises(ValueError, match=said):
            cls(str(path), **{"prompts": prompts, **SIZE, **changes})

    refused("there is no directory Wan-AI/none.*teacher.download=true", path="Wan-AI/none")
    refused("data=prompts", prompts=None)
    with pytest.raises(
        ValueError, match="holds a WanPipeline, which makes samples of the domain video: say domain=video"
    ):
        ImagePipeline(str(folder), prompts)
    refused(r"4 k \+ 1 frames", frames=10)
    refused("height of a clip must be a multiple of 16, got 24", height=24)
    refused("width must be at least 1, got 0", width=0)
    image = changed(folder, tmp_path / "image", "transformer/config.json", in_channels=36)
    refused("takes 36 channels, but WanPipeline gives it 16", path=image)
    other = changed(folder, tmp_path / "other", "scheduler/scheduler_config.json", _class_name="DDIMScheduler")
    refused("DDIMScheduler, but what is needed here is a FlowMatch", path=other)
    foreign = changed(folder, tmp_path / "foreign", "model_index.json", tokenizer=["os", "system"])
    refused("takes its tokenizer from .*only parts of diffusers and transformers", path=foreign)
    code = {"auto_map": {"AutoModel": "evil.Model"}}
    refused("names code of its own", path=changed(folder, tmp_path / "code", "text_encoder/config.json", **code))
    kernel = {"attn_implementation": "evil/kernel"}
    refused("code from a hub", path=changed(folder, tmp_path / "kernel", "text_encoder/config.json", **kernel))
    two = changed(folder, tmp_path / "two", "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"])
    refused("no boundary_ratio", path=two)
    shutil.rmtree(tmp_path / "two" / "text_encoder")
    refused("text encoder in .* does not load", path=two)
    (tmp_path / "pickle").mkdir()
    pickled = changed(folder, tmp_path / "pickle" / "p", "model_index.json")
    weights = tmp_path / "pickle" / "p" / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(wan.transformer.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    refused("does not load as a WanTransformer3DModel", path=pickled)
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    refused(r"^pipelines are read with .*pip install 'distillkit\[hf\]'")


def test_clips_of_cogvideox_1_5_fill_its_patches(tmp_path, prompts):
    tiny_pipelines.cogvideox(tmp_path, rotary=True, frames_in_patch=2)
    with pytest.raises(ValueError, match="9 frames are 3 latent ones.*teacher.frames to 13"):
        VideoPipeline(str(tmp_path), prompts=prompts, **SIZE)


def test_times_reach_the_network_as_they_were_trained(teacher, wan):
    """1000 t, and a student's denoised sample is x - t u."""
    x, t = drawn(teacher), f64(0.25, 1.0)
    text = padded(teacher.denoiser.network.texts(torch.tensor([0, 1]))["text"], 512)
    with torch.no_grad():
        velocity = wan.transformer(x, (1000 * t).float(), text, return_dict=False)[0]
        found = teacher.denoiser(x, t, {"prompt": torch.tensor([0, 1])})
    assert (found - (x - t.float()[:, None, None, None, None] * velocity)).abs().max() < 1e-5
