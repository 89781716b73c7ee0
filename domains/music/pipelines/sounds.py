"""What pipelines of sound have in common: durations, and the codec between sounds and latents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit import checks
from distillkit.pipelines.codec import PipelineCodec
from distillkit.pipelines.network import Network


class Sound(PipelineCodec):
    """Sounds [B, channels, samples] in [-1, 1] and latents, by a pipeline's autoencoder.

    Sounds that are kept beside their latents have 16 bits.

    Args:
        seconds: of a sound. The autoencoder makes whole frames, of which the first
            `seconds * sample_rate` samples are kept.
        path, print: as in `PipelineCodec`.
    """

    levels = torch.int16

    def __init__(self, path: str, seconds: float, print: str | None = None):
        super().__init__(path, print)
        self.seconds = seconds

    def check(self, data):
        own, there = self.data_shape(()), tuple(data.event_shape)
        if own != there or data.rate != self.sample_rate:
            raise ValueError(
                f"the data have shape {list(there)} at {data.rate} Hz, sounds of the pipeline in {self.path} {list(own)} at "
                f"{self.sample_rate} Hz: say data=captioned, which reads sounds as this pipeline makes them"
            )

    @property
    def sample_rate(self) -> int:
        """Samples a second, in Hz."""
        return self.config["sampling_rate"]

    @property
    def samples(self) -> int:
        """Samples of a sound."""
        return min(int(self.seconds * self.sample_rate), self.whole())

    @abstractmethod
    def whole(self) -> int:
        """Samples of a sound before it is cut."""

    def units(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(1), torch.ones(1)

    def filled(self, x: Tensor) -> Tensor:
        """A sound with silence, or cut, to whole frames."""
        return F.pad(x, (0, self.whole() - x.shape[-1]))

    def into(self, x: Tensor) -> Tensor:
        return super().into(self.filled(x))

    def out_of(self, z: Tensor) -> Tensor:
        return super().out_of(z)[..., : self.samples]

    def data_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        return self.config["audio_channels"], self.samples


class Sounds(Network):
    """A family whose samples are sounds of some seconds."""

    codec: type[Sound]

    @classmethod
    @abstractmethod
    def own_seconds(cls, root: Path) -> float:
        """The duration of the pipeline in `root` where a user says none."""

    @classmethod
    def seconds(cls, root: Path, size: Mapping[str, float | None]) -> float:
        """The duration asked for.

        Raises:
            ValueError: it is not positive.
        """
        if (asked := size.get("seconds")) is None:
            return cls.own_seconds(root)
        checks.positive("set teacher.seconds", seconds=asked)
        return float(asked)

    @classmethod
    def make_codec(cls, root, size):
        return cls.codec(str(root), cls.seconds(root, size))

    @classmethod
    def read_settings(cls, root, shape, asked):
        return {"seconds": cls.seconds(root, asked)}
