"""The held-out samples that generated ones are compared with: those of the same observations."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distillkit.data import Batch
from distillkit.evaluation.samples import batches
from distillkit.progress import counted

READ = 64  # samples that are read at once

Row = tuple[int, int]  # the number of a data set, and the row there


def _itself(observation: Tensor) -> Tensor:
    return observation


class References:
    """Held-out samples by what was observed of them.

    Args:
        held_out: one or several data sets, len() and data[indices] -> {"data": [n, ...], observed}.
        observed: the batch key of the observations.
        levels: an observation as it is compared, where rounding on its way must not matter.
    """

    def __init__(self, held_out: Sequence[Any], observed: str, levels: Callable[[Tensor], Tensor] = _itself):
        self.held_out, self.observed, self.levels = list(held_out), observed, levels

    def rows(self, observations: Tensor) -> list[Row]:
        """By observation the row of its sample.

        Where samples have one observation (two photographs that are white, say), they take turns.

        Raises:
            ValueError: an observation is of no held-out sample.
        """
        asked: Counter[bytes] = Counter()
        rows = []
        for key in map(self._key, observations):
            if not (known := self._known.get(key)):
                raise ValueError(
                    "samples are compared with the held-out data of their observations, and there is none for sample "
                    f"{len(rows)}: evaluate with the data that it was made for"
                )
            rows.append(known[asked[key] % len(known)])
            asked[key] += 1
        return rows

    def samples(self, rows: Sequence[Row]) -> Tensor:
        """Held-out samples [n, ...] in the order of `rows`."""
        return self.batch(rows, ("data",))["data"]

    def batch(self, rows: Sequence[Row], names: Sequence[str]) -> Batch:
        """What held-out batches have under some names, in the order of `rows`."""
        found: dict[Row, tuple[Tensor, ...]] = {}
        for number in {number for number, _ in rows}:
            wanted = sorted({row for part, row in rows if part == number})
            batch = self.held_out[number][torch.tensor(wanted)]
            columns = zip(*(batch[name] for name in names), strict=True)
            found |= {(number, row): sample for row, sample in zip(wanted, columns, strict=True)}
        columns = zip(*(found[row] for row in rows), strict=True)
        return {name: torch.stack(column) for name, column in zip(names, columns, strict=True)}

    @cached_property
    def _known(self) -> dict[bytes, list[Row]]:
        """The rows of samples by the keys of their observations."""
        found: dict[bytes, list[Row]] = {}
        for number, data in enumerate(self.held_out):
            every = (one for batch in batches(data, READ) for one in batch[self.observed])
            for row, one in zip(counted("reading the held-out data", len(data)), every, strict=True):
                found.setdefault(self._key(one), []).append((number, row))
        return found

    def _key(self, observation: Tensor) -> bytes:
        levels = self.levels(observation).cpu().contiguous()
        return hashlib.blake2b(repr(tuple(levels.shape)).encode() + levels.numpy().tobytes(), digest_size=16).digest()
