"""Image pipelines as teachers: our samplers against the pipelines' own, on tiny random ones."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_pipelines

from distillkit.pipelines import files
from domains.image.pipelines import FAMILIES, ImagePipeline

PROMPTS = ["a cat runs", "a dog sleeps on the moon", "a cat on the moon"]
NEGATIVE = "blurry"
WITHIN = 2e-5  # of the largest latent; measured 9e-7


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return str(file)


def drawn(teacher, num=2):
    return torch.randn(num, *teacher.event_shape, generator=torch.Generator().manual_seed(1))


def first(teacher, noise, steps):
    """What the sampler of ours begins with: its noise level, not one."""
    return teacher.process.sigma(teacher.grid(steps)[0]).float() * noise


def check(teacher, pipeline, noise, kappa=3.0, steps=4, **options):
    """Latents and images of the prompts 2 and 0, guided and not, are the pipeline's."""
    pipeline.set_progress_bar_config(disable=True)
    cond = {"prompt": torch.tensor([2, 0])}
    asked = {"prompt": [PROMPTS[2], PROMPTS[0]], "negative_prompt": [NEGATIVE] * 2, "num_inference_steps": steps}
    asked |= {"latents": first(teacher, noise, steps), "output_type": "latent", **options}
    for scale in (kappa, 1.0):
        ours = teacher.sample(noise, cond, steps, kappa=scale)
        expected = pipeline(guidance_scale=scale, **asked).images
        assert ours.shape == expected.shape and expected.std() > 0.3
        assert (ours - expected).abs().max() < WITHIN * max(1, float(expected.abs().max()))
    images = pipeline(guidance_scale=1.0, **asked | {"output_type": "pt"}).images
    assert ((teacher.codec.decode(ours, {}) + 1) / 2).clamp(0, 1).sub(images).abs().max() < 1e-4 and images.std() > 0.02


def test_the_fingerprint_is_of_texts_not_of_the_last_bits_of_their_embeddings(tmp_path, prompts):
    tiny_pipelines.stable_diffusion(tmp_path / "sd")
    teacher = ImagePipeline(str(tmp_path / "sd"), prompts)
    before, table = teacher.fingerprint(), teacher.denoiser.network.texts.text
    table += 1e-6  # as of another machine
    assert teacher.fingerprint() == before
    others = [ImagePipeline(str(tmp_path / "sd"), prompts, negative_prompt="a dog")]
    (tmp_path / "one.txt").write_text(PROMPTS[0])
    others.append(ImagePipeline(str(tmp_path / "sd"), str(tmp_path / "one.txt")))
    next(teacher.denoiser.network.models.parameters()).data += 1e-6
    others.append(teacher)
    assert len({before, *(other.fingerprint() for other in others)}) == 4


@pytest.mark.parametrize("own", [{}, {"prediction_type": "v_prediction"}], ids=["eps", "v"])
def test_stable_diffusion(own, tmp_path, prompts):
    pipeline = tiny_pipelines.stable_diffusion(tmp_path, **own)
    teacher = ImagePipeline(str(tmp_path), prompts, negative_prompt=NEGATIVE)
    assert teacher.event_shape == (4, 16, 16) and teacher.best == {"solver": "ddim", "steps": 50}
    check(teacher, pipeline, drawn(teacher))


def test_a_folder_that_is_no_pipeline_is_not_searched(monkeypatch, tmp_path, prompts):
    monkeypatch.setattr(files, "check_foreign", lambda root: pytest.fail("the whole folder was looked at"))
    with pytest.raises(
        ValueError, match=r"model_index.json does not exist: give the directory of a diffusers pipeline"
    ):
        ImagePipeline(str(tmp_path), prompts)


@pytest.mark.parametrize("kind", ["DiffusionPipeline", "AutoModel", "logging", 3])
def test_a_folder_chooses_no_other_class_of_the_package(kind):
    with pytest.raises(ValueError, match="a model of StableDiffusion is a UNet2DConditionModel, not"):
        FAMILIES["StableDiffusion"]([{"_class_name": kind}])
