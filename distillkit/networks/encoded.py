"""A network whose samples are data, where a student's are the latents of a codec."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from distillkit.codec import Codec
from distillkit.diffusion.denoiser import Cond
from distillkit.spec import Recorded


class Encoded(Recorded, nn.Module):
    """A scene's renders as latents; gradients go through the codec's encoder.

    All other attributes are the scene's.

    Args:
        network: makes data from conditions, see `networks.base.Blind`.
        codec: encodes them.
    """

    blind = True

    def __init__(self, network: nn.Module, codec: Codec):
        super().__init__()
        self.network, self.codec = network, codec

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.codec.encode({**cond, "data": self.network(x, time, cond)})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_modules" not in self.__dict__ or "network" not in self._modules:
                raise
            return getattr(self._modules["network"], name)
