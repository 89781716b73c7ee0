"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): a transformer on latents, a flow."""

from __future__ import annotations

from types import SimpleNamespace

from distillkit.pipelines import schedulers
from distillkit.pipelines.files import read_index
from distillkit.pipelines.network import Network
from domains.image.pipelines.codec import VAE, latent_size


class StableDiffusion3(Network):
    """Stable Diffusion 3.x: predicts the velocity, for tokens of two CLIPs and of T5.

    Its attention masks no token. A pipeline may lack T5: its tokens are zeros then.
    """

    pipelines, kinds = ("StableDiffusion3Pipeline",), ("SD3Transformer2DModel",)
    codec, schedulers, steps = VAE, ("FlowMatchEulerDiscreteScheduler",), 28

    @classmethod
    def latent_shape(cls, root, size):
        config = cls.model_config(root)
        patch, most = config["patch_size"], config["patch_size"] * config["pos_embed_max_size"]
        sides = latent_size(root, size, config["sample_size"], patch)
        if max(sides) > most:
            raise ValueError(
                f"a latent of this model has sides up to {most}, got {max(sides)}: set teacher.height or teacher.width"
            )
        return config["in_channels"], *sides

    @classmethod
    def read_settings(cls, root, shape, asked):
        settings = super().read_settings(root, shape, asked)
        if read_index(root).get("text_encoder_3", [None])[0] is None:
            settings["width"] = cls.model_config(root)["joint_attention_dim"]  # of the tokens in place of T5's
        return settings

    @classmethod
    def process(cls, scheduler, shape):
        return schedulers.flow(scheduler)

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        if "width" in settings:  # the pipeline asks its transformer for it, which is not here
            pipeline.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=settings["width"]))
        text, _, pooled, _ = pipeline.encode_prompt(prompts, prompts, prompts, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def call(self, model, x, time, cond):
        return model(x, cond["text"], cond["pooled"], 1000 * time, return_dict=False)[0]
