"""Photographs of a user's, of any size, through a student."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distillkit import devices
from distillkit.files import write_atomic
from distillkit.progress import progress
from distillkit.students.base import Student
from domains.image.reading import SUFFIXES, opened, upright
from domains.super_resolution.photographs import read
from domains.super_resolution.resize import eight_bits, enlarged
from domains.super_resolution.tiles import Cuts, blended, how_many, noise

TILES = 8  # made at once, at most
PROBE = 64  # side of the part of an observation by which memory is estimated
COPIES = 8  # bytes of a pixel of the picture that is written: colours, and those of the encoder
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")  # Pillow's modes
SPACES = {True: b"GRAY", False: b"RGB "}  # of colour profiles for grey pictures and others


class Enlarger:
    """Files of photographs as files of larger ones, see `distillkit.codec.Answering`.

    Files are read as in training. What is written is PNG of 8 bits: grey stays grey, transparent
    parts stay so, and the colour profile is kept.

    Args:
        student: the student.
        scale: how many times larger it makes them.
        seed, kappa: as in `Student.sample`. Equal photographs get equal noise.
        tile: largest side of what is made at once, in pixels of the result; None for the whole.
        overlap: pixels that neighbouring tiles share at least.

    Raises:
        ValueError: tiles that are too small, or a kappa that the student does not take.
    """

    noun, ending = "image", ".png"
    suffixes = SUFFIXES

    def __init__(self, student: Student, scale: int, seed: int, kappa: float | None, tile: int | None, overlap: int):
        self.student, self.scale, self.seed, self.kappa = (student := student.merged()), scale, seed, kappa
        self.tile, self.overlap = tile, overlap
        self.unit = math.lcm(scale, student.codec.factor * getattr(student.network, "patch", 1))
        reach = getattr(student.network, "reach", None)
        known = reach is not None and student.codec.factor == 1  # an autoencoder sees farther
        self.reach = student.num_steps * reach + 2 * scale if known else None
        student.checked_condition(1, {"low": torch.zeros(1, 3, 1, 1)}, kappa)
        if tile is not None:
            for rest in range(0, self.unit, scale):  # all sides that photographs may have
                Cuts((2 * tile // self.unit + 1) * self.unit + rest, tile, overlap, self.unit)

    def __call__(self, source: Path, target: Path) -> None:
        low = read(source)
        with opened(source) as image:
            grey, profile, opacity = image.mode in GREY, image.info.get("icc_profile"), _opacity(image)
        made = Image.fromarray(self.enlarge(low, source.name))
        if grey:
            made = made.convert("L")
        if opacity is not None:
            made = transparent(made, opacity)
        kept = {"icc_profile": profile} if profile and profile[16:20] == SPACES[grey] else {}
        write_atomic(target, lambda temporary: made.save(temporary, format="PNG", **kept))

    def enlarge(self, low: Tensor, name: str = "the photograph") -> np.ndarray:
        """A photograph [3, H, W] in [-1, 1] as uint8 [sH, sW, 3].

        Raises:
            ValueError: it takes more memory than there is.
        """
        height, width = size = [self.scale * side for side in low.shape[1:]]
        tile = self.tile or max(size)
        at_once = self._at_once(low, tile, name)
        made, row = np.empty((height, width, 3), np.uint8), 0
        with progress(name, how_many(size, tile, self.overlap, self.unit)) as going:

            def make(corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
                found = devices.in_chunks(lambda rows: self.tiles(low, corners[rows], size), len(corners), len(corners))
                going.advance(len(corners))
                return found

            try:
                for band in blended(make, size, tile, self.overlap, self.unit, self.reach, at_once):
                    levels = (eight_bits(band) + 1) * 127.5
                    made[row : row + band.shape[1]] = levels.round().byte().movedim(0, -1).numpy()
                    row += band.shape[1]
            except torch.OutOfMemoryError:
                raise ValueError(self._too_large(name, tile, "more memory than the device has")) from None
        return made

    @torch.no_grad()
    def tiles(self, low: Tensor, corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
        """Tiles [n, 3, *size] of the enlarged photograph, with their corners at these pixels."""
        student, codec, (height, width) = self.student, self.student.codec, [side // self.scale for side in size]
        parts = [low[:, y : y + height, x : x + width] for y, x in (_divided(corner, self.scale) for corner in corners)]
        cond = student.checked_condition(len(parts), {"low": torch.stack(parts)}, self.kappa)
        _, channels, *sides = codec.shape(len(parts), student.event_shape, cond)
        cond = {name: value.to(student.device) for name, value in cond.items()}

        def draw(i: int) -> Tensor:
            places = [_divided(corner, codec.factor) for corner in corners]
            return torch.stack([noise(self.seed, i, channels, place, sides) for place in places]).to(student.device)

        return codec.decode(student(draw(0), cond, draw), cond)

    def _at_once(self, low: Tensor, tile: int, name: str) -> int:
        """The number of tiles for which there is memory at once; refuses what would take more.

        What the student needs for a small part tells what it needs for each tile.
        """
        part = [min(PROBE, side) for side in low.shape[1:]]
        size = [self.scale * side for side in low.shape[1:]]
        if max(low.shape[1:]) <= PROBE:
            return TILES
        pixels, there = math.prod(size), devices.free(torch.device("cpu"))
        if there is not None and (need := COPIES * pixels) > there:
            raise ValueError(
                f"{name}: {size[1]:,} x {size[0]:,} pixels need about {_gigabytes(need)}, and {_gigabytes(there)} are free"
            )
        with devices.Peak() as peak:
            self.tiles(low, [(0, 0)], tuple(self.scale * side for side in part))
        ours = math.prod(min(tile, side) for side in size)
        need, there = peak.bytes * ours // (self.scale**2 * math.prod(part)), devices.free(self.student.device)
        if there is None:
            return TILES
        if need > there:
            raise ValueError(
                self._too_large(name, tile, f"about {_gigabytes(need)} of memory, and {_gigabytes(there)} are free")
            )
        return min(TILES, there // need)

    def _too_large(self, name: str, tile: int, need: str) -> str:
        mend = "--tile 512" if self.tile is None else f"a --tile smaller than {tile}"
        return f"{name} needs {need}: give {mend}"


def _divided(corner: tuple[int, int], by: int) -> tuple[int, int]:
    return corner[0] // by, corner[1] // by


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def _opacity(image: Image.Image) -> Tensor | None:
    """The opacity [1, 1, H, W] in [0, 1] of a picture as viewers show it; None if it is 1."""
    if "A" not in image.mode and "transparency" not in image.info:
        return None
    opacity = np.array(upright(image).convert("RGBA").getchannel("A"))
    return None if opacity.min() == 255 else torch.from_numpy(opacity).float()[None, None] / 255


def transparent(image: Image.Image, opacity: Tensor) -> Image.Image:
    """A picture over white with that white taken away, where it shows through.

    Args:
        image: grey or RGB.
        opacity: [1, 1, H, W] in [0, 1], enlarged here to the size of the picture.

    Returns:
        The picture with transparency, which looks as before over white.
    """
    alpha = enlarged(opacity, image.size[::-1])[0, 0].clamp(0, 1).numpy()
    white = 255 * (1 - alpha)
    bands = [(np.asarray(band) - white) / alpha.clip(1 / 255) for band in image.split()]
    bands = [*bands, 255 * alpha]
    return Image.merge(
        f"{image.mode}A", [Image.fromarray(band.round().clip(0, 255).astype(np.uint8)) for band in bands]
    )
