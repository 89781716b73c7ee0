"""Qwen-Image, Z-Image and FLUX.2 as teachers, against their pipelines: tiny random ones."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_image_new
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from helpers import trainer

from distillkit import load_student
from distillkit.pipelines.files import import_diffusers
from domains.image.pipelines import ImagePipeline
from domains.image.pipelines.flux_2 import shift
from domains.image.pipelines.patches import packed, unpacked
from tests.battery.conftest import build

PROMPTS = ["a cat runs", "a dog sleeps on the moon", "a cat on the moon"]
NEGATIVE = "blurry"
STEPS = 4
WITHIN = 1e-4  # of latents up to 11, in float32; measured: 4e-5 for Z-Image, below 1e-5 for the others
SHAPES = {"qwen_image": (16, 16, 24), "z_image": (16, 16, 24), "flux_2": (32, 8, 12), "klein": (32, 8, 12)}
SIDES = {"qwen_image": 4, "z_image": 2, "flux_2": 4, "klein": 4}  # pixels along a latent
BUILD = {kind: getattr(tiny_image_new, kind) for kind in ("qwen_image", "z_image", "flux_2")}
BUILD["klein"] = partial(tiny_image_new.flux_2, klein=True)
KINDS = list(SHAPES)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """For each kind its pipeline, folder and teacher."""
    folder = tmp_path_factory.mktemp("pipelines")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    found = {"prompts": str(folder / "prompts.txt")}
    for kind, (_, height, width) in SHAPES.items():
        pipeline = BUILD[kind](folder / kind)
        pipeline.set_progress_bar_config(disable=True)
        size = {"height": height * SIDES[kind], "width": width * SIDES[kind]}
        negative = None if kind == "klein" else NEGATIVE  # its pipeline takes none
        teacher = ImagePipeline(str(folder / kind), found["prompts"], negative_prompt=negative, **size)
        found[kind] = SimpleNamespace(pipeline=pipeline, path=str(folder / kind), teacher=teacher, size=size)
    return found


def noise(kind):
    return torch.randn(2, *SHAPES[kind], generator=torch.Generator().manual_seed(1))


def images(one, kind, kappa, out):
    """The pipeline's own answer for the prompts 2 and 0, latents in the units of sampling."""
    asked = {"prompt": [PROMPTS[2], PROMPTS[0]], "num_inference_steps": STEPS, "output_type": out, **one.size}
    if kind in ("flux_2", "klein"):
        found = one.pipeline(**asked, latents=noise(kind), guidance_scale=kappa if kind == "klein" else 4.0).images
    elif kind == "z_image":
        found = one.pipeline(
            **asked, negative_prompt=[NEGATIVE] * 2, latents=noise(kind), guidance_scale=kappa - 1
        ).images
    else:
        asked |= {"negative_prompt": [NEGATIVE] * 2, "true_cfg_scale": kappa}
        found = one.pipeline(**asked, latents=packed(noise(kind))).images
    if out != "latent" or kind == "z_image":
        return found
    if kind == "qwen_image":
        return unpacked(found, 16, 24)
    if kind == "flux_2":
        return found.transpose(1, 2).unflatten(2, (8, 12))
    bn = one.pipeline.vae.bn  # Klein's latents have lost their units
    found = (F.pixel_unshuffle(found, 2) - bn.running_mean.reshape(-1, 1, 1)).transpose(1, -1)
    return (found / (bn.running_var + 1e-4).sqrt()).transpose(1, -1)


COND = {"prompt": torch.tensor([2, 0])}  # of different lengths


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_pipelines(kind, made):
    one = made[kind]
    assert one.teacher.event_shape == SHAPES[kind] and one.teacher.best == {"solver": "euler", "steps": 50}
    found = {}
    for kappa in (3.0, 1.0) if kind != "flux_2" else (1.0,):  # it is told its guidance
        found[kappa] = one.teacher.sample(noise(kind), COND, STEPS, kappa=kappa)
        expected = images(one, kind, kappa, "latent")
        assert (found[kappa] - expected).abs().max() < WITHIN and expected.std() > 1
    if kind != "flux_2":
        assert (found[3.0] - found[1.0]).abs().max() > 0.1
        each = one.teacher.sample(noise(kind), COND, STEPS, kappa=torch.tensor([3.0, 1.0]))  # one for each sample
        assert (each[0] - found[3.0][0]).abs().max() < WITHIN and (each[1] - found[1.0][1]).abs().max() < WITHIN


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_the_pipelines_and_are_encoded_in_its_units(kind, made):
    one = made[kind]
    codec, latents = one.teacher.codec, images(one, kind, 1.0, "latent")
    x = codec.decode(latents, {})
    assert (
        ((x + 1) / 2).clamp(0, 1) - images(one, kind, 1.0, "pt")
    ).abs().max() < 1e-5 and x.std() > 0.02  # measured: 1e-6
    assert x.shape[1:] == codec.data_shape(SHAPES[kind]) == (3, *one.size.values())
    vae = one.pipeline.vae
    clip = x[:, :, None] if kind == "qwen_image" else x
    with torch.no_grad():
        own = vae.encode(clip).latent_dist.mode()
        back = vae.decode(own, return_dict=False)[0]
    z = codec.encode({"data": x})  # decoded again as the pipeline does it, these are the autoencoder's own latents
    assert (codec.decode(z, {}) - back.reshape(x.shape)).abs().max() < 1e-5 and back.std() > 0.02
    own = F.pixel_unshuffle(own, 2) if kind in ("flux_2", "klein") else own.reshape(z.shape)
    mean, std = codec.units()
    assert ((own - mean) / std - z).abs().max() < 1e-5 and not torch.allclose(own, z, atol=0.05)


def test_guidance_of_qwen_image_keeps_the_length_of_each_patch(made):
    teacher = made["qwen_image"].teacher
    x, t = noise("qwen_image"), torch.tensor(0.7)
    one, null = teacher.denoiser(x, t, COND), teacher.denoiser(x, t, teacher.null_condition(COND))
    linear, renormalised = null + 3 * (one - null), teacher.stepper(COND, 3.0)(x, t)
    lengths = [packed(x - x_0).norm(dim=2) for x_0 in (one, renormalised, linear)]
    assert torch.allclose(lengths[0], lengths[1], rtol=1e-5) and (lengths[0] / lengths[2] - 1).abs().max() > 0.01
    along = torch.cosine_similarity(packed(x - linear), packed(x - renormalised), dim=2)
    assert along.min() > 1 - 1e-5


def test_times_of_the_grid_and_of_the_process(made):
    """Qwen-Image's mu at 96 patches is by hand, FLUX.2's that of its pipeline."""
    qwen, z = made["qwen_image"].teacher, made["z_image"].teacher
    mu = torch.tensor(0.5 + (0.9 - 0.5) / (8192 - 256) * (96 - 256))
    assert qwen.process.shift == pytest.approx(float(mu.exp())) and float(qwen.grid(STEPS)[-1]) == pytest.approx(0.02)
    u = torch.tensor([1, 0.75, 0.5, 0.25], dtype=torch.float64)
    assert z.process.shift == 3 and torch.allclose(z.grid(STEPS), 3 * u / (1 + 2 * u), atol=1e-6)
    for tokens, steps in ((96, 50), (4096, 28), (5000, 4)):
        assert shift(tokens, steps) == pytest.approx(math.exp(compute_empirical_mu(tokens, steps)))
    assert made["flux_2"].teacher.process.shift == shift(96, 50)


def test_flux_2_is_told_its_guidance(made):
    one = made["flux_2"]
    other = ImagePipeline(one.path, made["prompts"], **one.size, guidance=2.0)
    assert other.denoiser.network.settings == {"guidance": 2.0}
    ours = other.sample(noise("flux_2"), COND, STEPS)
    assert (ours - one.teacher.sample(noise("flux_2"), COND, STEPS)).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_students_own_time_reaches_the_model(kind, made):
    """`x - t v` with the raw model, one text after the other without padding."""
    one = made[kind]
    x, t, model = noise(kind), torch.tensor([0.377, 0.812]), one.pipeline.transformer
    got = one.teacher.denoiser(x, t, COND)
    for i, prompt in enumerate((PROMPTS[2], PROMPTS[0])):
        with torch.no_grad():
            if kind in ("flux_2", "klein"):
                text, words = one.pipeline.encode_prompt([prompt])
                places = one.pipeline._prepare_latent_ids(x[i : i + 1])
                told = torch.tensor([4.0]) if kind == "flux_2" else None
                tokens = x[i : i + 1].flatten(2).mT
                v = model(tokens, text, t[i : i + 1], places, words, told, return_dict=False)[0].mT.reshape(x[i].shape)
            elif kind == "z_image":
                text, _ = one.pipeline.encode_prompt([prompt], do_classifier_free_guidance=False)
                v = -model([x[i][:, None]], 1 - t[i : i + 1], text, return_dict=False)[0][0][:, 0]
            else:
                text, _ = one.pipeline.encode_prompt([prompt])
                places = [[(1, 8, 12)]]
                tokens = model(packed(x[i : i + 1]), text, None, t[i : i + 1], places, return_dict=False)[0]
                v = unpacked(tokens, 16, 24)[0]
        assert (got[i] - (x[i] - t[i] * v)).abs().max() < WITHIN and v.std() > 0.5


def test_tokens_are_patches_row_by_row():
    """Against the pipeline's own packing."""
    x = noise("qwen_image")
    tokens = import_diffusers().QwenImagePipeline._pack_latents(x, 2, 16, 16, 24)
    assert torch.equal(packed(x), tokens) and torch.equal(unpacked(tokens, 16, 24), x)


def test_texts_are_cut_to_the_longest_and_the_null_is_a_blank(made):
    texts = made["qwen_image"].teacher.denoiser.network.texts(torch.arange(4))
    lengths = texts["text_mask"].sum(1)
    assert lengths.tolist()[:3] == [lengths[3] + 2, lengths[3] + 5, lengths[3] + 4]  # against the one word of the null
    assert texts["text"].shape[1] == lengths.max() and texts["text_mask"].dtype == torch.bool
    blank = ImagePipeline(made["qwen_image"].path, made["prompts"], **made["qwen_image"].size)
    own, mask = made["qwen_image"].pipeline.encode_prompt([" "])
    null = blank.denoiser.network.texts(torch.tensor([3]))
    assert mask is None and (null["text"][null["text_mask"]] - own[0]).abs().max() < 1e-5


def words(made, kind, method):
    one = made[kind]
    own = ["domain=image", f"method={method}", "teacher=diffusers", f"teacher.path={one.path}", "data=prompts"]
    own += [f"data.path={made['prompts']}", *(f"teacher.{key}={value}" for key, value in one.size.items())]
    return [*own, "teacher.steps=2", "data.batch_size=2", "trainer.max_steps=2", "model.kappa=3", "model.num_steps=2"]


LORA = ["student=lora", "student.rank=2", "fake_score=lora", "fake_score.rank=2"]


@pytest.mark.parametrize(
    "kind, more",
    [
        ("qwen_image", []),
        ("z_image", LORA),
        ("flux_2", LORA),
        pytest.param("qwen_image", LORA, marks=pytest.mark.slow),
        pytest.param("klein", [], marks=pytest.mark.slow),
    ],
)
def test_students_train_and_come_back(kind, more, made, tmp_path):
    own = build(*words(made, kind, "dmd"), *more)
    own.model.require(own.data)
    run = trainer(max_steps=2)
    run.fit(own.model, own.data)
    assert run.global_step == 2 and not own.model.bad_steps.any()
    student = own.model.product()
    student.save(tmp_path / "student")
    back = load_student(tmp_path / "student", (made[kind].path,))
    ours, again = (each.sample(2, {"prompt": torch.tensor([2, 0])}, seed=3) for each in (student, back))
    assert ours.shape == (2, 3, *made[kind].size.values()) and ours.isfinite().all() and torch.equal(ours, again)


def test_what_is_refused(made, tmp_path):
    qwen, z = made["qwen_image"], made["z_image"]
    with pytest.raises(ValueError, match="height of an image must be a multiple of 8, got 20: set teacher.height"):
        ImagePipeline(qwen.path, made["prompts"], height=20, width=16)
    with pytest.raises(ValueError, match="width of an image must be a multiple of 4, got 18: set teacher.width"):
        ImagePipeline(z.path, made["prompts"], height=16, width=18)
    with pytest.raises(ValueError, match="asked for prompts: say data=prompts"):
        ImagePipeline(qwen.path)
    tiny_image_new.qwen_image(tmp_path / "linear", time_shift_type="linear")
    with pytest.raises(ValueError, match="time_shift_type = 'linear'; only 'exponential' is known here"):
        ImagePipeline(str(tmp_path / "linear"), made["prompts"])
    tiny_image_new.z_image(tmp_path / "omni", siglip_feat_dim=8)
    with pytest.raises(ValueError, match="wants other patches or more than a text"):
        ImagePipeline(str(tmp_path / "omni"), made["prompts"])
