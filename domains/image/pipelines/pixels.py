"""DDPM (arXiv 2006.11239) and DDIM (arXiv 2010.02502): a U-Net on pixels, without condition."""

from __future__ import annotations

from distillkit.pipelines import schedulers
from distillkit.pipelines.network import Network
from domains.image.pipelines.codec import same_size


class DDPM(Network):
    """DDPMPipeline: images [C, H, W] in [-1, 1] of one size, by draws from DDPM's posterior.

    The released models cut denoised images to [-1, 1] in sampling, and so does the teacher.
    """

    pipelines, kinds, part = ("DDPMPipeline",), ("UNet2DModel",), "unet"
    given, codec, schedulers, steps = "", None, ("DDPMScheduler", "DDIMScheduler"), 1000

    @classmethod
    def latent_shape(cls, root, size):
        config = cls.model_config(root)
        if config["in_channels"] != config["out_channels"] or config.get("class_embed_type"):
            raise ValueError(f"{root} wants more than noise (a class, a variance of its own): it is not read here")
        own = config["sample_size"]
        return config["in_channels"], *same_size(size, *([own, own] if isinstance(own, int) else own))

    @classmethod
    def process(cls, scheduler, shape):
        return schedulers.variance_preserving(scheduler)

    @classmethod
    def limit(cls, scheduler):
        return schedulers.limit(scheduler)

    def call(self, model, x, time, cond):
        return model(x, 1000 * time, return_dict=False)[0]


class DDIM(DDPM):
    """DDIMPipeline: the same models in few steps without draws.

    Where denoised images are cut, the noise is the one that the cut image implies: the pipeline's
    steps with `use_clipped_model_output=True`.
    """

    pipelines, schedulers, steps = ("DDIMPipeline",), ("DDIMScheduler",), 50
