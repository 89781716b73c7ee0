"""Stable Audio 3: a flow on the latents of SAME (arXiv 2605.17991)."""

from __future__ import annotations

import math

import torch

from distillkit.pipelines import schedulers
from domains.music.pipelines.sounds import Sound, Sounds

LOG_SNR = (-6.2, 2.0)  # of the first and, after all steps, of the last time; no configuration says it


class Same(Sound):
    """Sounds and latents [B, C, T], by an AutoencoderSAME, which has no posterior."""

    kinds = ("AutoencoderSAME",)

    @property
    def hop(self) -> int:
        """Samples of a latent."""
        return self.config["patch_size"] * math.prod(self.config["encoder_strides"])

    def whole(self):
        return self.hop * math.ceil(self.seconds * self.sample_rate / self.hop)

    def into(self, x):
        return self.vae.encode(self.filled(x)).latents


class StableAudio3(Sounds):
    """Stable Audio 3: predicts the velocity of a flow, for 256 tokens of T5Gemma and a duration.

    The distilled models, whose scheduler says `stochastic_sampling`, are made for 8 steps of the
    solver `renoise` without guidance; the base model for 100 of Euler's.
    """

    pipelines, kinds = ("StableAudio3Pipeline",), ("StableAudio3DiTModel",)
    text_parts = ("text_encoder", "tokenizer", "duration_embedder")
    codec, schedulers = Same, ("FlowMatchEulerDiscreteScheduler",)

    @classmethod
    def best_steps(cls, scheduler):
        return 8 if scheduler.config.stochastic_sampling else 100

    @classmethod
    def own_seconds(cls, root):
        return 10.0  # of the pipeline's own call

    @classmethod
    def latent_shape(cls, root, size):
        codec = cls.make_codec(root, size)
        return cls.model_config(root)["io_channels"], codec.whole() // codec.hop

    @classmethod
    def process(cls, scheduler, shape):
        if scheduler.config.num_train_timesteps != 1:
            raise ValueError(
                f"the pipeline's scheduler says num_train_timesteps = {scheduler.config.num_train_timesteps}; its model "
                f"wants times in [0, 1]: set 1 in scheduler/scheduler_config.json"
            )
        return schedulers.flow(scheduler)

    @classmethod
    def grid(cls, scheduler, process, steps, shape):
        low, high = LOG_SNR
        sigmas = torch.sigmoid(torch.linspace(1, 0, steps + 1)[:-1] * (high - low) - high)
        return schedulers.grid(scheduler, process, steps, sigmas=[1.0, *sigmas[1:].tolist()])

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        text, mask = pipeline.encode_prompt(prompts, pipeline.device, 1)
        duration = pipeline.encode_duration(settings["seconds"], pipeline.device, 1, len(prompts))
        text, mask = pipeline.prepare_cross_attention(text, mask, duration)
        return {"text": text, "mask": mask.bool(), "global": duration}

    def call(self, model, x, time, cond):
        return model(x, time, cond["text"], cond["global"], cond["mask"], return_dict=False)[0]
