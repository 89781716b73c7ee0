"""Image pipelines of the package diffusers as teachers of views."""

from __future__ import annotations

from distillkit.pipelines import network
from domains.image.pipelines import ImagePipeline
from domains.text_to_3d.pipelines.families import FAMILIES


class PipelineBase(network.PipelineBase):
    """The frozen network of an image pipeline that is told a word for the view."""

    networks = FAMILIES


class ViewPipeline(ImagePipeline):
    """An image pipeline whose prompts end in a word for the view, which the camera chooses.

    Args:
        path, prompts, height, width, negative_prompt, guidance, steps, dtype, download:
            as in `domains.image.pipelines.ImagePipeline`.
    """

    domain = "text_to_3d"
    families = {name: kind for kind in FAMILIES.values() for name in kind.pipelines}
    base_kind = PipelineBase
