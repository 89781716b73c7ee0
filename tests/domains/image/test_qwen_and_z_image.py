"""Qwen-Image and Z-Image as teachers, against their pipelines: tiny random ones."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_image_new
from helpers import trainer

from distillkit import load_student
from distillkit.pipelines.files import import_diffusers
from domains.image.pipelines import ImagePipeline
from domains.image.pipelines.patches import packed, unpacked
from tests.battery.conftest import build

PROMPTS = ["a cat runs", "a dog sleeps on the moon", "a cat on the moon"]
NEGATIVE = "blurry"
STEPS = 4
WITHIN = 1e-4  # of latents up to 11, in float32; measured: 9e-6 for Qwen-Image, 4e-5 for Z-Image
SIDES = {"qwen_image": 4, "z_image": 2}  # pixels along a latent
KINDS = list(SIDES)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """For each kind its pipeline, folder and teacher, of latents [16, 16, 24]."""
    folder = tmp_path_factory.mktemp("pipelines")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    found = {"prompts": str(folder / "prompts.txt")}
    for kind, side in SIDES.items():
        pipeline = getattr(tiny_image_new, kind)(folder / kind)
        pipeline.set_progress_bar_config(disable=True)
        size = {"height": 16 * side, "width": 24 * side}
        teacher = ImagePipeline(str(folder / kind), found["prompts"], negative_prompt=NEGATIVE, **size)
        found[kind] = SimpleNamespace(pipeline=pipeline, path=str(folder / kind), teacher=teacher, size=size)
    return found


def noise(seed=1):
    return torch.randn(2, 16, 16, 24, generator=torch.Generator().manual_seed(seed))


def images(one, kind, kappa, out):
    """The pipeline's own answer for the prompts 2 and 0, latents as [B, C, H, W]."""
    asked = {"prompt": [PROMPTS[2], PROMPTS[0]], "negative_prompt": [NEGATIVE] * 2, "num_inference_steps": STEPS}
    asked |= {"output_type": out, **one.size}
    if kind == "z_image":
        return one.pipeline(**asked, latents=noise(), guidance_scale=kappa - 1).images
    made = one.pipeline(**asked, latents=packed(noise()), true_cfg_scale=kappa).images
    return unpacked(made, 16, 24) if out == "latent" else made


COND = {"prompt": torch.tensor([2, 0])}  # of different lengths


@pytest.mark.parametrize("kappa", [3.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_pipelines(kind, kappa, made):
    one = made[kind]
    ours, expected = one.teacher.sample(noise(), COND, STEPS, kappa=kappa), images(one, kind, kappa, "latent")
    assert one.teacher.event_shape == (16, 16, 24) and one.teacher.best == {"solver": "euler", "steps": 50}
    assert (ours - expected).abs().max() < WITHIN and expected.std() > 1
    each = one.teacher.sample(noise(), COND, STEPS, kappa=torch.tensor([kappa, 1.0]))  # one for each sample
    assert (each[:1] - expected[:1]).abs().max() < WITHIN
    assert (each[1:] - one.teacher.sample(noise(), COND, STEPS, kappa=1.0)[1:]).abs().max() < WITHIN


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_the_pipelines_and_are_encoded_in_its_units(kind, made):
    one = made[kind]
    codec, latents = one.teacher.codec, images(one, kind, 1.0, "latent")
    x = codec.decode(latents, {})
    assert ((x + 1) / 2 - images(one, kind, 1.0, "pt")).abs().max() < 1e-5 and x.std() > 0.02  # measured: 1e-6
    assert x.shape[1:] == codec.data_shape((16, 16, 24)) == (3, *one.size.values())
    vae = one.pipeline.vae
    clip = x[:, :, None] if kind == "qwen_image" else x
    with torch.no_grad():
        own = vae.encode(clip).latent_dist.mode()
        back = vae.decode(own, return_dict=False)[0].clamp(-1, 1)
    z = codec.encode({"data": x})  # decoded again as the pipeline does it, these are the autoencoder's own latents
    assert (codec.decode(z, {}) - back.reshape(x.shape)).abs().max() < 1e-5 and back.std() > 0.02
    own = own.reshape(z.shape)
    mean, std = codec.units()
    assert ((own - mean) / std - z).abs().max() < 1e-5 and not torch.allclose(own, z, atol=0.05)


def test_guidance_of_qwen_image_keeps_the_length_of_each_patch(made):
    teacher = made["qwen_image"].teacher
    x, t = noise(), torch.tensor(0.7)
    one, null = teacher.denoiser(x, t, COND), teacher.denoiser(x, t, teacher.null_condition(COND))
    linear, renormalised = null + 3 * (one - null), teacher.stepper(COND, 3.0)(x, t)
    lengths = [packed(x - x_0).norm(dim=2) for x_0 in (one, renormalised, linear)]
    assert torch.allclose(lengths[0], lengths[1], rtol=1e-5) and (lengths[0] / lengths[2] - 1).abs().max() > 0.01
    along = torch.cosine_similarity(packed(x - linear), packed(x - renormalised), dim=2)
    assert along.min() > 1 - 1e-5


def test_times_of_the_grid_and_of_the_process(made):
    """mu of the released Qwen-Image at 96 patches by hand, and a grid that ends at 0.02."""
    qwen, z = made["qwen_image"].teacher, made["z_image"].teacher
    mu = torch.tensor(0.5 + (0.9 - 0.5) / (8192 - 256) * (96 - 256))
    assert qwen.process.shift == pytest.approx(float(mu.exp())) and float(qwen.grid(STEPS)[-1]) == pytest.approx(0.02)
    u = torch.tensor([1, 0.75, 0.5, 0.25], dtype=torch.float64)
    assert z.process.shift == 3 and torch.allclose(z.grid(STEPS), 3 * u / (1 + 2 * u), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_students_own_time_reaches_the_model(kind, made):
    """`x - t v` with the raw model, one text after the other without padding."""
    one = made[kind]
    x, t, model = noise(), torch.tensor([0.377, 0.812]), one.pipeline.transformer
    got = one.teacher.denoiser(x, t, COND)
    for i, prompt in enumerate((PROMPTS[2], PROMPTS[0])):
        with torch.no_grad():
            if kind == "z_image":
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
    x = noise()
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [[], LORA], ids=["copies", "adapters"])
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
