"""Squares of photographs as data sets: what a batch holds follows from its indices alone.

n: samples; c: side of a square of a photograph; s: scale. Values are float32 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from distillkit.data import Batch
from distillkit.feeding import in_parallel
from distillkit.sources import first_whole
from domains.super_resolution.photographs import Photographs

EPOCH = 2**20  # squares of an epoch
VISIT = 32  # squares of a photograph, on average, while it is kept
PORTION = 16  # held-out squares that are prepared together
TRAIN, VAL, TEST, ORDER = range(4)  # streams of random numbers

Finish = Callable[[list[Tensor], Sequence[int]], Batch]


class Squares:
    """Random squares of photographs for training, turned and mirrored.

    Index i decides on the photograph, the place, the turn and the seed of the degradation. If more
    photographs are given than are kept, a window of indices, `together` long, knows only as many of
    them; the windows of a pass share them out at random.

    Args:
        photographs: they are at least as large as a square.
        crop: c.
        finish: makes a batch of [data [n, 3, c, c]], or of [data, low [n, 3, c/s, c/s]], and n
            seeds.
        seed: of all choices.
    """

    def __init__(self, photographs: Photographs, crop: int, finish: Finish, seed: int):
        self.photographs, self.crop, self.finish, self.seed = photographs, crop, finish, seed
        self.windows = -(-len(photographs) // photographs.most)  # of a pass
        self.together = -(-len(photographs) // self.windows) * VISIT if self.windows > 1 else None

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, indices: Tensor) -> Batch:
        draws = [stream(self.seed, TRAIN, i) for i in indices.tolist()]
        numbers = [self._number(i, random.random()) for i, random in zip(indices.tolist(), draws, strict=True)]
        images = decoded(self.photographs, sorted(set(numbers)))
        rows = [
            cut(images[number], self.crop, *random.random(2), turn=int(random.integers(8)))
            for number, random in zip(numbers, draws, strict=True)
        ]
        return self.finish(
            [tensor(column) for column in zip(*rows, strict=True)], [seed_of(random) for random in draws]
        )

    def _number(self, i: int, share: float) -> int:
        """The photograph of index i, of those that its window knows."""
        if self.together is None:
            return int(share * len(self.photographs))
        turn, window = divmod(i // self.together, self.windows)
        known = shared_out(self.seed, turn, len(self.photographs), self.windows)[window]
        return int(known[int(share * len(known))])


class HeldOut:
    """Fixed squares of the photographs in turn, neither turned nor mirrored.

    They are prepared together when one is first asked for, and kept as 8 bits.

    Args:
        num: number of squares; of more photographs than that, as many are used.
        part: VAL or TEST, with random numbers of its own.
        photographs, crop, finish, seed: as in `Squares`.
    """

    def __init__(self, photographs: Photographs, crop: int, finish: Finish, seed: int, num: int, part: int):
        self.photographs, self.crop, self.finish, self.seed = photographs, crop, finish, seed
        self.num, self.part = num, part

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, indices: Tensor) -> Batch:
        return {name: value[indices].float() / 127.5 - 1 for name, value in self.squares.items()}

    @cached_property
    def squares(self) -> dict[str, Tensor]:
        """All squares, uint8."""
        total, places = len(self.photographs), {}
        for j in range(self.num):
            places.setdefault(j * total // self.num if total > self.num else j % total, []).append(j)
        draws, rows = [stream(self.seed, self.part, j) for j in range(self.num)], {}

        def cuts(number: int) -> None:
            images = first_whole(number, total, self.photographs.decode)[1]
            for j in places[number]:
                rows[j] = [square.copy() for square in cut(images, self.crop, *draws[j].random(2))]

        in_parallel(cuts, places)
        batches = []
        for portion in torch.arange(self.num).split(PORTION):
            columns = zip(*(rows[j] for j in portion.tolist()), strict=True)
            batch = self.finish([tensor(column) for column in columns], [seed_of(draws[j]) for j in portion.tolist()])
            batches.append({name: ((value + 1) * 127.5).round().byte() for name, value in batch.items()})
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@lru_cache(2)
def shared_out(seed: int, turn: int, total: int, windows: int) -> list[np.ndarray]:
    """The photographs that each window of a pass knows, equally many."""
    return np.array_split(stream(seed, ORDER, turn).permutation(total), windows)


def decoded(photographs: Photographs, numbers: Sequence[int]) -> dict[int, tuple[np.ndarray, ...]]:
    """Photographs by number; for a broken one the next one stands in."""
    if photographs.all_kept:  # threads would only cost their start
        return {number: photographs.kept(number) for number in numbers}
    found = in_parallel(lambda number: first_whole(number, len(photographs), photographs.kept)[1], numbers)
    return dict(zip(numbers, found, strict=True))


def stream(*key: int) -> np.random.Generator:
    """The random numbers that belong to a key."""
    return np.random.Generator(np.random.PCG64(key))


def seed_of(random: np.random.Generator) -> int:
    return int(random.integers(2**32))


def cut(images: Sequence[np.ndarray], crop: int, top: float, left: float, turn: int = 0) -> list[np.ndarray]:
    """A square of a photograph, [c, c, 3], and the part of its observation [c/s, c/s, 3] below it.

    Args:
        images: the photograph [sH, sW, 3], and its observation [H, W, 3] if there is one.
        crop: c.
        top, left: place in [0, 1), uniform over all places.
        turn: 0 to 7: quarter turns, and from 4 on mirrored.
    """
    scale = images[0].shape[0] // images[-1].shape[0]
    row, column = (
        int(share * (side - crop // scale + 1)) for share, side in zip((top, left), images[-1].shape[:2], strict=True)
    )
    squares = []
    for image, unit in zip(images, (scale, 1), strict=False):
        square = image[
            row * unit : row * unit + crop * unit // scale, column * unit : column * unit + crop * unit // scale
        ]
        square = np.rot90(square, turn % 4)
        squares.append(square[:, ::-1] if turn >= 4 else square)
    return squares


def tensor(squares: Sequence[np.ndarray]) -> Tensor:
    """uint8 squares [c, c, 3] as float32 [n, 3, c, c] in [-1, 1]."""
    return torch.from_numpy(np.stack(squares)).movedim(-1, 1).contiguous().float() / 127.5 - 1
