"""Families of video pipelines. C: latent channels; F: latent frames; H, W: latent height, width."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor, nn

from distillkit.networks import adapters
from distillkit.pipelines import network, schedulers
from distillkit.pipelines.files import import_diffusers
from distillkit.pipelines.network import Network
from distillkit.pipelines.texts import padded, trimmed
from distillkit.spec import Recorded
from domains.video.pipelines.decoder import VAE, latent_shape

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the layers of an attention


class Clips(Network):
    """What the families here have in common: clips [3, F, H, W], texts padded with zeros.

    Attributes:
        size: of a clip, where a user gives none: frames, height and width in pixels.
    """

    codec = VAE
    size: dict[str, int]

    @classmethod
    def latent_shape(cls, root, size):
        config = cls.model_config(root)
        if config["in_channels"] != (config.get("out_channels") or config["in_channels"]):
            raise ValueError(f"{root} wants more than a text (an image): only text-to-video pipelines are read here")
        return latent_shape(root, **cls.size | {name: value for name, value in size.items() if value is not None})

    @classmethod
    def trim(cls, tables):
        return trimmed(tables, tables["text"].ne(0).any(2), ["text"])


class WanNetwork(Clips):
    """Wan 2.1 and 2.2, text to video (arXiv 2503.20314): predicts the velocity of a flow."""

    pipelines, kinds = ("WanPipeline",), ("WanTransformer3DModel",)
    schedulers = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler")
    size = {"frames": 81, "height": 480, "width": 832}
    length = 512  # tokens that the released models were trained with; no configuration says it

    @classmethod
    def process(cls, scheduler, shape):
        return schedulers.flow(scheduler)

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        options = {"do_classifier_free_guidance": False, "max_sequence_length": cls.length}
        return {"text": pipeline.encode_prompt(prompts, **options)[0]}

    def call(self, model, x, time, cond):
        return model(x, 1000 * time, padded(cond["text"], self.length), return_dict=False)[0]


class CogVideoXNetwork(Clips):
    """CogVideoX, text to video (arXiv 2408.06072); it wants frames before channels.

    Variance preserving, v-prediction. Its highest noise level has no signal left.
    """

    pipelines, kinds = ("CogVideoXPipeline",), ("CogVideoXTransformer3DModel",)
    schedulers = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
    size = {"frames": 49, "height": 480, "width": 720}

    @classmethod
    def process(cls, scheduler, shape):
        return schedulers.variance_preserving(scheduler)

    @classmethod
    def read_settings(cls, root, shape, asked):
        return {"length": cls.model_config(root)["max_text_seq_length"]}

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        options = {"do_classifier_free_guidance": False, "max_sequence_length": settings.get("length", 226)}
        return {"text": pipeline.encode_prompt(prompts, **options)[0]}

    def call(self, model, x, time, cond):
        text = padded(cond["text"], model.config.max_text_seq_length)
        rotary = self.rotary(model, x) if model.config.use_rotary_positional_embeddings else None
        out = model(x.transpose(1, 2), text, 1000 * time, image_rotary_emb=rotary, return_dict=False)[0]
        return out.transpose(1, 2)

    def asked(self, shape):
        return {**super().asked(shape), "max_sequence_length": self.models[0].config.max_text_seq_length}

    def packed(self, x):
        return x.transpose(1, 2)

    def unpacked(self, z, shape):
        return z.transpose(1, 2)

    def rotary(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary embeddings of the places in x.

        The pipeline's own function makes them, which tells versions 1.0 and 1.5 apart.
        """
        frames, height, width = x.shape[2:]
        own = SimpleNamespace(transformer=model, vae_scale_factor_spatial=1)
        make = import_diffusers().CogVideoXPipeline._prepare_rotary_positional_embeddings
        return make(own, height, width, frames, x.device)


NETWORKS = {cls.__name__: cls for cls in (WanNetwork, CogVideoXNetwork)}


class PipelineBase(network.PipelineBase):
    """The frozen network of a video pipeline."""

    networks = NETWORKS


class Adapters(adapters.Adapters):
    """Adapters of student folders written before every network could have them.

    The arguments are theirs.
    """

    def __init__(self, path: str, kind: str, rank: int, texts: list[int], dtype: str, sha256: str):
        super().__init__(PipelineBase(path, kind, texts, dtype), rank, TARGETS, sha256)

    def recorded(self):
        return Recorded.recorded(self)

    def _load_from_state_dict(self, state, prefix, *args):
        """Translates the names `down` and `up` from the package peft's."""
        for name in [name for name in state if name.startswith(f"{prefix}layers.")]:
            state[name.replace(".lora_A.", ".down.").replace(".lora_B.", ".up.")] = state.pop(name)
        super()._load_from_state_dict(state, prefix, *args)
