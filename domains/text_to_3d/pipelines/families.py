"""Families of image pipelines whose prompts end in a word for the view."""

from __future__ import annotations

from distillkit.networks.blocks import wanted
from distillkit.pipelines.network import Network
from domains.image.pipelines.stable_diffusion import StableDiffusion, StableDiffusionXL
from domains.image.pipelines.stable_diffusion_3 import StableDiffusion3
from domains.text_to_3d.views import VIEWS, texts, view_of


class Viewed(Network):
    """Mixin: the condition `camera` chooses among the texts of a prompt, see `views.texts`.

    The negative prompt has no word.
    """

    context = ("camera",)

    @classmethod
    def wordings(cls, prompts):
        return texts(prompts)

    def forward(self, x, time, cond):
        num = len(VIEWS) * self.prompts
        text = (len(VIEWS) * wanted(cond, "prompt") + view_of(wanted(cond, "camera"))).clamp_max(num)
        return super().forward(x, time, {**cond, "prompt": text})

    @property
    def prompts(self) -> int:
        """Their number; each has as many texts as there are views."""
        return next(iter(self.texts.shapes.values()))[0] // len(VIEWS)


class ViewedStableDiffusion(Viewed, StableDiffusion):
    """Stable Diffusion 1.x and 2.x, told a word for the view."""


class ViewedStableDiffusionXL(Viewed, StableDiffusionXL):
    """Stable Diffusion XL, told a word for the view."""


class ViewedStableDiffusion3(Viewed, StableDiffusion3):
    """Stable Diffusion 3.x, told a word for the view."""


KINDS = (ViewedStableDiffusion, ViewedStableDiffusionXL, ViewedStableDiffusion3)
FAMILIES = {kind.__name__: kind for kind in KINDS}
