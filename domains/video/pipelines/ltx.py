"""LTX-Video (arXiv 2501.00103): predicts the velocity of a flow, on one token a latent place.

B: samples; C: latent channels; F: latent frames; H, W: latent height, width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from distillkit.pipelines import schedulers
from distillkit.pipelines.texts import trimmed
from domains.video.pipelines.clips import Clips, KeepsImage
from domains.video.pipelines.decoder import LTXVAE, LTXImageVAE, compression


class LTXNetwork(Clips):
    """Text to video; it is told the frames a second, and masks its texts.

    The shift of the times grows with the number of tokens.
    """

    pipelines, kinds, codec = ("LTXPipeline",), ("LTXVideoTransformer3DModel",), LTXVAE
    schedulers = ("FlowMatchEulerDiscreteScheduler",)
    size = {"frames": 161, "height": 512, "width": 704}
    fps = 25.0  # the pipeline's own
    length = 128  # tokens of a text

    @classmethod
    def process(cls, scheduler, shape):
        dynamic = scheduler.config.use_dynamic_shifting
        return schedulers.flow(scheduler, math.exp(log_shift(scheduler.config, shape)) if dynamic else None)

    @classmethod
    def grid(cls, scheduler, process, steps, shape):
        own = {"sigmas": np.linspace(1, 1 / steps, steps), "mu": log_shift(scheduler.config, shape)}
        return schedulers.grid(scheduler, process, steps, **own)

    @classmethod
    def read_settings(cls, root, shape, asked):
        _, time, space = compression(root)
        return {"places": [time / (asked.get("fps") or cls.fps), space, space]}

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        text, mask, *_ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=cls.length
        )
        return {"text": text, "mask": mask}

    @classmethod
    def trim(cls, tables):
        return trimmed(tables, tables["mask"], ["text", "mask"])

    def call(self, model, x, time, cond):
        frames, height, width = x.shape[2:]
        out = model(
            x.flatten(2).transpose(1, 2).contiguous(),
            cond["text"],
            1000 * self.times(x, time),
            cond["mask"],
            frames,
            height,
            width,
            self.settings["places"],
            return_dict=False,
        )[0]
        return out.transpose(1, 2).reshape(x.shape)

    def packed(self, x):
        return x.flatten(2).transpose(1, 2)

    def unpacked(self, z, shape):
        return z.transpose(1, 2).reshape(len(z), *shape)


class LTXImageNetwork(LTXNetwork, KeepsImage):
    """Image to video."""

    pipelines, codec = ("LTXImageToVideoPipeline",), LTXImageVAE


def log_shift(config: Any, shape: Sequence[int]) -> float:
    """The logarithm of the shift for latents [C, F, H, W]: linear in their number of places."""
    _, *sides = shape
    low, high = config.base_image_seq_len, config.max_image_seq_len
    slope = (config.max_shift - config.base_shift) / (high - low)
    return config.base_shift + slope * (math.prod(sides) - low)
