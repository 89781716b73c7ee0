"""Words about views, and the network that is told them.

B: cameras.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distillkit.networks.blocks import wanted
from distillkit.networks.unet import UNet
from distillkit.rendering.cameras import angles

VIEWS = ("front", "side", "back", "overhead")
WITHIN, ABOVE = math.radians(45), math.radians(60)


def view_of(camera: Tensor) -> Tensor:
    """The number in `VIEWS` of the word for each camera [B, 13], int64 [B].

    Azimuths up to 45 degrees from 0 are the front, up to 45 degrees from 180 the back; elevations
    above 60 degrees are overhead whatever the azimuth; all others are the side (threestudio's
    thresholds).
    """
    azimuth, elevation, _ = angles(camera)
    view = torch.where(azimuth.abs() <= WITHIN, 0, torch.where(math.pi - azimuth.abs() <= WITHIN, 2, 1))
    return torch.where(elevation > ABOVE, 3, view)


def texts(prompts: list[str]) -> list[str]:
    """Each prompt with each of `VIEWS`, "a red sphere, front view": i with v at 4 i + v."""
    return [f"{prompt}, {view} view" for prompt in prompts for view in VIEWS]


class ViewUNet(UNet):
    """A U-Net of images that is told the word for the view; the condition `camera` says which.

    The word stays where the prompt is left out for guidance.

    Args:
        classes: categorical conditions besides the view, `{"prompt": number of prompts}`.
        event_shape, channels, multipliers, blocks, attention: as in `UNet`.
    """

    def build(self, inp, out, channels, multipliers, blocks, attention, classes):
        super().build(inp, out, channels, multipliers, blocks, attention, {**(classes or {}), "view": len(VIEWS)})

    def _walk(self, x, time, cond):
        return super()._walk(x, time, {**cond, "view": view_of(wanted(cond, "camera"))})
