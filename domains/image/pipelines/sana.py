"""Sana (arXiv 2410.10629): a transformer with linear attention on small latents, a flow."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import Tensor

from distillkit.pipelines import schedulers
from distillkit.pipelines.network import Network
from distillkit.pipelines.texts import trimmed
from domains.image.pipelines.codec import DC, latent_size


class Sana(Network):
    """Sana: predicts the velocity, for tokens of Gemma.

    Gemma reads an instruction before each prompt, the pipeline's own, but not before the negative
    one. The pipeline makes images of the nearest of some sizes and scales them; here a size is
    taken as it is. With DPM-Solver++ it rounds times down to thousandths for its model; here they
    stay as they are.
    """

    pipelines, kinds = ("SanaPipeline",), ("SanaTransformer2DModel",)
    codec, steps = DC, 20
    schedulers = ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler")

    @classmethod
    def latent_shape(cls, root, size):
        config = cls.model_config(root)
        return config["in_channels"], *latent_size(root, size, config["sample_size"], config["patch_size"])

    @classmethod
    def process(cls, scheduler, shape):
        return schedulers.flow(scheduler)

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        instruction = signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        return tokens(pipeline, prompts, instruction)

    @classmethod
    def encode_negative(cls, pipeline, prompt, settings):
        return tokens(pipeline, [prompt or ""])

    @classmethod
    def trim(cls, tables):
        return trimmed(tables, tables["mask"], ["text", "mask"])

    def asked(self, shape):
        return {**super().asked(shape), "use_resolution_binning": False}

    def call(self, model, x, time, cond):
        scaled = 1000 * time * model.config.timestep_scale
        return model(x, cond["text"], scaled, encoder_attention_mask=cond["mask"], return_dict=False)[0]


def tokens(pipeline: Any, prompts: list[str], instruction: list[str] | None = None) -> dict[str, Tensor]:
    """Gemma's tokens [N, 300, D] of prompts, and which of them count [N, 300]."""
    text, mask, _, _ = pipeline.encode_prompt(prompts, False, complex_human_instruction=instruction)
    return {"text": text, "mask": mask.bool()}
