"""Photographs in files. H, W: height and width."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from domains.image.reading import decoded, fault, from_uint8, opened, orientation

TURNED = (5, 6, 7, 8)  # orientations that swap width and height
SCALES = (2, 3, 4, 8)  # between a photograph and its observation
ROOM = 2**29  # bytes of decoded photographs that are kept


def read(path: str | Path) -> Tensor:
    """A photograph [3, H, W] in [-1, 1], of any kind, as viewers show it.

    It is turned by its EXIF data; grey becomes RGB, transparency goes over white, 16 bits become 8.

    Raises:
        ValueError: it cannot be decoded; names the file.
    """
    return from_uint8(pixels(Path(path))[None], str(path))[0]


def pixels(path: Path) -> np.ndarray:
    """As `read`, uint8 [H, W, 3]."""
    return np.asarray(decoded(path, 3))


def look(path: Path) -> dict[str, Any]:
    """`size` [W, H] as viewers show the photograph, and `fault`: why it cannot be used, or None."""
    if (why := fault(path)) is not None:
        return {"fault": why, "size": None}
    with opened(path) as image:
        turned = orientation(image) in TURNED
        return {"fault": None, "size": [*image.size[:: -1 if turned else 1]]}


def small(size: Sequence[int], crop: int) -> str | None:
    """Why a photograph of a size [W, H] is too small for a square, or None."""
    width, height = size
    return f"has {width} x {height} pixels, too few for a square of {crop}" if min(size) < crop else None


class Photographs:
    """Photographs by number, with their observations where files hold them; decoded when needed.

    Args:
        paths: of each photograph: its file, and the one of its observation.
        sizes: [W, H] of each of these files.
        scale: how many times larger a photograph is than its observation, if it has one.

    Attributes:
        most: the number of photographs for which there is `ROOM`; the last ones are kept.
        kept: as `decode`, which it calls for one that is not kept.
    """

    def __init__(self, paths: Sequence[tuple[Path, ...]], sizes: Sequence[Sequence[Sequence[int]]], scale: int = 1):
        self.paths, self.sizes, self.scale = list(paths), list(sizes), scale
        self.most = max(1, ROOM // max(3 * width * height for (width, height), *_ in self.sizes))
        self.kept = lru_cache(self.most)(self.decode)

    def __len__(self) -> int:
        return len(self.paths)

    def __reduce__(self) -> tuple[type[Photographs], tuple[Any, ...]]:
        return Photographs, (self.paths, self.sizes, self.scale)  # decoded ones stay in their process

    @property
    def all_kept(self) -> bool:
        """Whether none is left to decode."""
        return self.kept.cache_info().currsize == len(self)

    def decode(self, number: int) -> tuple[np.ndarray, ...]:
        """uint8 [sH, sW, 3] and, where there is an observation, uint8 [H, W, 3].

        What a photograph has beyond s times its observation is cut at its right and lower edges.

        Raises:
            ValueError: a file cannot be decoded, or has changed; names it.
        """
        images = tuple(map(pixels, self.paths[number]))
        for path, image, (width, height) in zip(self.paths[number], images, self.sizes[number], strict=True):
            if image.shape[:2] != (height, width):
                raise ValueError(f"{path} is not what it was ({width} x {height} pixels) when the run began")
        height, width = images[-1].shape[:2]
        return images[0][: self.scale * height, : self.scale * width], *images[1:]
