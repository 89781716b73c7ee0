"""Stable Audio Open (arXiv 2407.14358): a transformer on stereo latents, EDM's levels of noise."""

from __future__ import annotations

import math

import torch

from distillkit.diffusion.process import TrigFlow
from distillkit.pipelines.files import import_diffusers, read_json
from domains.music.pipelines.sounds import Sound, Sounds


class Oobleck(Sound):
    """Sounds and latents [B, C, T] of the model's full length, by an AutoencoderOobleck."""

    kinds = ("AutoencoderOobleck",)

    @property
    def hop(self) -> int:
        """Samples of a latent."""
        return math.prod(self.config["downsampling_ratios"])

    def whole(self):
        return self.hop * StableAudio.model_config(self.root)["sample_size"]


class StableAudio(Sounds):
    """Stable Audio Open: sounds of a fixed length that are silent after the seconds asked for.

    The model's x is scaled to unit variance, `x_t / sqrt(1 + sigma^2) = cos(t) x_0 + sin(t) eps`
    with `tan t = sigma`. There EDM's preconditioning with sigma_data = 1 is a prediction of
    `v = cos(t) eps - sin(t) x_0`, and the model's own time is `2 t / pi`.

    Without a negative prompt guidance leads away from a sequence of zeros, not from an empty text;
    the duration stays.
    """

    pipelines, kinds = ("StableAudioPipeline",), ("StableAudioDiTModel",)
    text_parts = ("text_encoder", "tokenizer", "projection_model")
    codec, schedulers, steps = Oobleck, ("CosineDPMSolverMultistepScheduler",), 100

    @classmethod
    def own_seconds(cls, root):
        vae = read_json(root / "vae" / "config.json")
        return cls.model_config(root)["sample_size"] * math.prod(vae["downsampling_ratios"]) / vae["sampling_rate"]

    @classmethod
    def latent_shape(cls, root, size):
        if (seconds := cls.seconds(root, size)) > (most := cls.own_seconds(root)):
            raise ValueError(
                f"sounds of this pipeline last {most:.6g} seconds at most, got {seconds}: set teacher.seconds"
            )
        config = cls.model_config(root)
        return config["in_channels"], config["sample_size"]

    @classmethod
    def scheduler(cls, root):
        config = read_json(root / "scheduler" / "scheduler_config.json")
        if config.get("_class_name") not in cls.schedulers:
            return super().scheduler(root)  # which refuses it

        class CosineDPMSolverMultistepScheduler(import_diffusers().EDMDPMSolverMultistepScheduler):
            """The same levels; the class of this name wants another package, for its draws."""

        return CosineDPMSolverMultistepScheduler.from_config(config)

    @classmethod
    def process(cls, scheduler, shape):
        config = scheduler.config
        for key, known in {"sigma_data": 1.0, "prediction_type": "v_prediction"}.items():
            if config[key] != known:
                raise ValueError(f"the pipeline's scheduler says {key} = {config[key]!r}; only {known!r} is known here")
        return TrigFlow(1.0, math.atan(config.sigma_min), math.atan(config.sigma_max)), "v"

    @classmethod
    def stand_ins(cls, root):
        config = {**cls.model_config(root), "num_layers": 0}  # the pipeline looks at the size of its heads
        return {"transformer": import_diffusers().StableAudioDiTModel.from_config(config), "scheduler": None}

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        device = pipeline.device
        text = pipeline.encode_prompt(prompts, device, False)
        start, end = pipeline.encode_duration(0.0, settings["seconds"], device, False, len(prompts))
        return {"text": torch.cat([text, start, end], 1), "global": torch.cat([start, end], 2)}

    @classmethod
    def encode_negative(cls, pipeline, prompt, settings):
        tables = super().encode_negative(pipeline, prompt, settings)
        return tables if prompt is not None else tables | {"text": torch.zeros_like(tables["text"])}

    def call(self, model, x, time, cond):
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        places = torch.arange(x.shape[2] + 1, device=x.device)  # the first is that of time and duration
        size = model.config.attention_head_dim // 2
        return model(
            x,
            2 / math.pi * time,
            cond["text"],
            cond["global"],
            get_1d_rotary_pos_embed(size, places, use_real=True, repeat_interleave_real=False),
            return_dict=False,
        )[0]
