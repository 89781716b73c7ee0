"""CogVideoX (arXiv 2408.06072); it wants frames before channels.

Variance preserving, v-prediction. Its highest noise level has no signal left. B: samples; C: latent
channels; F: latent frames; H, W: latent height, width.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.pipelines import schedulers
from distillkit.pipelines.files import import_diffusers
from distillkit.pipelines.texts import padded
from domains.video.pipelines.clips import Clips, FromImage, first_frame
from domains.video.pipelines.decoder import CogVideoXImageVAE, compression

OFFSET = 2.0  # that version 1.5 of image to video is told, whatever the clip


class CogVideoXNetwork(Clips):
    """Text to video."""

    pipelines, kinds = ("CogVideoXPipeline",), ("CogVideoXTransformer3DModel",)
    schedulers = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
    size = {"frames": 49, "height": 480, "width": 720}

    @classmethod
    def latent_shape(cls, root, size):
        shape, config = super().latent_shape(root, size), cls.model_config(root)
        own = config["sample_height"], config["sample_width"]
        if config.get("use_learned_positional_embeddings") and shape[2:] != own:
            height, width = (side * compression(root)[2] for side in own)
            raise ValueError(
                f"the model in {root} knows clips of {height} x {width} alone: set teacher.height={height} teacher.width={width}"
            )
        return shape

    @classmethod
    def process(cls, scheduler, shape):
        return schedulers.variance_preserving(scheduler)

    @classmethod
    def read_settings(cls, root, shape, asked):
        return {"length": cls.model_config(root)["max_text_seq_length"]}

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        options = {"do_classifier_free_guidance": False, "max_sequence_length": settings.get("length", 226)}
        return {"text": pipeline.encode_prompt(prompts, **options)[0]}

    def call(self, model, x, time, cond):
        text = padded(cond["text"], model.config.max_text_seq_length)
        rotary = self.rotary(model, x) if model.config.use_rotary_positional_embeddings else None
        offset = None if model.config.ofs_embed_dim is None else x.new_full((1,), OFFSET)
        out = model(x.transpose(1, 2), text, 1000 * time, None, offset, rotary, return_dict=False)[0]
        return out.transpose(1, 2)

    def asked(self, shape):
        return {**super().asked(shape), "max_sequence_length": self.models[0].config.max_text_seq_length}

    def packed(self, x):
        return x.transpose(1, 2)

    def unpacked(self, z, shape):
        return z.transpose(1, 2)

    def rotary(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary embeddings of the places in x.

        The pipeline's own function makes them, which tells versions 1.0 and 1.5 apart.
        """
        frames, height, width = x.shape[2:]
        own = SimpleNamespace(transformer=model, vae_scale_factor_spatial=1)
        make = import_diffusers().CogVideoXPipeline._prepare_rotary_positional_embeddings
        return make(own, height, width, frames, x.device)


class CogVideoXImageNetwork(CogVideoXNetwork, FromImage):
    """Image to video: latents beside those of the first frame, with zeros after it."""

    pipelines, codec = ("CogVideoXImageToVideoPipeline",), CogVideoXImageVAE

    @classmethod
    def inputs(cls, root, channels):
        return 2 * channels

    def call(self, model, x, time, cond):
        first = F.pad(first_frame(x, cond), (0, 0, 0, 0, 0, x.shape[2] - 1))
        return super().call(model, torch.cat([x, first], 1), time, cond)
