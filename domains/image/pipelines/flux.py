"""FLUX.1 (Black Forest Labs, 2024): a transformer on latents in patches of 2 x 2, a flow."""

from __future__ import annotations

import torch

from domains.image.pipelines.codec import VAE, latent_size
from domains.image.pipelines.patches import GuidanceTold, Patches, packed, unpacked


class Flux(GuidanceTold, Patches):
    """FLUX.1: predicts the velocity, for tokens of T5 and the pooled text of CLIP.

    FLUX.1-dev was distilled from a guided model and is told a guidance scale: the setting
    `guidance`, one number for the teacher and its students. kappa is the pipeline's
    `true_cfg_scale`.
    """

    pipelines, kinds = ("FluxPipeline",), ("FluxTransformer2DModel",)
    codec, steps, guidance = VAE, 28, 3.5

    @classmethod
    def latent_shape(cls, root, size):
        config = cls.model_config(root)
        if config.get("out_channels") not in (None, config["in_channels"]):
            raise ValueError(f"{root} wants more than a text (an image): it is not read here")
        return config["in_channels"] // 4, *latent_size(root, size, 128, 2)

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        text, pooled, _ = pipeline.encode_prompt(prompts)
        return {"text": text, "pooled": pooled}

    def asked(self, shape):
        return super().asked(shape) | {"guidance_scale": self.settings.get("guidance", 0.0)}  # told, no guidance

    def call(self, model, x, time, cond):
        text, height, width = cond["text"], *x.shape[2:]
        axes = (torch.arange(size, device=x.device) for size in (1, height // 2, width // 2))
        places = torch.cartesian_prod(*axes)  # [tokens, 3]: 0, row and column
        out = model(
            packed(x),
            text,
            cond["pooled"],
            time,  # the model multiplies it, and the guidance scale, by 1000
            places,
            places.new_zeros(text.shape[1], 3),
            self.told(time),
            return_dict=False,
        )[0]
        return unpacked(out, height, width)
