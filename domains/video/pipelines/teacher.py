"""Video pipelines of the package diffusers as teachers."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit import checks
from distillkit.networks.dtypes import Dtype
from distillkit.pipelines.teacher import PipelineTeacher
from domains.video.pipelines.networks import NETWORKS, PipelineBase


class VideoPipeline(PipelineTeacher):
    """A video pipeline, see `distillkit.pipelines.teacher.PipelineTeacher`.

    Args:
        frames, height, width: of a clip in pixels; None is the family's own.
        guidance_2: of Wan 2.2, which has two transformers, guidance scale of the second in
            sampling; None means that of the first.
        fps: frames a second, which LTX is told; None is the pipeline's own, 25.
        path, prompts, negative_prompt, steps, dtype, download: as in `PipelineTeacher`.
    """

    domain = "video"
    families = {name: kind for kind in NETWORKS.values() for name in kind.pipelines}
    base_kind = PipelineBase

    def __init__(
        self,
        path: str,
        prompts: str | None = None,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | None = None,
        steps: int | None = None,
        dtype: Dtype = "float32",
        download: bool = False,
        guidance_2: float | None = None,
        fps: float | None = None,
    ):
        if fps is not None:
            checks.positive(fps=fps)
        size = {"frames": frames, "height": height, "width": width}
        asked = {"fps": fps}
        super().__init__(path, prompts, size, negative_prompt, steps, dtype, download, asked)
        self.guidance_2 = guidance_2

    def guidance(self, t: Tensor, kappa: float | Tensor) -> float | Tensor:
        boundary = self.denoiser.network.boundary
        if boundary is None or self.guidance_2 is None or float(t) >= boundary:
            return kappa
        if isinstance(kappa, Tensor):
            return torch.where(kappa == 1, kappa, self.guidance_2)
        return kappa if kappa == 1 else self.guidance_2


Wan = CogVideoX = VideoPipeline  # as folders of earlier versions name it
