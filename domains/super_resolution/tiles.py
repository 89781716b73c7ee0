"""Photographs larger than memory: tiles that share their noise, blended where they overlap.

A side of a photograph is cut into tiles of one size, which start at multiples of a unit. Where two
neighbours overlap, one fades into the other along a ramp. The weights of a pixel sum to one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 64  # side of the squares in which noise is drawn


class Cuts:
    """How one side is cut: the tiles' size, where they start, and their weights.

    Args:
        side: pixels of the side.
        tile: largest size of a tile.
        overlap: pixels that neighbours share at least.
        unit: tiles start at its multiples.
        reach: how far from its edges a tile differs from the whole; None means that nobody knows.
    """

    def __init__(self, side: int, tile: int, overlap: int, unit: int, reach: int | None = None):
        if side <= tile:
            self.size, self.starts = side, [0]
        else:
            self.size = tile - (tile - side) % unit  # the last tile starts at a multiple too
            step = (self.size - overlap) // unit
            if step < 1:
                raise ValueError(
                    f"tiles of {tile} pixels that share {overlap} have fewer than {unit} of their own: give a larger --tile or a "
                    f"smaller --overlap"
                )
            units = (side - self.size) // unit
            gaps = -(-units // step)
            self.starts = [units * k // gaps * unit for k in range(gaps + 1)]
        self.ramp = overlap - 2 * reach if reach is not None and 2 * reach < overlap else overlap / 2

    def weights(self) -> Tensor:
        """The weights [tiles, size] of each tile's pixels, float32.

        The ramp between two tiles lies in the middle of what they share. Beside it the pixels near
        the edges of tiles have weight zero: at least `reach` of them if the overlap has room for
        that, else a quarter of the overlap.
        """
        starts = torch.tensor(self.starts, dtype=torch.float64)[:, None]
        if len(starts) == 1:
            return torch.ones(1, self.size)
        middle = (starts[:-1] + starts[1:] + self.size) / 2
        ramp = max(min(self.ramp, float((starts[1:] - starts[:-1]).min())), 1.0)
        at = starts + torch.arange(self.size) + 0.5
        comes = ((at[1:] - middle) / ramp + 0.5).clamp(0, 1)  # from 0 to 1 at a tile's beginning
        goes = ((at[:-1] - middle) / ramp + 0.5).clamp(0, 1)
        one = torch.ones(1, self.size, dtype=torch.float64)
        return (torch.cat([one, comes]) - torch.cat([goes, 0 * one])).float()


def blended(
    make: Callable[[Sequence[tuple[int, int]], tuple[int, int]], Tensor],
    size: Sequence[int],
    tile: int,
    overlap: int,
    unit: int = 1,
    reach: int | None = None,
    batch: int = 1,
) -> Iterator[Tensor]:
    """Yields an image of `size` (height, width) as bands [C, rows, width], from top to bottom.

    Memory holds one row of tiles, however high the image is.

    Args:
        make: `make(corners, (height, width))`, the tiles [n, C, height, width] with these corners
            (top, left), on the CPU.
        size: height and width of the image.
        tile, overlap, unit, reach: as in `Cuts`.
        batch: tiles of one call.
    """
    down, right = (Cuts(side, tile, overlap, unit, reach) for side in size)
    falls, across, held = down.weights(), right.weights(), None
    for k, top in enumerate(down.starts):
        for some in torch.arange(len(right.starts)).split(batch):
            tiles = make([(top, right.starts[i]) for i in some.tolist()], (down.size, right.size))
            tiles = tiles * falls[k][:, None] * across[some][:, None, None, :]
            if held is None:
                held = tiles.new_zeros(tiles.shape[1], down.size, size[1])
            for i, one in zip(some.tolist(), tiles, strict=True):
                held[..., right.starts[i] : right.starts[i] + right.size] += one
        done = down.starts[k + 1] - top if k + 1 < len(down.starts) else down.size
        yield held[:, :done]
        held = torch.cat([held[:, done:], torch.zeros_like(held[:, :done])], dim=1)


def how_many(size: Sequence[int], tile: int, overlap: int, unit: int = 1) -> int:
    """The number of tiles of an image."""
    return math.prod(len(Cuts(side, tile, overlap, unit).starts) for side in size)


def noise(seed: int, draw: int, channels: int, corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Unit Gaussian noise [channels, *size] of a part of an endless plane, on the CPU.

    Each square block of the plane has a stream of its own, so parts that overlap share their noise.

    Args:
        seed, draw: which plane; the draws of one seed are independent.
        channels: channels of the plane.
        corner: (top, left) of the part.
        size: (height, width) of the part.
    """
    (top, left), (height, width) = corner, size
    rows, columns = range(top // BLOCK, -(-(top + height) // BLOCK)), range(left // BLOCK, -(-(left + width) // BLOCK))
    plane = torch.cat([torch.cat([_block(seed, draw, channels, i, j) for j in columns], 2) for i in rows], 1)
    y, x = top - rows.start * BLOCK, left - columns.start * BLOCK
    return plane[:, y : y + height, x : x + width]


def _block(*place: int) -> Tensor:
    """The noise [channels, BLOCK, BLOCK] of (seed, draw, channels, row, column)."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    stream = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(place[2], BLOCK, BLOCK, generator=stream)
