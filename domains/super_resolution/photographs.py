"""Photographs as files. H, W: height and width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from domains.image.reading import decoded, fault, from_uint8, opened

ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the key in EXIF data, and its values that swap height and width


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
        turned = image.getexif().get(ORIENTATION) in TURNED
        return {"fault": None, "size": [*image.size[:: -1 if turned else 1]]}
