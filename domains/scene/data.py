"""Scenes: clips between two known views, and what a cheap reconstruction makes of them.

A batch has

- `data` [B, 3, F, H, W] float32 in [-1, 1]: a clip of a camera that moves through a still scene;
- `first` [B, 3, 2, H, W] in [-1, 1]: its end frames;
- `coarse` [B, 3, F, H, W] in [-1, 1]: a cheap reconstruction from the end frames, seen like `data`;
- `cameras` [B, F, 13]: see `distillkit.rendering.cameras`;
- `depth` [B, 1, F, H, W]: along the cameras' axes, in metres, where it is known.

B: batch; F: frames; H, W: height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from distillkit import checks
from distillkit.data import Batch, DistillData
from distillkit.rendering import cameras as viewing
from domains.scene import coarse, rooms

APART = 1_000_000_007  # between the seeds of two data sets
PART = 100_000_000  # between the seeds of a data set's parts
AT_ONCE = 4  # clips that are made together: more are slower, they do not fit a processor's cache


class SceneData(DistillData):
    """Base of all scenes: how they are measured and shown.

    Args:
        batch_size: clips in a batch.
    """

    domain = "scene"
    context, classes = ("first", "coarse"), {}
    provides = DistillData.provides | {"approximation"}
    pictured = 6
    asks = {
        "first": "the two end frames of each clip, numbers in [-1, 1] of shape [n, 3, 2, height, width]",
        "coarse": "a reconstruction's rendering of each clip, numbers in [-1, 1] of shape [n, 3, frames, height, width]",
    }

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.scene.evaluation import SceneEvaluator

        return SceneEvaluator(held_out)

    @property
    def media(self) -> ModuleType:
        """`domains.video.media`."""
        from domains.video import media

        return media


class Rooms(SceneData):
    """Procedural rooms with coloured balls and boxes, [3, 8, 32, 32]; see `domains.scene.rooms`.

    The coarse clip is the end views' pixels at wrong depths, see `domains.scene.coarse`; how wrong
    is drawn for each scene. Everything is a function of the seed. A clip is made when it is first
    asked for and kept in 8 bits.

    Args:
        train, val, test: number of clips.
        damage: the range [low, high] within [0, 1] of how bad the reconstructions are.
        seed: of rooms, paths and errors.
        batch_size: clips in a batch.
    """

    def __init__(
        self,
        train: int = 2048,
        val: int = 64,
        test: int = 128,
        damage: Sequence[float] = (0.0, 1.0),
        seed: int = 0,
        batch_size: int = 8,
    ):
        super().__init__(batch_size)
        checks.whole(1, PART, train=train, val=val, test=test)
        checks.within("[0, 1]", damage=list(damage))
        if len(damage) != 2 or damage[0] > damage[1]:
            raise checks.Unfit("damage", list(damage), "be a range [low, high]")
        checks.seed(seed=seed)
        self.sizes, self.damage, self.seed = (train, val, test), tuple(damage), seed
        self.event_shape = (3, rooms.FRAMES, rooms.SIDE, rooms.SIDE)

    def load(self) -> tuple[Clips, Clips, Clips]:
        first = self.seed * APART
        return tuple(Clips(size, first + part * PART, self.damage) for part, size in enumerate(self.sizes))


class Clips:
    """Clips as a data set: `clips[indices]` makes those that are new and keeps them.

    Args:
        size: their number.
        first: the seed of the first one.
        damage: see `Rooms`.

    Attributes:
        damage: of each clip's reconstruction, [size].
    """

    def __init__(self, size: int, first: int, damage: tuple[float, float]):
        low, high = damage
        generator = torch.Generator().manual_seed(first)
        self.first, self.damage = first, low + (high - low) * torch.rand(size, generator=generator)
        self.made = torch.zeros(size, dtype=torch.bool)
        shape = size, 3, rooms.FRAMES, rooms.SIDE, rooms.SIDE
        self.kept = {  # memory is taken where it is written
            "data": torch.empty(shape, dtype=torch.uint8),
            "coarse": torch.empty(shape, dtype=torch.uint8),
            "cameras": torch.empty(size, rooms.FRAMES, viewing.SIZE),
            "depth": torch.empty(size, 1, *shape[2:]),
        }

    def __len__(self) -> int:
        return len(self.damage)

    def __getitem__(self, indices: Tensor) -> Batch:
        lacking = indices[~self.made[indices]].unique()
        for new in lacking.split(AT_ONCE) if len(lacking) else ():
            for name, values in made(self.first + new, self.damage[new]).items():
                self.kept[name][new] = values
            self.made[new] = True  # a thread that made them at the same time wrote the same
        data, found = (self.kept[name][indices].float() / 127.5 - 1 for name in ("data", "coarse"))
        return batch_of(data, found, self.kept["cameras"][indices]) | {"depth": self.kept["depth"][indices]}


def made(seeds: Tensor, damage: Tensor) -> Batch:
    """Clips and their reconstructions as bytes, depths and cameras.

    Args:
        seeds: int64 [B].
        damage: of the reconstructions, [B].
    """
    scenes, cameras = rooms.drawn(seeds)
    data, depth = rooms.render(scenes, cameras)
    first, seen = coarse.damaged(data[:, :, [0, -1]], depth[:, :, [0, -1]], damage, seeds)
    found = coarse.reconstructed(first, seen, cameras)
    levels = {"data": levels_of(data), "coarse": levels_of(found)}
    return {**levels, "cameras": cameras, "depth": depth}


def batch_of(data: Tensor, found: Tensor, cameras: Tensor) -> Batch:
    """A batch of clips [B, 3, F, H, W] and reconstructions like them, by cameras [B, F, 13]."""
    return {"data": data, "first": data[:, :, [0, -1]], "coarse": found, "cameras": cameras}


def levels_of(x: Tensor) -> Tensor:
    """Pictures in [-1, 1] in 8 bits."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
