"""Features of networks that are a row of blocks, for discriminators and probes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor


def last(row: Iterator[Tensor]) -> Tensor:
    """The last element of an iterator; earlier ones are freed on the way."""
    return deque(row, maxlen=1).pop()


class Features:
    """Mixin of networks that give their features.

    A network yields its blocks' outputs in `activations` and sets the attributes.

    Attributes:
        feature_widths: channels of the features after each of its blocks.
        feature_layer: index of the middle block, the default of `features`.
    """

    feature_widths: list[int]
    feature_layer: int

    def activations(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Iterator[Tensor]:
        """Yields the features after each block, [B, C, *positions]; blocks run on demand."""
        raise NotImplementedError

    @property
    def feature_channels(self) -> int:
        """Channels of the features in the middle."""
        return self.feature_widths[self.feature_layer]

    def features(
        self, x: Tensor, time: Tensor, cond: dict[str, Tensor], layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """The features of the middle, [B, C, *positions], or a list of those after `layers`.

        They take one pass, which ends with the last block asked for.

        Args:
            x, time, cond: as for the network itself.
            layers: indices of blocks, from 0, in any order.

        Raises:
            ValueError: there is no such block.
        """
        wanted = [self.feature_layer] if layers is None else self.checked(layers)
        row = zip(range(max(wanted) + 1), self.activations(x, time, cond), strict=False)  # no block runs after the last
        found = {index: h for index, h in row if index in wanted}
        return found[self.feature_layer] if layers is None else [found[index] for index in wanted]

    def checked(self, layers: Sequence[int]) -> list[int]:
        """`layers` as a list; a ValueError if one of the blocks does not exist."""
        num = len(self.feature_widths)
        if not layers or any(not 0 <= index < num for index in layers):
            raise ValueError(
                f"layers must be indices from 0 to {num - 1}, of the blocks of {type(self).__name__}, got {layers}"
            )
        return list(layers)
