"""A network whose samples are data, where a student's are the latents of a codec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.codec import Codec
from distillkit.diffusion.denoiser import Cond
from distillkit.spec import Recorded


class Encoded(Recorded, nn.Module):
    """A scene's renders as latents; gradients go through the codec's encoder.

    All attributes that it lacks are the scene's.

    Args:
        network: makes images [B, C, h, w] from conditions, see `networks.base.Blind`.
        codec: encodes them.
        size: height and width that it encodes; images of another size are resized to it.
    """

    blind = True
    event_shape = None  # of latents; the scene's own is that of its images

    def __init__(self, network: nn.Module, codec: Codec, size: Sequence[int]):
        super().__init__()
        self.network, self.codec, self.size = network, codec, tuple(size)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        image = self.network(x, time, cond)
        if image.shape[-2:] != self.size:
            image = F.interpolate(image, size=self.size, mode="bilinear", antialias=True)
        return self.codec.encode({**cond, "data": image})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_modules" not in self.__dict__ or "network" not in self._modules:
                raise
            return getattr(self._modules["network"], name)
