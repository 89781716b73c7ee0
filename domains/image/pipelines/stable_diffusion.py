"""Stable Diffusion (arXiv 2112.10752, XL: arXiv 2307.01952): a U-Net on latents."""

from __future__ import annotations

import torch

from distillkit.pipelines import schedulers
from distillkit.pipelines.network import Network
from domains.image.pipelines.codec import VAE, latent_size, pixels


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


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL: reads two encoders' tokens, a pooled text, and the size of the image.

    The size is told as both the original and the wanted one, without crop, as the pipeline does it.
    """

    pipelines = ("StableDiffusionXLPipeline",)

    @classmethod
    def read_settings(cls, root, shape, asked):
        return {"size": pixels(root, shape[1:])}

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        text, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    @classmethod
    def encode_negative(cls, pipeline, prompt, settings):
        """As the pipeline: None is zeros where its index says so (force_zeros_for_empty_prompt)."""
        _, text, _, pooled = pipeline.encode_prompt([""], negative_prompt=prompt)
        return {"text": text, "pooled": pooled}

    def call(self, model, x, time, cond):
        height, width = self.settings["size"]
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=x.dtype, device=x.device)
        added = {"text_embeds": cond["pooled"], "time_ids": sizes.expand(len(x), -1)}
        return model(x, 1000 * time, cond["text"], added_cond_kwargs=added, return_dict=False)[0]
