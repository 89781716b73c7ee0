"""Image pipelines of the package diffusers as teachers."""

from __future__ import annotations

from distillkit.networks.dtypes import Dtype
from distillkit.pipelines import network
from distillkit.pipelines.teacher import PipelineTeacher
from domains.image.pipelines.families import FAMILIES


class PipelineBase(network.PipelineBase):
    """The frozen network of an image pipeline."""

    networks = FAMILIES


class ImagePipeline(PipelineTeacher):
    """An image pipeline, see `distillkit.pipelines.teacher.PipelineTeacher`.

    Args:
        height, width: of an image in pixels; None is the pipeline's own.
        guidance: of a model that is told its guidance scale (FLUX.1-dev), that scale; None is the
            pipeline's own.
        path, prompts, negative_prompt, steps, dtype, download: as in `PipelineTeacher`.
    """

    domain = "image"
    families = {name: kind for kind in FAMILIES.values() for name in kind.pipelines}
    base_kind = PipelineBase

    def __init__(
        self,
        path: str,
        prompts: str | None = None,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        dtype: Dtype = "float32",
        download: bool = False,
    ):
        size, asked = {"height": height, "width": width}, {"guidance": guidance}
        super().__init__(path, prompts, size, negative_prompt, steps, dtype, download, asked)
