"""Features of any network that is a row of blocks: what its blocks make, for discriminators and probes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor


def last(row: Iterator[Tensor]) -> Tensor:
    """The last of a row; the others are let go as it runs."""
    return deque(row, maxlen=1).pop()


class Features:
    """Mixin of networks that give their features.

    A network says how its blocks follow each other in `activations`, and sets

    Attributes:
        feature_widths: channels of the features after each of its blocks.
        feature_layer: index of the block, in the middle of the network, that `features` means if
            nobody says which.
    """

    feature_widths: list[int]
    feature_layer: int

    def activations(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Iterator[Tensor]:
        """The features after each block in turn, [B, C, *positions]; a block runs when its features are asked for."""
        raise NotImplementedError

    @property
    def feature_channels(self) -> int:
        """Channels of the features in the middle."""
        return self.feature_widths[self.feature_layer]

    def features(
        self, x: Tensor, time: Tensor, cond: dict[str, Tensor], layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """The features in the middle, [B, C, *positions], or after each of `layers`, in one pass that ends with the last.

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
        """`layers` as a list, if it names blocks that there are."""
        num = len(self.feature_widths)
        if not layers or any(not 0 <= index < num for index in layers):
            raise ValueError(
                f"layers must be indices from 0 to {num - 1}, of the blocks of {type(self).__name__}, got {layers}"
            )
        return list(layers)
