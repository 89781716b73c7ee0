"""FLUX.2 (Black Forest Labs, 2025): a transformer on latents in patches of 2 x 2, a flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.pipelines import schedulers
from domains.image.pipelines.codec import VAE, factor, latent_size
from domains.image.pipelines.patches import GuidanceTold


class PatchVAE(VAE):
    """Images [B, 3, H, W] in [-1, 1] and patches of latents [B, 4 C, H', W'], each of order one.

    The autoencoder's weights hold the mean and the variance of each channel of a patch of 2 x 2.
    """

    kinds = ("AutoencoderKLFlux2",)

    def units(self) -> tuple[Tensor, Tensor]:
        known = self.vae.bn
        std = (known.running_var + self.config["batch_norm_eps"]).sqrt()
        return known.running_mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)

    def into(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(super().into(x), 2)

    def out_of(self, z: Tensor) -> Tensor:
        return super().out_of(F.pixel_shuffle(z, 2))

    def data_shape(self, event_shape):
        side = 2 * factor(self.config)
        return 3, side * event_shape[1], side * event_shape[2]


def shift(tokens: int, steps: int) -> float:
    """The shift of times, fitted by its authors to the numbers of patches and of steps.

    Its logarithm is linear in both, between lines in `tokens` for 10 and for 200 steps; above 4300
    patches that for 200 steps holds.
    """
    few, many = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    return math.exp(many if tokens > 4300 else many + (few - many) * (200 - steps) / 190)


class Flux2(GuidanceTold):
    """FLUX.2 and its Klein: predicts the velocity, for hidden states of a language model.

    FLUX.2-dev was distilled from a guided model and is told a guidance scale: the setting
    `guidance`. Of Klein's base models kappa is the pipeline's `guidance_scale`. Their shift of
    times depends on the number of steps: that of students is the one for `steps`. The model sees
    all 512 tokens, of which a prompt takes 15 to 30 MB in memory.
    """

    pipelines, kinds = ("Flux2Pipeline", "Flux2KleinPipeline"), ("Flux2Transformer2DModel",)
    codec, schedulers, guidance = PatchVAE, ("FlowMatchEulerDiscreteScheduler",), 4.0

    @classmethod
    def latent_shape(cls, root, size):
        config = cls.model_config(root)
        if config.get("out_channels") not in (None, config["in_channels"]) or config["patch_size"] != 1:
            raise ValueError(f"the model in {root} wants other patches or more than a text: it is not read here")
        height, width = latent_size(root, size, 128, 2)
        return config["in_channels"], height // 2, width // 2

    @classmethod
    def process(cls, scheduler, shape):
        by_size = scheduler.config["use_dynamic_shifting"]
        return schedulers.flow(scheduler, shift(shape[1] * shape[2], cls.steps) if by_size else None)

    @classmethod
    def grid(cls, scheduler, process, steps, shape):
        even = torch.linspace(1, 1 / steps, steps).tolist()  # before the shift
        return schedulers.grid(scheduler, process, steps, sigmas=even, mu=math.log(shift(shape[1] * shape[2], steps)))

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        return {"text": pipeline.encode_prompt(list(prompts))[0]}

    def call(self, model, x, time, cond):
        text, (height, width) = cond["text"], x.shape[2:]
        sides = (torch.arange(size, device=x.device) for size in (1, height, width, 1))
        places = torch.cartesian_prod(*sides)  # [tokens, 4]: 0, row, column, 0
        words = F.pad(torch.arange(text.shape[1], device=x.device)[:, None], (3, 0))  # 0, 0, 0, its number
        out = model(
            x.flatten(2).transpose(1, 2),
            text,
            time,  # the model multiplies it, and the guidance scale, by 1000
            places,
            words,
            self.told(time),
            return_dict=False,
        )[0]
        return out.transpose(1, 2).unflatten(2, (height, width))
