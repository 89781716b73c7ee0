"""Pipelines of sound of the package diffusers as teachers."""

from __future__ import annotations

from distillkit.networks.dtypes import Dtype
from distillkit.pipelines import network
from distillkit.pipelines.teacher import PipelineTeacher
from domains.music.pipelines.families import FAMILIES


class PipelineBase(network.PipelineBase):
    """The frozen network of a pipeline of sound."""

    networks = FAMILIES


class MusicPipeline(PipelineTeacher):
    """A pipeline of sound, see `distillkit.pipelines.teacher.PipelineTeacher`.

    Args:
        seconds: of a sound; None is the pipeline's own.
        path, prompts, negative_prompt, steps, dtype, download: as in `PipelineTeacher`.
    """

    domain = "music"
    families = {name: kind for kind in FAMILIES.values() for name in kind.pipelines}
    base_kind = PipelineBase

    def __init__(
        self,
        path: str,
        prompts: str | None = None,
        seconds: float | None = None,
        negative_prompt: str | None = None,
        steps: int | None = None,
        dtype: Dtype = "float32",
        download: bool = False,
    ):
        length = {"seconds": seconds}
        super().__init__(path, prompts, length, negative_prompt, steps, dtype, download, length)
