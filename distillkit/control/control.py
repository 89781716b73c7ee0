"""The contract of controls: what is asked of samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from distillkit.codec import Codec


@dataclass(frozen=True)
class Asked:
    """What a control may need to know of the samples that it is for.

    Attributes:
        event_shape: shape of one sample in the space of the diffusion.
        codec: the map between data and samples.
        data: the data module that the model was made with; None if there is none.
        model: the student or the teacher.
        cond: the conditions of the samples, [n, ...] each.
        n: the number of samples.
    """

    event_shape: tuple[int, ...]
    codec: Codec = field(default_factory=Codec)
    data: Any = None
    model: Any = None
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    n: int = 1


class Control(ABC):
    """What samples should be; one class for each task.

    A sample's loss depends on this sample and its conditions alone. It is computed by torch alone
    and differentiable in the sample. What is asked differs between samples by their conditions
    only, since samples may come in parts.

    Args:
        asked: what it is for.

    Attributes:
        name: the word by which the command line asks for it.
        unit: the unit of `error`, such as "dB^2"; empty for a number without one.
        seconds: the duration that `curves` cover; None if they do not run in time.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""
    seconds: float | None = None

    def __init__(self, asked: Asked):
        self.codec = asked.codec

    @classmethod
    @abstractmethod
    def read(cls, text: str, asked: Asked) -> Control:
        """The control that the command line asks for by `NAME=TEXT`.

        Args:
            text: the target; empty if there was none.
            asked: the samples that it is for.

        Raises:
            ValueError: the text asks for nothing that such samples can have; one sentence.
        """

    @abstractmethod
    def loss(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """How far samples are from what is asked, [B], differentiable; 0 or less is fulfilled.

        Args:
            x: samples in the space of the diffusion, [B, *event_shape].
            cond: their conditions.
        """

    def error(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """What is told to people, [B] in `unit`; lower is better."""
        return self.loss(x, cond)

    def heard(self, data: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The error [B] of decoded samples: of what people get."""
        return self.error(self.codec.encode({**cond, "data": data}), cond)

    def curves(self, x: Tensor, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The target and what is there, each [T], for a picture; empty if there are no curves.

        Args:
            x: one sample in the space of the diffusion, [1, *event_shape].
            cond: its conditions, [1, ...] each.

        Returns:
            curves by name, `target` first, in the unit of the target.
        """
        return {}
