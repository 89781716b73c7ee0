"""DiT (arXiv 2212.09748): a transformer on latents, for the classes of ImageNet."""

from __future__ import annotations

from distillkit.pipelines import schedulers
from distillkit.pipelines.network import Network
from domains.image.pipelines.codec import VAE, pixels, same_size


class DiT(Network):
    """DiTPipeline: predicts eps for a `label`; what it says of the variance is not used."""

    pipelines, kinds, given = ("DiTPipeline",), ("DiTTransformer2DModel",), "label"
    codec, schedulers = VAE, schedulers.TABLES

    @classmethod
    def latent_shape(cls, root, size):
        config = cls.model_config(root)
        side = config["sample_size"]
        same_size(size, *pixels(root, [side, side]))
        return config["in_channels"], side, side

    @classmethod
    def process(cls, scheduler, shape):
        return schedulers.variance_preserving(scheduler)

    @classmethod
    def limit(cls, scheduler):
        return schedulers.limit(scheduler)

    @classmethod
    def classes(cls, network):
        return {"label": network.models[0].config.num_embeds_ada_norm}

    def train(self, mode=True):
        """As any module, but the layers that would drop labels by themselves stay in eval mode."""
        super().train(mode)
        for module in self.models.modules():
            if hasattr(module, "token_drop"):
                module.eval()
        return self

    def call(self, model, x, time, cond):
        return model(x, 1000 * time, cond["label"], return_dict=False)[0][:, : x.shape[1]]
