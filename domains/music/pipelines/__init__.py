"""Pipelines of sound of the package diffusers as teachers (extra `hf`)."""

from domains.music.pipelines.families import FAMILIES
from domains.music.pipelines.teacher import MusicPipeline, PipelineBase

__all__ = ["FAMILIES", "MusicPipeline", "PipelineBase"]
