"""What families have in common whose model sees latents in patches of 2 x 2, in a flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit import checks
from distillkit.pipelines import schedulers
from distillkit.pipelines.network import Network


def packed(x: Tensor) -> Tensor:
    """Latents [B, C, H, W] as tokens [B, H W / 4, 4 C], a patch of 2 x 2 each."""
    return F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens [B, H W / 4, 4 C] as latents [B, C, H, W]."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


class GuidanceTold(Network):
    """A family whose distilled models are told a guidance scale: the setting `guidance`.

    Attributes:
        guidance: the pipeline's own scale.
    """

    guidance: float

    @classmethod
    def read_settings(cls, root, shape, asked):
        if not cls.model_config(root)["guidance_embeds"]:
            return super().read_settings(root, shape, asked)
        guidance = cls.guidance if asked.get("guidance") is None else asked["guidance"]
        checks.finite(guidance=guidance)
        return {"guidance": float(guidance)}

    def told(self, time: Tensor) -> Tensor | None:
        """The scale for each sample, like time [B]; None for a model that is told none."""
        return time.new_full(time.shape, self.settings["guidance"]) if "guidance" in self.settings else None


class Patches(Network):
    """A flow whose times shift by the number of patches where its scheduler says so."""

    schedulers = ("FlowMatchEulerDiscreteScheduler",)

    @classmethod
    def process(cls, scheduler, shape):
        return schedulers.flow(scheduler, schedulers.shift_by_size(scheduler, shape[1] * shape[2] // 4))

    @classmethod
    def grid(cls, scheduler, process, steps, shape):
        even = torch.linspace(1, 1 / steps, steps).tolist()  # before the shift
        return schedulers.grid(scheduler, process, steps, sigmas=even, mu=math.log(process.shift))

    def packed(self, x):
        return packed(x)

    def unpacked(self, z, shape):
        return unpacked(z, *shape[1:])
