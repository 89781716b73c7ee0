"""Text-to-video pipelines of the package diffusers as teachers: Wan and CogVideoX (extra `hf`)."""

from domains.video.pipelines.decoder import VAE, latent_shape
from domains.video.pipelines.files import read_prompts
from domains.video.pipelines.networks import Adapters, CogVideoXNetwork, WanNetwork
from domains.video.pipelines.teacher import CogVideoX, Wan, ask

__all__ = [
    "VAE",
    "Adapters",
    "CogVideoX",
    "CogVideoXNetwork",
    "Wan",
    "WanNetwork",
    "ask",
    "latent_shape",
    "read_prompts",
]
