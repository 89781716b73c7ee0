"""Video pipelines of the package diffusers as teachers (extra `hf`)."""

from distillkit.pipelines.teacher import ask
from domains.video.pipelines.decoder import VAE, latent_shape
from domains.video.pipelines.networks import NETWORKS, TARGETS, CogVideoXNetwork, PipelineBase, WanNetwork
from domains.video.pipelines.teacher import CogVideoX, VideoPipeline, Wan

__all__ = [
    "NETWORKS",
    "TARGETS",
    "VAE",
    "CogVideoX",
    "CogVideoXNetwork",
    "PipelineBase",
    "VideoPipeline",
    "Wan",
    "WanNetwork",
    "ask",
    "latent_shape",
]
