"""Measures of a completed scene beside the true one, as papers take them.

Source: the evaluation of LiDiff (arXiv 2403.13470) with the IoU that LiDPM corrected (arXiv
2504.17791). Scenes are sets of points [n, 3], tensors on any device or arrays, in metres in the
sensor's frame; their order does not matter. Histograms are sparse: the cells of a whole scene at
0.1 m, a thousand millions, would not fit in memory.

n, m: points; k: occupied cells; B: scenes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy.integrate import simpson
from scipy.spatial import cKDTree
from scipy.spatial.distance import jensenshannon
from torch import Tensor

CELL = 0.5  # metres, of the histograms that are compared
VOXELS = (0.5, 0.2, 0.1)  # metres, of the intersection over union
THRESHOLDS = np.linspace(0.05, 0.1, 100)  # metres, of precision and recall
LEGACY = 50  # voxels from the sensor beyond which the published IoU sees nothing
BITS = 21  # of each coordinate in the key of a cell
FAR = 1e6  # metres, of what is infinite
PAIRS = 2**24  # of points that are compared at once on an accelerator

Points = Tensor | np.ndarray
Cells = tuple[np.ndarray, np.ndarray]


def within(points: Tensor, max_range: float) -> Tensor:
    """The points that are nearer to the sensor than `max_range` metres."""
    return points[torch.linalg.vector_norm(points, dim=-1) < max_range]


def gaps(ours: Points, theirs: Points) -> tuple[Tensor, Tensor]:
    """Distances from the points of each set to the nearest of the other, [n] and [m], in metres.

    Their means are the halves of the Chamfer distance. They are taken by trees on the CPU and pair
    by pair elsewhere, from differences of coordinates: a product of matrices would lose the
    millimetres of 32-bit numbers.
    """
    ours, theirs = (torch.as_tensor(points).detach().float() for points in (ours, theirs))
    if ours.device.type == "cpu":
        there, back = (cKDTree(b).query(a)[0] for a, b in ((ours, theirs), (theirs, ours)))
        return torch.from_numpy(there), torch.from_numpy(back)
    return _by_pairs(ours, theirs)


def _by_pairs(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    there, back = [], theirs.new_full((len(theirs),), torch.inf)
    for some in ours.split(max(1, PAIRS // len(theirs))):
        squared = (some[:, None] - theirs).square().sum(-1)
        there.append(squared.amin(1))
        back = torch.minimum(back, squared.amin(0))
    return torch.cat(there).sqrt(), back.sqrt()


def chamfer(ours: Points, theirs: Points) -> Tensor:
    """The mean of both mean distances to the nearest point of the other set, in metres.

    Distances are not squared, unlike in the loss of LiDiff's refinement.
    """
    there, back = gaps(ours, theirs)
    return (there.mean() + back.mean()) / 2


def f_score(there: Tensor, back: Tensor) -> float:
    """F-score in [0, 1], averaged over thresholds from 0.05 to 0.1 m by Simpson's rule.

    Args:
        there: distances of completed points from true ones, [n].
        back: distances of true points from completed ones, [m].
    """
    precision, recall = (_shares(distances) for distances in (there, back))
    both = precision + recall
    score = 2 * precision * recall / np.where(both > 0, both, 1)
    return float(simpson(score, THRESHOLDS) / (THRESHOLDS[-1] - THRESHOLDS[0]))


def _shares(distances: Tensor) -> np.ndarray:
    """Shares of the distances below each threshold."""
    return np.searchsorted(np.sort(_array(distances)), THRESHOLDS) / len(distances)


def jsd_3d(ours: Points, theirs: Points) -> float:
    """Square root of the Jensen-Shannon divergence of points over cells of 0.5 m.

    The logarithm is natural, so it lies between 0 and sqrt(ln 2) = 0.8326.
    """
    return _jsd(*(_counted(_cells(points)) for points in (ours, theirs)))


def jsd_bev(ours: Points, theirs: Points) -> float:
    """As `jsd_3d`, of occupied cells over columns of 0.5 m: the bird's-eye view.

    The tables of the papers mean this one by JSD.
    """
    return _jsd(*(_counted(np.unique(_cells(points)) >> BITS) for points in (ours, theirs)))


def overlap(ours: Points, theirs: Points, voxel: float, legacy: bool = False) -> np.ndarray:
    """Numbers [3] of voxels in both sets, in ours alone and in theirs alone.

    These are true positives, false positives and false negatives. Of a set of scenes they are added
    up before the intersection is divided by the union.

    Args:
        ours, theirs: the completed and the true scene.
        voxel: side in metres.
        legacy: whether voxels are chosen as in the code of LiDiff, ScoreLiDAR and
            Distillation-DPO, which rounds coordinates and sees 50 voxels in each direction alone:
            5 m at 0.1 m. Where points are dense its numbers are larger, 0.66 instead of 0.52 for
            all beams of a scan beside a map of three.
    """
    a, b = (np.unique(_cells(points, voxel, legacy)) for points in (ours, theirs))
    both = len(np.intersect1d(a, b, assume_unique=True))
    return np.array([both, len(a) - both, len(b) - both])


def iou(counts: np.ndarray) -> float:
    """Intersection over union in [0, 1] of the numbers of `overlap`; 1 where both are empty."""
    return float(counts[0] / counts.sum()) if counts.any() else 1.0


def _cells(points: Points, side: float = CELL, legacy: bool = False) -> np.ndarray:
    """The cells [n] of points, as keys int64 whose last `BITS` bits are the height."""
    place = (np.rint if legacy else np.floor)(_array(points) / side)
    if legacy:
        place = place[(np.abs(place) <= LEGACY).all(1)]
    half = 2 ** (BITS - 1)
    x, y, z = (place.clip(-half, half - 1).astype(np.int64) + half).T  # the farthest points share a cell
    return (x << 2 * BITS) | (y << BITS) | z


def _counted(cells: np.ndarray) -> Cells:
    return np.unique(cells, return_counts=True)


def _jsd(ours: Cells, theirs: Cells) -> float:
    """The Jensen-Shannon distance of counts in cells."""
    every = np.union1d(ours[0], theirs[0])
    histograms = np.zeros((2, len(every)))
    for histogram, (cells, counts) in zip(histograms, (ours, theirs), strict=True):
        histogram[np.searchsorted(every, cells)] = counts
    return float(jensenshannon(*histograms))


def _array(x: Points) -> np.ndarray:
    return torch.as_tensor(x).detach().double().cpu().numpy()


@torch.no_grad()
def reward(
    samples: Tensor,
    batch: dict[str, Tensor],
    metric: Literal["chamfer", "jsd_bev", "jsd_3d", "f_score"] = "chamfer",
) -> Tensor:
    """How good completed scenes [B, n, 3] are beside the true ones `batch["data"]` [B, m, 3].

    Coordinates that are not finite count as zero or as very far: steps of such samples are skipped.

    Returns:
        [B] on the device of the samples, higher is better: the F-score, or minus the distance.
    """
    measure = {
        "chamfer": lambda ours, theirs: -chamfer(ours, theirs),
        "jsd_bev": lambda ours, theirs: -jsd_bev(ours, theirs),
        "jsd_3d": lambda ours, theirs: -jsd_3d(ours, theirs),
        "f_score": lambda ours, theirs: f_score(*gaps(ours, theirs)),
    }[metric]
    pairs = zip(samples.nan_to_num(posinf=FAR, neginf=-FAR), batch["data"], strict=True)
    return torch.stack([torch.as_tensor(measure(*pair), dtype=torch.float32) for pair in pairs]).to(samples.device)
