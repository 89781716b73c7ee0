"""Variance preserving image pipelines: our samplers against theirs, on tiny random ones.

N, C, H, W: images, channels, height, width.
"""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_image_vp as tiny
import tiny_pipelines
from helpers import f64, trainer

from distillkit import load_student, runs
from distillkit.cli import front
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from distillkit.pipelines.texts import padded
from distillkit.students.makers import Copy, Lora
from domains.image.data import NpzImages
from domains.image.pipelines import VAE, ImagePipeline
from domains.image.prompts import Prompts

PROMPTS = ["a cat runs", "a dog sleeps on the moon", "a cat on the moon"]
ASKED, LABELS = [2, 0], [3, 977]
SIZE = {"height": 16, "width": 24}
# of the largest value, three times what was measured: 3e-5 for DDPM uncut, whose values are above
# 100 before the pipeline cuts them, 1e-5 for Euler's method with its float32 levels, 4e-6 else
WITHIN = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prompts, and a few images with labels and without."""
    folder = tmp_path_factory.mktemp("pipelines")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "plain.npz", images=images)
    np.savez(folder / "labelled.npz", images=images, labels=np.arange(40) % 4)
    return folder


@pytest.fixture(scope="module")
def pipelines(folder):
    made = {"ddpm": tiny.pixels(folder / "ddpm"), "dit": tiny.dit(folder / "dit")}
    made |= {"xl": tiny.stable_diffusion_xl(folder / "xl"), "pixart": tiny.pixart(folder / "pixart", side=128)}
    for pipeline in made.values():
        pipeline.set_progress_bar_config(disable=True)
    return made


def teacher_of(folder, name, place=None, **settings):
    """The teacher of one of the pipelines, or of another of its family in `place`."""
    own = {"prompts": str(folder / "prompts.txt"), **(SIZE if name in ("xl", "pixart") else {})}
    return ImagePipeline(str(place or folder / name), **own | settings)


def draws(shape, num=1, seed=1):
    """What a pipeline draws from a generator with this seed, in turn."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, *shape, generator=generator) for _ in range(num)]


def first_sigma(teacher, steps):
    """The noise level of the first time: our samplers begin with it, pipelines with one."""
    return teacher.process.sigma(teacher.grid(steps)[0]).float()


def assert_close(ours, expected, spread=0.3):
    assert ours.shape == expected.shape and expected.std() > spread
    assert (ours - expected).abs().max() < WITHIN * max(1, float(expected.abs().max()))


# Pixels


def images_of(pipeline, steps, **options):
    """The pipeline's images in [-1, 1] for the noise of `draws`."""
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(2, torch.Generator().manual_seed(1), num_inference_steps=steps, output_type="pt", **options).images
    return 2 * made - 1


@pytest.mark.parametrize(
    "own, solver",
    [({}, "ancestral"), ({"variance_type": "fixed_large"}, "ancestral_large"), ({"clip_sample": False}, "ancestral")],
    ids=["small", "large", "whole"],
)
def test_ddpm(own, solver, tmp_path):
    """With the pipeline's own draws; the released models have either variance and cut images."""
    pipeline = tiny.pixels(tmp_path, **own)
    teacher = ImagePipeline(str(tmp_path))
    assert teacher.event_shape == (3, 16, 16) and teacher.best == {"solver": solver, "steps": 1000}
    assert teacher.classes == {} and not teacher.guidable and teacher.condition({"data": None}) == {}
    assert teacher.limit == (None if "clip_sample" in own else 1.0)
    for steps in (1, 5):
        noise = draws(teacher.event_shape, steps)
        ours = teacher.sample(noise[0] / first_sigma(teacher, steps), {}, steps, draw=lambda i, z=noise: z[i])
        expected = images_of(pipeline, steps)
        assert own or 0.2 < (expected.abs() < 1).float().mean() < 0.8  # the cut matters
        assert_close(ours.clamp(-1, 1), expected)


def test_the_oldest_pipelines_have_their_files_in_the_root(folder, pipelines, tmp_path):
    for part in ("unet", "scheduler"):
        shutil.copytree(folder / "ddpm" / part, tmp_path, dirs_exist_ok=True)
    shutil.copy(folder / "ddpm" / "model_index.json", tmp_path)
    found, expected = (ImagePipeline(str(place), steps=7) for place in (tmp_path, folder / "ddpm"))
    assert found.fingerprint() == expected.fingerprint() and found.best == expected.best
    assert Lora(2).make(found).network.base.read().sha256() == expected.denoiser.network.sha256()


@pytest.mark.parametrize("own", [{}, {"clip_sample": False, "prediction_type": "v_prediction"}], ids=["cut", "v"])
def test_ddim(own, tmp_path):
    """The step of a cut image is the pipeline's with the noise that the cut image implies."""
    pipeline = tiny.pixels(tmp_path, "DDIM", **own)
    teacher = ImagePipeline(str(tmp_path))
    assert teacher.best == {"solver": "ddim", "steps": 50}
    (noise,) = draws(teacher.event_shape)
    ours = teacher.sample(noise / first_sigma(teacher, 5), {}, 5)
    assert_close(ours.clamp(-1, 1), images_of(pipeline, 5, use_clipped_model_output=True))


# Classes


@pytest.mark.parametrize("kappa", [4.0, 1.0])
def test_dit(kappa, folder, pipelines, monkeypatch):
    pipeline, teacher, seen = pipelines["dit"], teacher_of(folder, "dit"), []
    assert teacher.event_shape == (4, 8, 8) and teacher.best == {"solver": "ddim", "steps": 50}
    assert teacher.classes == {"label": 1000} and teacher.limit is None
    assert ImagePipeline.offers({"path": str(folder / "dit")}) == {"denoiser", "classes", "labels"}
    assert ImagePipeline.offers({"path": str(folder / "ddpm")}) == {"denoiser"}
    decode = pipeline.vae.decode
    monkeypatch.setattr(pipeline.vae, "decode", lambda z: seen.append(z) or decode(z))
    (noise,) = draws(teacher.event_shape)
    ours = teacher.sample(noise / first_sigma(teacher, 5), {"label": torch.tensor(LABELS)}, 5, kappa=kappa)
    options = {"num_inference_steps": 5, "output_type": "pt", "generator": torch.Generator().manual_seed(1)}
    images = pipeline(LABELS, kappa, **options).images
    assert_close(ours, seen[0] * 0.18215)
    assert (((teacher.codec.decode(ours, {}) + 1) / 2).clamp(0, 1) - images).abs().max() < 1e-5 and images.std() > 0.02


def test_dit_cuts_where_its_scheduler_says_so(tmp_path):
    tiny.dit(tmp_path, clip_sample=True, clip_sample_range=2.0)
    teacher = ImagePipeline(str(tmp_path))
    cond = {"label": torch.tensor(LABELS)}
    assert teacher.sample(draws((4, 8, 8))[0], cond, 3, kappa=4.0).abs().max() == 2.0


def test_labels_are_dropped_by_methods_alone(folder, pipelines):
    """DiT's own layer would drop a tenth of them while it trains."""
    made = teacher_of(folder, "dit").new_denoiser()
    assert made.network.training and made.network.models[0].transformer_blocks[0].training
    x, label = torch.zeros(64, 4, 8, 8), torch.full((64,), 5)
    found = made(x, f64(500.0), {"label": label})
    assert (found - found[:1]).abs().max() < 1e-4 < (made(x, f64(500.0), {"label": label + 1}) - found).abs().max()


# Texts


def check(teacher, pipeline, steps, negative, **options):
    """Latents and images of the prompts 2 and 0, guided and not, are the pipeline's."""
    pipeline.set_progress_bar_config(disable=True)
    (noise,), cond = draws(teacher.event_shape), {"prompt": torch.tensor(ASKED)}
    height, width = teacher.codec.data_shape(teacher.event_shape)[1:]
    asked = {"prompt": [PROMPTS[i] for i in ASKED], "num_inference_steps": steps, "height": height, "width": width}
    asked |= {"latents": first_sigma(teacher, steps) * noise, **({"negative_prompt": negative} if negative else {})}
    for kappa in (4.0, 1.0):
        ours = teacher.sample(noise, cond, steps, kappa=kappa)
        expected = pipeline(guidance_scale=kappa, output_type="latent", **asked, **options).images
        assert_close(ours, expected)
    images = pipeline(guidance_scale=1.0, output_type="pt", **asked, **options).images
    assert (((teacher.codec.decode(ours, {}) + 1) / 2).clamp(0, 1) - images).abs().max() < 1e-4 and images.std() > 0.02


@pytest.mark.parametrize("zeros, negative", [(True, None), (True, "blurry"), (False, None)])
def test_stable_diffusion_xl(zeros, negative, folder, pipelines, tmp_path):
    """With Euler's method, of which the released one takes the steps at DDIM's times."""
    place, pipeline = folder / "xl", pipelines["xl"]
    if not zeros:
        place, pipeline = tmp_path, tiny.stable_diffusion_xl(tmp_path, zeros=False)
    teacher = teacher_of(folder, "xl", place, negative_prompt=negative)
    assert teacher.event_shape == (4, 8, 12) and teacher.best == {"solver": "ddim", "steps": 50}
    assert teacher.grid(50).tolist() == pytest.approx([20 * i + 1 for i in range(49, -1, -1)], abs=1e-3)
    null = teacher.denoiser.network.texts(torch.tensor([3]))
    assert all(bool(table.eq(0).all()) == (zeros and negative is None) for table in null.values())
    check(teacher, pipeline, 5, [negative] * 2 if negative else None)


def test_stable_diffusion_xl_has_a_size_of_its_own(folder, pipelines):
    teacher = teacher_of(folder, "xl", height=None, width=None)
    assert teacher.event_shape == (4, 16, 16) and teacher.denoiser.network.settings == {"size": [32, 32]}
    check(teacher, pipelines["xl"], 2, None)


@pytest.mark.parametrize("kind, side", [("Alpha", 8), ("Alpha", 128), ("Sigma", 8)])
def test_pixart(kind, side, folder, pipelines, tmp_path):
    """With DPM-Solver++(2M), above and below 15 steps, where the pipeline has a rule of its own.

    Texts are of different lengths, so that the mask matters.
    """
    place, pipeline = folder / "pixart", pipelines["pixart"]
    if side != 128:
        place, pipeline = tmp_path, tiny.pixart(tmp_path, kind, side=side)
    teacher = teacher_of(folder, "pixart", place, negative_prompt="blurry")
    assert teacher.event_shape == (4, 8, 12) and teacher.best == {"solver": "dpm_solver", "steps": 20}
    assert teacher.denoiser.network.texts.mask.sum(1).tolist() == [3, 6, 5, 1]
    own = {"use_resolution_binning": False, "clean_caption": False}
    for steps in (5,) if side == 128 else (5, 16):
        check(teacher, pipeline, steps, ["blurry"] * 2, **own)


# Stable Diffusion's released schedulers


RELEASED = tiny.LATENT | {"steps_offset": 1, "set_alpha_to_one": False}


def test_ddim_of_stable_diffusion_2_ends_at_the_denoised_sample(tmp_path, folder, monkeypatch):
    """The pipeline's last step goes to the noise of the table's first time, ours to the datum."""
    pipeline = tiny_pipelines.stable_diffusion(tmp_path, set_alpha_to_one=False)
    pipeline.set_progress_bar_config(disable=True)
    teacher, results, step = teacher_of(folder, "sd", tmp_path), [], pipeline.scheduler.step
    monkeypatch.setattr(
        pipeline.scheduler,
        "step",
        lambda *args, return_dict, **own: results.append(step(*args, **own)) or (results[-1].prev_sample,),
    )
    (noise,) = draws(teacher.event_shape)
    asked = {"prompt": [PROMPTS[i] for i in ASKED], "num_inference_steps": 5, "output_type": "latent"}
    theirs = pipeline(guidance_scale=1.0, latents=first_sigma(teacher, 5) * noise, **asked).images
    ours = teacher.sample(noise, {"prompt": torch.tensor(ASKED)}, 5)
    assert_close(ours, results[-1].pred_original_sample)
    left = pipeline.scheduler.final_alpha_cumprod
    assert left > 0.999 and (theirs - ours).abs().max() > 10 * WITHIN * ours.abs().max()


def test_pndm_of_stable_diffusion_1_has_the_same_times(folder):
    """Its steps, Adams and Bashforth's of fourth order, are replaced by DDIM's."""
    import diffusers

    from domains.image.pipelines.families import FAMILIES

    scheduler, family = diffusers.PNDMScheduler(**RELEASED, skip_prk_steps=True), FAMILIES["StableDiffusion"]
    process, _ = family.process(scheduler, ())
    scheduler.set_timesteps(50)
    expected = scheduler.timesteps.unique().flip(0)
    assert len(scheduler.timesteps) == 51 and family.grid(scheduler, process, 50, ()).tolist() == expected.tolist()


# Latents


@pytest.mark.parametrize("own", [{}, {"shift_factor": 0.2}, {"latents_mean": [0.1] * 4, "latents_std": [2.0] * 4}])
def test_images_are_encoded_in_the_units_that_are_diffused(own, tmp_path):
    vae = tiny_pipelines.autoencoder(scaling_factor=0.13025, **own)
    vae.save_pretrained(tmp_path / "vae")
    images = draws((3, 16, 16))[0].clamp(-1, 1)
    codec = VAE(str(tmp_path))
    z = codec.encode({"data": images})
    mean, std = own.get("latents_mean", [own.get("shift_factor", 0.0)])[0], own.get("latents_std", [1.0])[0]
    with torch.no_grad():
        expected = (vae.encode(images).latent_dist.mean - mean) * 0.13025 / std
        decoded = vae.decode(expected * std / 0.13025 + mean).sample
    assert z.shape == (2, 4, 8, 8) and (z - expected).abs().max() < 1e-5
    assert (codec.decode(z, {}) - decoded).abs().max() < 1e-5


# Students


def test_times_between_the_grids_reach_the_model(folder, pipelines):
    """A denoised sample is (x - sigma eps) / alpha, with eps at the network's own time."""
    t = f64(250.5, 601.25)
    for name, pipeline in pipelines.items():
        teacher = teacher_of(folder, name)
        (x,) = draws(teacher.event_shape)
        texts = teacher.denoiser.network.texts(torch.tensor([1, 2])) if name in ("xl", "pixart") else {}
        with torch.no_grad():
            if name == "ddpm":
                cond, eps = {}, pipeline.unet(x, t.float()).sample
            elif name == "dit":
                cond = {"label": torch.tensor([1, 2])}
                eps = pipeline.transformer(x, t.float(), cond["label"]).sample[:, :4]
            elif name == "xl":
                added = {"text_embeds": texts["pooled"], "time_ids": torch.tensor([[16.0, 24, 0, 0, 16, 24]] * 2)}
                eps = pipeline.unet(x, t.float(), texts["text"], added_cond_kwargs=added).sample
            else:
                sizes = {"resolution": torch.tensor([[16.0, 24]] * 2), "aspect_ratio": torch.tensor([[16 / 24]] * 2)}
                mask = torch.nn.functional.pad(texts["mask"], (0, 120 - texts["mask"].shape[1]))
                text = padded(texts["text"], 120)
                eps = pipeline.transformer(x, text, t.float(), sizes, encoder_attention_mask=mask).sample[:, :4]
            found = teacher.denoiser(x, t, {"prompt": torch.tensor([1, 2])} if texts else cond)
        alpha, sigma = (
            scale(t).float()[:, None, None, None] for scale in (teacher.process.alpha, teacher.process.sigma)
        )
        assert_close(found, (x - sigma * eps) / alpha)


def test_models_without_texts_can_be_told_more(folder, pipelines):
    """By a vector that is added to their input, zero at first."""
    for name, cond in (("ddpm", {}), ("dit", {"label": torch.tensor(LABELS)})):
        made = teacher_of(folder, name).new_denoiser()
        (x,), t = draws((3, 16, 16) if name == "ddpm" else (4, 8, 8)), f64(500.0)
        plain = made(x, t, cond)
        made.tell("step", categories=3)
        told = cond | {"step": torch.tensor([0, 2])}
        assert torch.equal(made(x, t, told), plain)
        made.network.embed["step"].weight.data[2] = 0.1
        shift = torch.tensor([0.0, 0.1])[:, None, None, None]
        found = made(x, t, told)
        made.network.embed["step"].weight.data.zero_()
        assert_close(found, made(x + shift, t, told) - shift / float(made.process.alpha(t)))


def data_of(folder, name):
    if name in ("xl", "pixart"):
        return Prompts(str(folder / "prompts.txt"), str(folder / name), SIZE, batch_size=2)
    file, classes = ("labelled.npz", 1000) if name == "dit" else ("plain.npz", None)
    return NpzImages(str(folder / file), classes, batch_size=2)


@pytest.mark.parametrize("name, maker", [("ddpm", Copy()), ("xl", Copy()), ("dit", Lora(2)), ("pixart", Lora(2))])
def test_students_learn_and_are_found_again(name, maker, folder, pipelines, tmp_path):
    torch.manual_seed(0)
    roles = {"student": Adam(lr=1e-2), "fake_score": Adam(lr=1e-2, updates=1)}
    kappa = 1.0 if name == "ddpm" else 3.0
    teacher = teacher_of(folder, name)
    model = DMD(teacher, student_maker=maker, fake_score_maker=maker, num_steps=2, kappa=kappa, **roles)
    before = {key: value.clone() for key, value in model.student.state_dict().items()}
    run = trainer(max_steps=2)
    run.fit(model, data_of(folder, name))
    assert run.global_step == 2 and not model.bad_steps.any()
    assert any(not torch.equal(value, before[key]) for key, value in model.student.state_dict().items())
    student = model.product()
    student.save(tmp_path)
    cond = {key: torch.tensor([1, 2]) for key in student.classes}
    loaded, samples = load_student(tmp_path, (str(folder),)), student.sample(2, cond, seed=3)
    assert samples.shape == (2, *((3, 16, 24) if teacher.event_shape[2] == 12 else (3, 16, 16)))
    assert torch.equal(loaded.sample(2, cond, seed=3), samples) and samples.isfinite().all()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", runs.OUT):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_run_with_labels_from_the_command_line(folder, pipelines, here, capsys):
    own = ["domain=image", "method=dmd", "teacher=diffusers", f"teacher.path={folder / 'dit'}", "teacher.steps=2"]
    own += ["data=npz", f"data.path={folder / 'labelled.npz'}", "data.batch_size=2", "trainer.max_steps=2"]
    own += ["vars.callbacks.finish.num_samples=3", "model.kappa=3", "data.features=pixels"]
    assert front.main(["fit", *own]) == 2
    assert "say data.num_classes=1000" in capsys.readouterr().err
    assert front.main(["fit", *own, "data.num_classes=1000", "--out", "run"]) == 0
    rows = json.loads((here / "run" / "evaluation.json").read_text())["rows"]
    assert [row["name"] for row in rows][:2] == ["student", "teacher at its best"]
    words = ["sample", "run", "-n", "2", "--cond", "label=7", "--out", "drawn", "--trust", str(folder)]
    assert front.main(words) == 0 and np.load("drawn/samples.npz")["samples"].shape == (2, 3, 16, 16)
    capsys.readouterr()
    own = [word.replace("/dit", "/ddpm").replace("labelled", "plain") for word in own]
    assert front.main(["fit", *own]) == 2
    assert "DMD with kappa=3.0 needs classes, which ImagePipeline and NpzImages do not give" in capsys.readouterr().err


# What is refused


def changed(folder, to, file, **changes):
    """A copy of a pipeline whose json file says something else."""
    shutil.copytree(folder, to)
    path = to / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return to


def test_what_is_refused(folder, pipelines, tmp_path):
    def refused(said, name, place=None, **settings):
        with pytest.raises(ValueError, match=said) as error:
            teacher_of(folder, name, place, **settings)
        assert "\n" not in str(error.value)

    refused("makes images of 16 x 16 alone, got height 32: leave teacher.height out", "ddpm", height=32)
    refused("makes images of 16 x 16 alone, got width 8: leave teacher.width out", "dit", width=8)
    refused("the height of an image must be a multiple of 2, got 15: set teacher.height", "xl", height=15)
    refused("the width of an image must be a multiple of 4, got 18: set teacher.width", "pixart", width=18)
    refused("asked for prompts: say data=prompts", "xl", prompts=None)
    file = "scheduler/scheduler_config.json"
    for name, changes, said in (
        ("ddpm", {"variance_type": "learned"}, "variance_type = 'learned'; known here are fixed_small"),
        ("ddpm", {"thresholding": True}, "says thresholding = True; only False is known here"),
        (
            "ddpm",
            {"_class_name": "EulerDiscreteScheduler"},
            "what is needed here is a DDPMScheduler or a DDIMScheduler",
        ),
        ("pixart", {"solver_order": 3}, "solver_order = 3; only 2 is known"),
        ("xl", {"trained_betas": [0.1] * 1000}, "a table of its own"),
    ):
        refused(said, name, changed(folder / name, tmp_path / said[:9], file, **changes))
    own = changed(folder / "ddpm", tmp_path / "classes", "unet/config.json", class_embed_type="timestep")
    refused("wants more than noise", "ddpm", own)
