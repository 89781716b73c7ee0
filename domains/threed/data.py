"""Shapes as voxels, in two stages: where the voxels are, then what they hold.

The stages are like those of structured latents (TRELLIS, arXiv 2412.01506).

See `lattice.py` for the cube that they lie in. N: voxels of a padded set; R: voxels along a side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

from distillkit import checks
from distillkit.data import DistillData, TensorData
from distillkit.spec import Recorded
from domains.threed.lattice import CHANNELS, Volumes, depth, occupied, shell, voxel_features, voxel_sets


class Shapes(Recorded, ABC):
    """A source of shapes."""

    @abstractmethod
    def load(self, side: int) -> tuple[Volumes, Volumes, Volumes]:
        """Training, validation and test shapes with `side` voxels along each axis."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """The categories, by label; empty if there are none. Known after `load`."""


class ShapeData(DistillData):
    """Base of the data of both stages.

    Args:
        shapes: the source.
        side: voxels along each side, R: 16, 32 or 64.
        batch_size: samples of one micro-batch.
    """

    domain = "threed"
    pictured = 24

    def __init__(self, shapes: Shapes, side: int = 16, batch_size: int = 32):
        super().__init__(batch_size)
        if side not in (16, 32, 64):  # media tell it from the voxels' indices alone
            raise ValueError(f"side must be 16, 32 or 64, got {side}")
        self.shapes, self.side = shapes, side

    def load(self) -> tuple[TensorData, TensorData, TensorData]:
        parts = self.shapes.load(self.side)
        self.names = {"label": self.shapes.names} if self.shapes.names else {}
        self.classes = {name: len(known) for name, known in self.names.items()}
        return tuple(TensorData(self.batch(part)) for part in parts)

    @abstractmethod
    def batch(self, volumes: Volumes) -> dict[str, Tensor]:
        """All items of a batch, of all shapes."""

    @property
    def media(self) -> ModuleType:
        """`domains.threed.media`."""
        from domains.threed import media

        return media


class StructureData(ShapeData):
    """Stage one: where the voxels are.

    Batch: `data` float32 [B, 1, R, R, R] in [-1, 1]; `label` int64 [B], if there are classes.

    `data` says how deep a voxel lies (`depth`). Above 0 it is occupied, which is all that a sample
    of a model decodes to. Bare -1 and 1 would say the same, but a smooth field is easier to
    generate and leaves no loose voxels. Stage two works on the `shell` of the occupied voxels.
    """

    def __init__(self, shapes: Shapes, side: int = 16, batch_size: int = 32):
        super().__init__(shapes, side, batch_size)
        self.event_shape = (1, side, side, side)

    def batch(self, volumes: Volumes) -> dict[str, Tensor]:
        return {"data": depth(volumes.distance)[:, None]} | _labels(volumes)

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.threed.evaluation import Structure

        return Structure(self.train, held_out, self.classes, self.side)


class FeaturesData(ShapeData):
    """Stage two: what the voxels of the shell hold. A sample is a set of voxels, padded to N.

    Batch:

    - `data`: float32 [B, N, 11]: the signed distances at the voxel's corners in units of its side,
      positive outside, in the order of `CORNERS`; then red, green, blue in [-1, 1].
    - `coords`: int64 [B, N, 3], the voxel's indices.
    - `mask`: bool [B, N], false in the padding, where the others are zero.
    - `label`: int64 [B], if there are classes.

    Args:
        shapes: the source.
        side: voxels along each side, R.
        voxels: N, as many as the largest shell has or more.
        batch_size: samples of one micro-batch.
    """

    context = ("coords", "mask")
    asks = {
        "coords": "the voxels of each shape's surface, the first of what domains.threed.lattice.voxel_sets makes of a "
        "structure's shell (domains.threed.chain does so with samples of the first stage)",
        "mask": "which of the voxels there are, the second of what domains.threed.lattice.voxel_sets makes",
    }

    def __init__(self, shapes: Shapes, side: int = 16, voxels: int = 640, batch_size: int = 32):
        super().__init__(shapes, side, batch_size)
        checks.whole(1, voxels=voxels)
        self.voxels = voxels
        self.event_shape = (voxels, CHANNELS)

    def batch(self, volumes: Volumes) -> dict[str, Tensor]:
        coords, mask = voxel_sets(shell(occupied(volumes.distance)), self.voxels)
        return {"data": voxel_features(volumes, coords, mask), "coords": coords, "mask": mask} | _labels(volumes)

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.threed.evaluation import Features

        return Features(self.train, held_out, self.classes, self.side)


def _labels(volumes: Volumes) -> dict[str, Tensor]:
    return {} if volumes.label is None else {"label": volumes.label}
