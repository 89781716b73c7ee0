"""Wan 2.1 and 2.2 (arXiv 2503.20314): predicts the velocity of a flow.

B: samples; C: latent channels; F: latent frames; H, W: latent height, width.
"""

from __future__ import annotations

import torch

from distillkit.pipelines import schedulers
from distillkit.pipelines.files import import_diffusers, read_index
from distillkit.pipelines.texts import padded
from domains.video.pipelines.clips import Clips, FromImage, KeepsImage, code_of
from domains.video.pipelines.decoder import ImageVAE, WanImageVAE, compression


class WanNetwork(Clips):
    """Text to video."""

    pipelines, kinds = ("WanPipeline",), ("WanTransformer3DModel",)
    schedulers = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler")
    size = {"frames": 81, "height": 480, "width": 832}
    length = 512  # tokens that the released models were trained with; no configuration says it

    @classmethod
    def process(cls, scheduler, shape):
        return schedulers.flow(scheduler)

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        make = import_diffusers().WanPipeline._get_t5_prompt_embeds  # that of image to video needs the package ftfy
        return {"text": make(pipeline, prompts, max_sequence_length=cls.length)}

    def call(self, model, x, time, cond):
        return model(x, 1000 * self.times(x, time), padded(cond["text"], self.length), return_dict=False)[0]


class WanImageNetwork(WanNetwork, FromImage):
    """Image to video: latents beside those of the first frame with grey after it, and a mask.

    Wan 2.1 sees the tokens of an image encoder too, which its code ends with.
    """

    pipelines, codec = ("WanImageToVideoPipeline",), WanImageVAE

    @classmethod
    def variant(cls, root):
        return WanTokenNetwork if read_index(root).get("expand_timesteps") else cls

    @classmethod
    def inputs(cls, root, channels):
        return 2 * channels + compression(root)[1]

    def call(self, model, x, time, cond):
        code, size = code_of(cond), x[0].numel()
        given = x.new_zeros(len(x), model.config.in_channels - 2 * x.shape[1], *x.shape[2:])
        given[:, :, 0] = 1
        seen = torch.cat([x, given, code[:, :size].reshape(x.shape)], 1)
        width = model.config.image_dim
        tokens = None if width is None else code[:, size:].reshape(len(x), -1, width)
        return model(seen, 1000 * time, padded(cond["text"], self.length), tokens, return_dict=False)[0]


class WanTokenNetwork(WanNetwork, KeepsImage):
    """Image to video of Wan 2.2 TI2V, which tells each token a time (`expand_timesteps`)."""

    pipelines, codec, patch = ("WanImageToVideoPipeline",), ImageVAE, 4
