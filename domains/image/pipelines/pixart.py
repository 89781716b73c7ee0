"""PixArt-alpha (arXiv 2310.00426) and PixArt-Sigma (arXiv 2403.04692): transformers on latents."""

from __future__ import annotations

import torch

from distillkit.pipelines import schedulers
from distillkit.pipelines.network import Network
from distillkit.pipelines.texts import trimmed
from domains.image.pipelines.codec import VAE, latent_size, pixels


class PixArtAlpha(Network):
    """PixArt-alpha: predicts eps for tokens of T5; what it says of the variance is not used.

    Prompts are lowered in case and not cleaned further, and images have the size that is asked for.
    The pipeline's `clean_caption` and `use_resolution_binning` are off.

    Attributes:
        length: tokens of a prompt, at most.
    """

    pipelines, kinds = ("PixArtAlphaPipeline",), ("PixArtTransformer2DModel",)
    codec, schedulers, steps = VAE, schedulers.TABLES, 20
    length = 120

    @classmethod
    def latent_shape(cls, root, size):
        config = cls.model_config(root)
        return config["in_channels"], *latent_size(root, size, config["sample_size"], config["patch_size"])

    @classmethod
    def read_settings(cls, root, shape, asked):
        return {"size": pixels(root, shape[1:])}

    @classmethod
    def process(cls, scheduler, shape):
        return schedulers.variance_preserving(scheduler)

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        text, mask, _, _ = pipeline.encode_prompt(prompts, False, max_sequence_length=cls.length)
        return {"text": text, "mask": mask.bool()}

    @classmethod
    def trim(cls, tables):
        return trimmed(tables, tables["mask"], ["text", "mask"])

    def call(self, model, x, time, cond):
        size = torch.tensor(self.settings["size"], dtype=x.dtype, device=x.device).expand(len(x), 2)
        sizes = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}  # read by the models for 1024 pixels
        options = {"added_cond_kwargs": sizes, "encoder_attention_mask": cond["mask"], "return_dict": False}
        return model(x, cond["text"], 1000 * time, **options)[0][:, : x.shape[1]]


class PixArtSigma(PixArtAlpha):
    """PixArt-Sigma: as PixArt-alpha, for longer prompts."""

    pipelines, length = ("PixArtSigmaPipeline",), 300
