"""Range images `data` [B, 2, H, W] and their given `rays` [B, 3, H, W], float32 in [-1, 1].

`data` holds log range and reflectance, see `projection.image`; `rays` one beam in `every` of it,
see `rays.given`. B: images; H: beams; W: columns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distillkit import checks
from distillkit.data import Batch, DistillData
from domains.lidar import streets
from domains.lidar.projection import NEAR, image
from domains.lidar.rays import given

EPOCH = 2**20  # images of an epoch


class Sweeps(NamedTuple):
    """Range images of one sensor.

    Attributes:
        images: float32 [n, 2, H, W] in [-1, 1].
        elevations: float64 [H], of the beams, in degrees, falling.
    """

    images: Tensor
    elevations: Tensor


class Turned:
    """Images for training, turned and mirrored at random, with a random beam given first.

    Index i decides on all of it.

    Args:
        images: [n, 2, H, cW]: c times as fine in azimuth, so that turns are finer than a column.
        width: W.
        every: one beam in so many is given.
        seed: of all choices.
    """

    def __init__(self, images: Tensor, width: int, every: int, seed: int):
        self.images, self.every, self.seed = images, every, seed
        self.fine = images.shape[-1] // width

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, indices: Tensor) -> Batch:
        draws = [np.random.Generator(np.random.PCG64((self.seed, i))).random(4) for i in indices.tolist()]
        first = torch.tensor([int(draw[3] * self.every) for draw in draws])
        data = torch.stack([self._turned(*draw[:3]) for draw in draws])
        return {"data": data, "rays": given(data, self.every, first)}

    def _turned(self, which: float, turn: float, mirrored: float) -> Tensor:
        """An image by three numbers in [0, 1)."""
        made = self.images[int(which * len(self.images))]
        made = made.roll(int(turn * made.shape[-1]), -1)[..., :: self.fine]
        return made.flip(-1) if mirrored < 0.5 else made


class HeldOut:
    """Every image once for each first beam.

    Args:
        images: [n, 2, H, W].
        again: the same scenes with other noise of the sensor, like `images`; None where there is no
            such thing.
        every: one beam in so many is given.
    """

    def __init__(self, images: Tensor, every: int, again: Tensor | None = None):
        self.images, self.every, self.other = images, every, again

    def __len__(self) -> int:
        return len(self.images) * self.every

    def __getitem__(self, indices: Tensor) -> Batch:
        data = self.images[indices % len(self.images)]
        return {"data": data, "rays": given(data, self.every, indices // len(self.images))}

    def again(self, indices: Tensor) -> Batch:
        """The batch of these indices with `data` as the sensor saw it another time."""
        return self[indices] | {"data": self.other[indices % len(self.other)]}


class RangeData(DistillData):
    """Base of range images: how they are turned, thinned, measured and shown.

    Args:
        height: H; of more beams every second, third ... is used.
        width: W, likewise.
        every: one beam in so many is given.
        farthest: what is farther, in metres, is no return.
        seed: of turns, of beams and of the sensor's noise.
        batch_size: images in a batch.
    """

    domain = "lidar"
    context = ("rays",)
    classes = {}
    asks = {"rays": "the given rays of each range image, as domains.lidar.rays.given makes them"}
    pictured = 8

    def __init__(
        self,
        height: int = 32,
        width: int = 256,
        every: int = 4,
        farthest: float = 50.0,
        seed: int = 0,
        batch_size: int = 8,
    ):
        super().__init__(batch_size)
        checks.whole(2, 4096, height=height, width=width)
        checks.whole(2, height, every=every)
        checks.within(f"({NEAR}, 1000]", farthest=farthest)
        checks.seed(seed=seed)
        self.height, self.width, self.every, self.farthest, self.seed = height, width, every, farthest, seed
        self.event_shape = (2, height, width)

    @abstractmethod
    def sweeps(self, part: str, seed: int) -> Sweeps:
        """All range images of `train`, `val` or `test`, as the sensor has them.

        Args:
            part: the part.
            seed: of the sensor's noise.
        """

    def load(self) -> tuple[Turned, HeldOut, HeldOut]:
        train = self._thinned(self.sweeps("train", self.seed)).images
        held_out = []
        for part in ("val", "test"):
            sweeps, again = (self._thinned(self.sweeps(part, self.seed + i)) for i in (0, 1))
            fine = sweeps.images.shape[-1] // self.width
            images = (each.images[..., ::fine].contiguous() for each in (sweeps, again))
            held_out.append(HeldOut(next(images), self.every, next(images)))
        self.elevations = sweeps.elevations
        return Turned(train, self.width, self.every, self.seed), *held_out

    def _thinned(self, sweeps: Sweeps) -> Sweeps:
        """Sweeps of H beams, of a multiple of W columns."""
        *_, beams, columns = sweeps.images.shape
        if beams % self.height or columns % self.width:
            raise ValueError(
                f"images of {self.height} x {self.width} pixels cannot be taken from {beams} x {columns}: give divisors as "
                f"data.height and data.width"
            )
        step = beams // self.height
        return Sweeps(sweeps.images[:, :, ::step].contiguous(), sweeps.elevations[::step])

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.lidar.range_evaluation import RangeEvaluator

        return RangeEvaluator(held_out, self.elevations, self.farthest)

    @property
    def media(self) -> Any:
        """`domains.lidar.range_media.RangeMedia`."""
        from domains.lidar.range_media import RangeMedia

        self.setup()
        return RangeMedia(self.elevations, self.farthest)


class StreetRanges(RangeData):
    """The embedded streets, see `domains.lidar.streets`.

    Args:
        kwargs: as in `RangeData`; height divides 64, width divides 512.
    """

    def sweeps(self, part: str, seed: int) -> Sweeps:
        shots = streets.panoramas(part, seed)
        ranges, reflectance = (
            torch.stack([getattr(shot, name) for shot in shots]) for name in ("ranges", "reflectance")
        )
        return Sweeps(image(ranges, reflectance, self.farthest), shots[0].elevations)
