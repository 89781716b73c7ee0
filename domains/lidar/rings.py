"""The beams of a scan whose file does not name them.

n: points; a ring is what one beam saw in one turn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SLICE = 0.4  # degrees of elevation that stand for a beam where the order does not tell: a 64-beam sensor's
STARTS = 24  # azimuths at which turns are tried to begin
REACH = 12.0  # degrees around that azimuth within which each beam begins at one of its own
NEXT = 5.0  # degrees between neighbours of a ring, at most: for half of them, and for none that falls back
FEW = 10  # points on each side of a change of beams by which it is found
MOST, ORDERED = 256, 0.9  # beams of a sensor, and the share of them that lie below the one before


def rings(points: Tensor) -> Tensor:
    """The ring of each point [n, 3], int64 [n], 0 the highest; rings without points do not count.

    Files such as KITTI's hold one ring after another, from above, each turning one way, so a ring
    begins where the azimuth falls back to its start. Points in any other order are cut into slices
    of equal elevation.
    """
    x, y, z = points.double().numpy().T
    elevation, azimuth = np.degrees(np.arctan2(z, np.hypot(x, y))), np.degrees(np.arctan2(y, x))
    found = _turns(azimuth, elevation)
    if found is None:
        found = np.unique(-np.floor(elevation / SLICE), return_inverse=True)[1]
    return torch.from_numpy(found.astype(np.int64))


def _turns(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray | None:
    """The turn of each point; None where they are in another order.

    Of all azimuths the start is the one across which elevations fall as far as from turn to turn.
    Points around it are put aside first, and then parted where their own elevation falls.
    """
    steps = (np.diff(azimuth) + 180) % 360 - 180
    if len(steps) == 0 or np.median(np.abs(steps)) > NEXT:
        return None
    turned = azimuth if np.median(steps) > 0 else -azimuth
    sums = np.r_[0, np.cumsum(elevation)]
    tries = [_gaps(turned - 360 * i / STARTS) for i in range(STARTS)]
    gaps = min((gaps for gaps in tries if 0 < len(gaps) < MOST), key=lambda gaps: _misfit(sums, gaps), default=None)
    if gaps is None:
        return None
    cuts = [_change(sums, *gap) for gap in gaps]
    means = _means(sums, np.r_[0, cuts], np.r_[cuts, len(elevation)])
    ordered = (np.diff(means) < 0).mean() > ORDERED
    return np.searchsorted(cuts, np.arange(len(elevation)), side="right") if ordered else None


def _gaps(along: np.ndarray) -> np.ndarray:
    """Between turns, the end of the one and the beginning of the next, [turns - 1, 2], far from 0.

    Points lie `along` a turn, in degrees; the end is the point after the last.
    """
    along = along % 360
    kept = np.flatnonzero((along > REACH) & (along < 360 - REACH))
    last = np.flatnonzero(np.diff(along[kept]) < -NEXT)
    return np.stack([kept[last] + 1, kept[last + 1]], 1) if len(last) else np.zeros((0, 2), int)


def _misfit(sums: np.ndarray, gaps: np.ndarray) -> float:
    """The usual difference between the fall of elevations across a gap and that of whole turns."""
    ends, starts = gaps.T
    turns = _means(sums, np.r_[0, starts], np.r_[ends, len(sums) - 1])
    falls = _means(sums, ends - FEW, ends) - _means(sums, starts, starts + FEW)
    return float(np.median(np.abs(falls + np.diff(turns))))


def _change(sums: np.ndarray, end: int, start: int) -> int:
    """The point from `end` to `start` at which the elevation falls most."""
    low, high = max(end - FEW, 0), min(start + FEW, len(sums) - 1)
    cuts = np.arange(end, start + 1)
    falls = _means(sums, low, cuts) - _means(sums, cuts, high)
    weight = (cuts - low) * (high - cuts)  # so that most of the variance is between the parts
    return int(cuts[np.argmax(weight * falls * np.abs(falls))])


def _means(sums: np.ndarray, low: np.ndarray | int, high: np.ndarray | int) -> np.ndarray:
    """The means of values from `low` to before `high`, by the sums of all before each."""
    low, high = np.clip(low, 0, len(sums) - 1), np.clip(high, 0, len(sums) - 1)
    return (sums[high] - sums[low]) / (high - low)
