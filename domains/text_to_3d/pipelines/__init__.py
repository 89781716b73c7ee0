"""Image pipelines of the package diffusers as teachers that are told words about views."""

from domains.text_to_3d.pipelines.teacher import PipelineBase, ViewPipeline

__all__ = ["PipelineBase", "ViewPipeline"]
