"""Stable Diffusion 1 and 2 (arXiv 2112.10752): a U-Net on latents, a table of noise levels."""

from __future__ import annotations

from distillkit.pipelines import schedulers
from distillkit.pipelines.network import Network
from domains.image.pipelines.codec import VAE, latent_size


class StableDiffusion(Network):
    """Stable Diffusion 1.x and 2.x: predicts eps or v, for 77 tokens of CLIP."""

    pipelines, kinds, part = ("StableDiffusionPipeline",), ("UNet2DConditionModel",), "unet"
    codec, schedulers = VAE, schedulers.TABLES

    @classmethod
    def latent_shape(cls, root, size):
        config = cls.model_config(root)
        if config["in_channels"] != config["out_channels"] or config.get("time_cond_proj_dim"):
            raise ValueError(f"{root} wants more than a text (an image, a guidance scale): it is not read here")
        return config["in_channels"], *latent_size(root, size, config["sample_size"])

    @classmethod
    def process(cls, scheduler, shape):
        return schedulers.variance_preserving(scheduler)

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        return {"text": pipeline.encode_prompt(prompts, pipeline.device, 1, False)[0]}

    def call(self, model, x, time, cond):
        return model(x, 1000 * time, cond["text"], return_dict=False)[0]
