"""Text-to-video pipelines of the package diffusers as teachers: Wan and CogVideoX (extra `hf`)."""

from domains.video.pipelines.decoder import VAE, latent_shape
from domains.video.pipelines.files import read_prompts
from domains.video.pipelines.networks import TARGETS, CogVideoXNetwork, PipelineBase, WanNetwork
from domains.video.pipelines.teacher import CogVideoX, Wan, ask

__all__ = [
    "TARGETS",
    "VAE",
    "CogVideoX",
    "CogVideoXNetwork",
    "PipelineBase",
    "Wan",
    "WanNetwork",
    "ask",
    "latent_shape",
    "read_prompts",
]
