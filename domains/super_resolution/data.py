"""Photographs `data` [B, 3, sH, sW] and their observations `low` [B, 3, H, W], float32 in [-1, 1].

B: batch; H, W: height and width of an observation; s: the scale between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distillkit import checks
from distillkit.data import Batch, DistillData
from domains.super_resolution.resize import shrunk

EPOCH = 65_536  # crops of the training data, each with a place, a flip and a seed of its own


class SuperResolutionData(DistillData):
    """Base of all photographs: how they are cut, measured and shown.

    Args:
        scale: how many times smaller an observation is: 2, 3, 4 or 8.
        crop: side of the photographs' squares, in pixels, divisible by the scale.
        batch_size: squares in a batch.
    """

    domain = "super_resolution"
    context = ("low",)
    classes = {}
    asks = {"low": "the small photographs, [n, 3, height, width] in [-1, 1]"}
    pictured = 16

    def __init__(self, scale: int = 4, crop: int = 48, batch_size: int = 16):
        super().__init__(batch_size=batch_size)
        self.scale, self.crop = scale, crop
        self.event_shape = (3, crop, crop)

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.super_resolution.evaluation import SuperResolutionEvaluator

        return SuperResolutionEvaluator(self.train, held_out, self.scale)

    @property
    def media(self) -> ModuleType:
        """`domains.super_resolution.media`."""
        from domains.super_resolution import media

        return media


class Photos(SuperResolutionData):
    """Squares of the photographs that scikit-image and scikit-learn ship."""

    TRAIN = (
        "astronaut.png",
        "chelsea.png",
        "retina.jpg",
        "ihc.png",
        "motorcycle_left.png",
        "hubble_deep_field.jpg",
        "flower.jpg",
    )
    VAL, TEST = ("coffee.png",), ("rocket.jpg", "china.jpg")

    def load(self):
        parts = [[_photo(name) for name in names] for names in (self.TRAIN, self.VAL, self.TEST)]
        return (
            Crops(parts[0], self.crop, self.scale, EPOCH, 0),
            Crops(parts[1], self.crop, self.scale, 250, 1, False),
            Crops(parts[2], self.crop, self.scale, 250, 2, False),
        )


def _photo(name: str) -> np.ndarray:
    import skimage
    import sklearn

    for folder in (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"):
        if (folder / name).is_file():
            return np.asarray(Image.open(folder / name).convert("RGB"))
    raise ValueError(name)


class Crops:
    """Squares of images as a data set: index i has a place, a flip and a seed of its own."""

    def __init__(self, images: Sequence[np.ndarray], crop: int, scale: int, num: int, seed: int, turned: bool = True):
        self.images, self.crop, self.scale, self.num, self.seed, self.turned = (
            list(images),
            crop,
            scale,
            num,
            seed,
            turned,
        )
        area = np.array([image.shape[0] * image.shape[1] for image in images], dtype=float)
        self.share = np.cumsum(np.sqrt(area)) / np.sqrt(area).sum()

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, indices: Tensor) -> Batch:
        data = torch.stack([self._cut(i) for i in indices.tolist()])
        return {"data": data, "low": shrunk(data, self.scale)}

    def _cut(self, i: int) -> Tensor:
        random = np.random.Generator(np.random.PCG64([self.seed, i]))
        image = self.images[int(np.searchsorted(self.share, random.random()))]
        top, left = (random.integers(side - self.crop + 1) for side in image.shape[:2])
        square = image[top : top + self.crop, left : left + self.crop]
        if self.turned:
            square = np.rot90(square, random.integers(4))
            square = square[:, ::-1] if random.random() < 0.5 else square
        return torch.from_numpy(square.copy()).movedim(-1, 0).float() / 127.5 - 1
