"""Qwen-Image (arXiv 2508.02324): a transformer on latents in patches of 2 x 2, a flow."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.pipelines.codec import PipelineCodec
from distillkit.pipelines.texts import padded, trimmed
from domains.image.pipelines.codec import factor, latent_size
from domains.image.pipelines.patches import Patches, packed, unpacked


class ClipVAE(PipelineCodec):
    """Images [B, 3, H, W] in [-1, 1] and latents [B, C, H', W'], by an autoencoder of clips.

    An image is a clip of one frame.
    """

    kinds = ("AutoencoderKLQwenImage",)

    def units(self) -> tuple[Tensor, Tensor]:
        return tuple(torch.tensor(self.config[name]).reshape(-1, 1, 1) for name in ("latents_mean", "latents_std"))

    def into(self, x: Tensor) -> Tensor:
        return super().into(x[:, :, None])[:, :, 0]

    def out_of(self, z: Tensor) -> Tensor:
        return super().out_of(z[:, :, None])[:, :, 0]

    def data_shape(self, event_shape):
        side = factor(self.config)
        return 3, side * event_shape[1], side * event_shape[2]


class QwenImage(Patches):
    """Qwen-Image: predicts the velocity, for the last hidden states of Qwen2.5-VL.

    kappa is the pipeline's `true_cfg_scale`; the teacher samples with its renormalised guidance,
    training guides linearly. The negative prompt, where none is given, is a blank.
    """

    pipelines, kinds = ("QwenImagePipeline",), ("QwenImageTransformer2DModel",)
    codec = ClipVAE
    length = 512  # tokens of a prompt at most, the pipeline's default
    others = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")  # of other models

    @classmethod
    def latent_shape(cls, root, size):
        config = cls.model_config(root)
        if found := [name for name in cls.others if config.get(name)]:
            raise ValueError(f"the model in {root} wants more than a text ({found[0]}): it is not read here")
        return config["in_channels"] // 4, *latent_size(root, size, 128, 2)

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        text, mask = pipeline.encode_prompt(prompts, max_sequence_length=cls.length)
        mask = text.new_ones(text.shape[:2]) if mask is None else mask
        return {"text": padded(text, cls.length), "text_mask": padded(mask[..., None], cls.length)[..., 0].bool()}

    @classmethod
    def encode_negative(cls, pipeline, prompt, settings):
        return cls.encode(pipeline, [prompt or " "], settings)

    @classmethod
    def trim(cls, tables):
        return trimmed(tables, tables["text_mask"], ["text", "text_mask"])

    @staticmethod
    def guide(x: Tensor, x_0: Tensor, guided: Tensor) -> Tensor:
        """The guided velocity of each patch, made as long as the one for the prompt.

        `x - x_0` is the velocity times the level, which drops out.
        """
        v, target = packed(x - guided), packed(x - x_0)
        v = v * torch.linalg.vector_norm(target, dim=2, keepdim=True) / torch.linalg.vector_norm(v, dim=2, keepdim=True)
        return x - unpacked(v, *x.shape[2:])

    def call(self, model, x, time, cond):
        height, width = x.shape[2:]
        out = model(
            packed(x),
            cond["text"],
            cond["text_mask"],
            time,  # the model multiplies it by 1000
            [[(1, height // 2, width // 2)]] * len(x),
            return_dict=False,
        )[0]
        return unpacked(out, height, width)
