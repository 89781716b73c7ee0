"""Image pipelines of the package diffusers as teachers (extra `hf`)."""

from domains.image.pipelines.codec import VAE
from domains.image.pipelines.families import FAMILIES
from domains.image.pipelines.teacher import ImagePipeline, PipelineBase

__all__ = ["FAMILIES", "VAE", "ImagePipeline", "PipelineBase"]
