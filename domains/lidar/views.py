"""Scans, and what they are scans of.

All coordinates are metres in the sensor's frame: x forward, y left, z up, the sensor at zero.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

NEAREST = 3.5  # metres from the sensor; what is nearer is the car that carries it
FARTHEST = 50.0  # metres from the sensor, of scenes that are completed (LiDiff's protocol)


class Scan(NamedTuple):
    """One revolution of a LiDAR.

    Attributes:
        points: [n, 3] float32, finite.
        intensity: [n] float32 in [0, 1]; None where it is not known.
        ring: [n] int64, the beam of each point, 0 the highest; None where it is not known.
    """

    points: Tensor
    intensity: Tensor | None = None
    ring: Tensor | None = None


class View(NamedTuple):
    """A scan and the static scene around it.

    Attributes:
        scan: what the sensor saw.
        truth: [m, 3] float32, points of the scene within the largest range.
        name: where it comes from, for people: `sequence/frame`.
    """

    scan: Scan
    truth: Tensor
    name: str


class Views(Protocol):
    """Views by number; each is made when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> View: ...
