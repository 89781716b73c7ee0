"""Image files for the tests of photographs."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def texture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Noise of every grey level, uint8 [height, width, 3]: no square of it comes twice."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **settings)
    return path


def deep_png(levels: np.ndarray) -> bytes:
    """A PNG of 16 bits, which Pillow cannot write in colours; levels uint16 [height, width, C]."""
    height, width, channels = levels.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels))
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0), b"IDAT" + rows, b"IEND")
    parts = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
