"""Crops of scenes as data sets: what a batch holds follows from its indices alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distillkit.data import Batch
from domains.lidar.views import Scan, Views

EPOCH = 2**20  # crops of an epoch
REACH = 35.0  # metres from the sensor within which crops are centred
LEAST = 16  # points of a partial scan in a crop, if such a crop is found
TRIES = 20
HEIGHTS = (-3.0, 4.0)  # metres above the sensor between which a crop lies
TRAIN, VAL, TEST = range(3)  # streams of random numbers


class Cut(NamedTuple):
    """The settings of crops.

    Attributes:
        crop: side of the square in metres; None for whole scans.
        max_range: metres from the sensor beyond which nothing is seen, for whole scans.
        num_full, num_part: points of a sample and of a partial scan.
        beams: beams of the partial scan; None for all.
    """

    crop: float | None
    max_range: float
    num_full: int
    num_part: int
    beams: int | None


class Crops:
    """Parts of scenes: random ones for training, turned and mirrored, or a fixed number of them.

    Index i decides on the view, the place, the turn, the beams and the points. Held-out crops are
    spread over the views, neither turned nor mirrored.

    Args:
        views: the views, at least one.
        cut: the settings.
        seed: of all choices.
        part: the stream, `TRAIN`, `VAL` or `TEST`.
        num: number of held-out crops; None for training.
    """

    def __init__(self, views: Views, cut: Cut, seed: int, part: int = TRAIN, num: int | None = None):
        self.views, self.cut, self.seed, self.part, self.num = views, cut, seed, part, num
        self.together = getattr(views, "together", None) if num is None else None

    def __len__(self) -> int:
        return EPOCH if self.num is None else self.num

    def __getitem__(self, indices: Tensor) -> Batch:
        return _batch([self._item(i) for i in indices.tolist()])

    def again(self, indices: Tensor) -> Batch:
        """The batch of these indices with other points of the same scenes under `data`."""
        return _batch([self._item(i, draw=1) for i in indices.tolist()])

    def _item(self, index: int, draw: int = 0) -> tuple[Tensor, Tensor]:
        """Points [N, 3] and a partial scan [n, 3]; `draw` chooses among the points of the scene."""
        random = np.random.default_rng([self.seed, self.part, index])
        view = self.views[self._view(index, random)]
        cut, training = self.cut, self.num is None
        part, truth = partial(view.scan, cut.beams, random, training), view.truth
        if cut.crop is None:
            found = [_near(points, points.new_zeros(2), cut.max_range) for points in (part, truth)]
        else:
            centre = _centre(part, truth, cut, random)
            reach = cut.crop * 0.5 * 2**0.5
            found = [_near(points, centre, reach) - _flat(centre) for points in (part, truth)]
        if training:
            turn = _turn(random.uniform(0, 2 * np.pi), bool(random.integers(2)))
            found = [points @ turn for points in found]
        if cut.crop is not None:
            found = [points[_inside(points, cut.crop)] for points in found]
        part, truth = found
        if not len(part):  # of a view without any point within reach
            part = torch.zeros(1, 3)
        if not len(truth):
            truth = part
        part = filled(part, cut.num_part, random)
        return filled(truth, cut.num_full, np.random.default_rng([self.seed, self.part, index, draw])), part

    def _view(self, index: int, random: np.random.Generator) -> int:
        num = len(self.views)
        if self.num is not None:
            return index * num // self.num if self.num >= num else int((index + 0.5) * num / self.num)
        if self.together is None:
            return int(random.integers(num))
        window = np.random.default_rng([self.seed, self.part, index // self.together, num])
        known = window.choice(num, min(num, self.views.kept), replace=False)
        return int(random.choice(known))


def partial(scan: Scan, beams: int | None, random: np.random.Generator, shifted: bool) -> Tensor:
    """The points [m, 3] of evenly spread beams of a scan; all of them if it has no more beams.

    Args:
        scan: a scan whose rings are known, otherwise all of its points are taken.
        beams: number of beams; None for all.
        random: chooses the first beam.
        shifted: whether the first beam is random, otherwise it is the highest.
    """
    if beams is None or scan.ring is None or not len(scan.ring):
        return scan.points
    every = max(1, round((int(scan.ring.max()) + 1) / beams))
    first = int(random.integers(every))
    return scan.points[scan.ring % every == (first if shifted else 0)]


def filled(points: Tensor, num: int, random: np.random.Generator) -> Tensor:
    """A number of points: random ones, each as often as any other, but for one more or less."""
    order = torch.from_numpy(random.permutation(len(points)))
    return points[order.repeat(-(-num // len(order)))[:num]]


def _centre(part: Tensor, truth: Tensor, cut: Cut, random: np.random.Generator) -> Tensor:
    """The middle [2] of a crop: a point of the partial scan with some of its points around it."""
    ground = part[:, :2]
    within = ground[ground.norm(dim=1) < REACH]
    if not len(within):
        return ground[0] if len(ground) else torch.zeros(2)
    best, most = within[0], -1
    for _ in range(TRIES):
        centre = within[int(random.integers(len(within)))]
        num = int(_inside(part - _flat(centre), cut.crop).sum())
        if num >= LEAST:
            return centre
        if num > most:
            best, most = centre, num
    return best


def _near(points: Tensor, centre: Tensor, reach: float) -> Tensor:
    return points[(points[:, :2] - centre).square().sum(1) <= reach**2]


def _inside(points: Tensor, side: float) -> Tensor:
    x, y, z = points.unbind(1)
    low, high = HEIGHTS
    return (x.abs() <= side / 2) & (y.abs() <= side / 2) & (z > low) & (z < high)


def _flat(centre: Tensor) -> Tensor:
    return torch.cat([centre, centre.new_zeros(1)])


def _turn(angle: float, mirrored: bool) -> Tensor:
    """A matrix [3, 3] that turns rows about z, after a mirror at y = 0."""
    c, s = np.cos(angle), np.sin(angle)
    turn = torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1]], dtype=torch.float32)
    return torch.diag(torch.tensor([1.0, -1.0 if mirrored else 1.0, 1.0])) @ turn


def _batch(items: list[tuple[Tensor, Tensor]]) -> Batch:
    data, part = (torch.stack(column) for column in zip(*items, strict=True))
    return {"data": data, "part": part}
