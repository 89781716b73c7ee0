"""Protocols of networks: the call that every network has, and the members that are optional.

No network derives from these classes; to have the members is enough. A network gets scaled samples:
`Denoiser` turns times, scales and predictions into these calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from distillkit.diffusion.denoiser import Cond


class Network(Protocol):
    """A function of a sample, a time and a condition.

    Its class also derives from `Recorded`, so that folders can name it.
    """

    def __call__(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Returns a tensor like x.

        Args:
            x: samples scaled to order one, [B, ...].
            time: [B], of order one.
            cond: tensors with B rows, by name.
        """


class WithFeatures(Network, Protocol):
    """A network with features for discriminators, as `networks.features.Features` gives them.

    A network that gives only its middle takes no `layers` and has no `feature_widths`.
    """

    feature_channels: int
    feature_widths: list[int]  # channels after each of its blocks

    def features(self, x: Tensor, time: Tensor, cond: Cond, layers: Sequence[int] | None = None) -> Any:
        """Activations of the middle, [B, C, *positions], or a list of those after `layers`.

        Those of padded sets are zero at positions without an element.
        """


class Centred(Network, Protocol):
    """A network on sets of points [B, N, C] with mean zero, if its attribute `centred` is true."""

    centred: bool


class Blind(Network, Protocol):
    """A network that looks at the conditions alone and not at x, if its attribute `blind` is true.

    It cannot take noise out of x, so its prediction must be `x0`, or `edm` on large noise.
    """

    blind: bool


class Changing(Network, Protocol):
    """A network that changes in the course of a run, such as the size that it renders at.

    It does so in training mode alone.
    """

    def progress(self, done: float) -> None:
        """Called before each step with the share of the run that has passed, in [0, 1)."""


class Penalised(Network, Protocol):
    """A network with a loss term of its own in a student's training, such as a scene's smoothness.

    Attributes:
        penalty: of the last call in training mode, a scalar with gradient; None leaves it out.
    """

    penalty: Tensor | None


class Reader(Network, Protocol):
    """A network whose class `prompt` stands for texts that it reads itself.

    Attributes:
        known: the texts that it was made for, where these are not all.
    """

    known: Sequence[str]

    def ask(self, texts: list[str]) -> None:
        """Take these texts as its prompts, by number, from now on.

        Raises:
            ValueError: there is nothing that it can make of one.
        """


class WithContext(Network, Protocol):
    """A network that checks the conditions besides classes that it can take."""

    def check_context(self, cond: Cond) -> None:
        """Refuse impossible conditions; called before a student samples, not in training.

        Raises:
            ValueError: a condition's shape, dtype or range is not one that the network takes.
        """


class WithNull(Network, Protocol):
    """A network with an unconditional branch for what is no class: an observation, a scan."""

    def null(self, cond: Cond) -> Cond:
        """Returns `cond` with what stands for no observation; shapes stay."""


class Tellable(Protocol):
    """The `embed` of a network that can be told conditions, such as `blocks.Embedding`."""

    def tell(self, name: str, **kind: Any) -> None:
        """Add a condition `cond[name]`; its weights start at zero, see `Denoiser.tell`.

        Raises:
            ValueError: no kind or several, a name that is taken, a size or a range without sense.
        """


class WithEmbed(Network, Protocol):
    """A network that can be told further conditions."""

    embed: Tellable
