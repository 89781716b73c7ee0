"""What a network is, and what it may offer besides. Nothing derives from these classes: to have the members is enough.

The network sees scaled samples: `Denoiser` turns times, scales and predictions into these calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from distillkit.diffusion.denoiser import Cond


class Network(Protocol):
    """A function of a sample, a time and a condition. Its class also derives from `Recorded`, so that a folder can name it."""

    def __call__(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Like x [B, ...], which is scaled to order one; time: [B], of order one; cond: tensors of B rows by name."""


class WithFeatures(Network, Protocol):
    """A network on whose activations a discriminator can stand; `networks.features.Features` gives all of it.

    One that offers its middle alone takes no `layers` and has no `feature_widths`.
    """

    feature_channels: int
    feature_widths: list[int]  # channels after each of its blocks

    def features(self, x: Tensor, time: Tensor, cond: Cond, layers: Sequence[int] | None = None) -> Any:
        """Activations of the middle, [B, feature_channels, *positions], or a list with those after each of `layers`."""


class Centred(Network, Protocol):
    """A network of sets of points [B, N, C] with mean zero; one without the attribute is not centred."""

    centred: bool


class WithContext(Network, Protocol):
    """A network that says which conditions besides classes it can take."""

    def check_context(self, cond: Cond) -> None:
        """Called where a student is asked for samples, not in training.

        Raises:
            ValueError: one has a shape, a kind of numbers or a range that the network cannot take.
        """


class Tellable(Protocol):
    """The `embed` of a network that can be told further conditions, as `blocks.Embedding` and `blocks.Told` are."""

    def tell(self, name: str, **kind: Any) -> None:
        """From now on the network reads `cond[name]`, whose weights begin as zero, see `Denoiser.tell`.

        Raises:
            ValueError: no kind or several, a name that is taken, a size or a range without sense.
        """


class WithEmbed(Network, Protocol):
    """A network that can be told further conditions."""

    embed: Tellable
