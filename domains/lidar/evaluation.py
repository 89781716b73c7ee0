"""How good completed scenes are: beside the true scenes of the same scans.

N: scenes; n, m: points of a scene.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillkit import checks
from distillkit.evaluation.metrics import Estimate
from distillkit.evaluation.references import References
from distillkit.evaluation.samples import OUTSIDE, Diverged, beyond, check_finite
from distillkit.progress import counted
from domains.lidar import measures
from domains.lidar.measures import CELL, THRESHOLDS, VOXELS

STRAY = 1.0  # metres from every true point: nothing is there
READ = 16  # true scenes that are read at once
SEED = 0  # of the noise of the baseline

Batch = dict[str, Tensor]

BETTER = {
    "chamfer": "lower",
    "to_truth": "lower",
    "from_truth": "lower",
    "jsd_bev": "lower",
    "jsd_3d": "lower",
    **{f"iou_{voxel}": "higher" for voxel in VOXELS},
    "f_score": "higher",
    "stray": "lower",
    **OUTSIDE,
}


def compare(
    scenes: Sequence[Tensor],
    truths: Iterable[Tensor],
    max_range: float = 50.0,
    legacy_iou: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Metrics of completed scenes [n, 3] beside their true ones [m, 3], see `LidarEvaluator`.

    Scenes may have different numbers of points.

    Args:
        scenes: the completed ones, in metres.
        truths: the true ones in the same order, read as they are needed.
        max_range: metres from the sensor beyond which points of both are left out.
        legacy_iou: see `measures.overlap`.
        device: where distances are computed.

    Raises:
        Diverged: a completed scene holds NaN or infinity, or has no point within the range.
        ValueError: a true one has none.
    """
    check_finite(torch.stack([points.abs().sum(0) for points in scenes]))
    each, counts = [], np.zeros((len(VOXELS), 3), np.int64)
    for i, truth in zip(counted("comparing scenes", len(scenes)), truths, strict=True):
        ours, theirs = (measures.within(points, max_range).to(device) for points in (scenes[i], truth))
        nowhere = f"scene {i} has no point within {max_range:g} m"
        if not len(theirs):
            raise ValueError(f"the true {nowhere}: give a larger max_range")
        if not len(ours):
            raise Diverged(f"the completed {nowhere}, so its model has diverged, or max_range is too small")
        there, back = measures.gaps(ours, theirs)
        each.append(
            {
                "to_truth": float(there.mean()),
                "from_truth": float(back.mean()),
                "jsd_bev": measures.jsd_bev(ours, theirs),
                "jsd_3d": measures.jsd_3d(ours, theirs),
                "f_score": measures.f_score(there, back),
                "stray": float((there > STRAY).double().mean()),
            }
        )
        counts += [measures.overlap(ours, theirs, voxel, legacy_iou) for voxel in VOXELS]
    for one in each:
        one["chamfer"] = (one["to_truth"] + one["from_truth"]) / 2
    found = {name: Estimate.mean(torch.tensor([one[name] for one in each])) for name in each[0]}
    away = torch.cat([torch.linalg.vector_norm(points, dim=-1) for points in scenes])
    found |= beyond(away - max_range, 0.0, 2 * max_range)
    found |= {f"iou_{voxel}": measures.iou(count) for voxel, count in zip(VOXELS, counts, strict=True)}
    return {name: found[name] for name in BETTER}


def points_protocol(max_range: float, legacy_iou: bool = False) -> dict[str, Any]:
    """The settings of `compare` as plain data."""
    return {
        "max_range": max_range,
        "chamfer": "plain distance, mean of both halves",
        "jsd": {"cell": CELL, "value": "square root, natural logarithm"},
        "iou": {"voxels": list(VOXELS), "counts": "added up over scenes", "legacy": legacy_iou},
        "f_score": {"from": float(THRESHOLDS[0]), "to": float(THRESHOLDS[-1]), "thresholds": len(THRESHOLDS)},
        "stray": STRAY,
    }


class LidarEvaluator:
    """Compares completed scenes with the held-out ones, which it knows by their partial scans.

    The mean over scenes of:

    - `chamfer` (the headline): mean of `to_truth` and `from_truth`, in metres. The first is the
      mean distance from a completed point to the nearest true one, the second that from a true
      point to the nearest completed one: where scenes stay empty it is large.
    - `jsd_bev`, `jsd_3d`: how differently points are spread over cells of 0.5 m, from above and in
      space, from 0 to 0.8326. Papers mean the first one.
    - `f_score`: of points within 0.05 to 0.1 m of the other scene.
    - `stray`: share of completed points farther than 1 m from every true one.
    - `outside`: share of completed points beyond the range, and `outside_by`: how far, in widths
      of that range. They are cut before all else is measured.

    Over all scenes together:

    - `iou_0.5`, `iou_0.2`, `iou_0.1`: intersection over union of occupied voxels of so many metres.
      A model that completes too much gets a better Chamfer distance, but a worse one of these.

    In pairs `teacher_distance`: mean distance in metres of each point from the teacher's of the
    same noise.

    Real data are the same scenes with other points, if the last data set has a method
    `again(indices) -> batch` that draws them anew; else they are not measured, for a scene is
    perfect beside itself.

    Args:
        held_out: one or several data sets, len() and data[indices] -> {"data": [N, m, 3], "part":
            [N, n, 3]}, in metres.
        max_range: metres from the origin beyond which points of both are left out.
        legacy_iou: whether IoU is that of the first papers, see `measures.overlap`.
    """

    headline = "chamfer"
    device = torch.device("cpu")  # of distances
    better = BETTER | {"teacher_distance": "lower"}

    def __init__(self, held_out: Sequence[Any], max_range: float = 50.0, legacy_iou: bool = False):
        checks.positive(max_range=max_range)
        self.held_out, self.max_range, self.legacy_iou = list(held_out), max_range, legacy_iou
        self.references = References(held_out, "part")

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data; numbers under different protocols are not comparable."""
        one = self.held_out[-1][torch.zeros(1, dtype=torch.long)]
        return {
            "domain": "lidar",
            "reference": "held-out scenes of the same partial scans",
            "num_reference": sum(map(len, self.held_out)),
            "true_points": one["data"].shape[1],
            "given_points": one["part"].shape[1],
            "seed": SEED,
            **points_protocol(self.max_range, self.legacy_iou),
        }

    def __call__(self, samples: Sequence[Tensor], cond: Batch) -> dict[str, float]:
        """Metrics of scenes made for the partial scans `cond["part"]` [N, n, 3].

        Args:
            samples: [N, m, 3], or N tensors [m, 3] of different numbers of points.
            cond: what they were made for.
        """
        for points in samples[:1] if isinstance(samples, Tensor) else samples:
            if points.ndim != 2 or points.shape[-1] != 3:
                raise ValueError(
                    f"a scene has shape {list(points.shape)}, but points are [m, 3]; give samples in data space"
                )
        return compare(samples, self._truths(cond["part"]), self.max_range, self.legacy_iou, self.device)

    def paired(self, samples: Tensor, reference: Tensor, cond: Batch) -> dict[str, float]:
        """`teacher_distance` of scenes [N, m, 3] whose points have the same noise, one by one.

        Scenes of other numbers of points, such as copied scans beside refined ones, have none.
        """
        if samples.shape != reference.shape:
            return {}
        return {"teacher_distance": Estimate.mean((samples - reference).norm(dim=-1).double().mean(1))}

    def baselines(self, cond: Batch) -> dict[str, Tensor]:
        """What needs no model: the scan repeated, `copy`, and that with the noise of the start."""
        part = cond["part"]
        num = self.held_out[-1][torch.zeros(1, dtype=torch.long)]["data"].shape[1]
        copy = part.repeat(1, num // part.shape[1], 1)
        noise = torch.randn(copy.shape, generator=torch.Generator().manual_seed(SEED)).to(copy)
        return {"copy": copy, "noised anchor": copy + noise}

    def floor(self, num_samples: int = 250) -> dict[str, float]:
        """Metrics of other points of the same real scenes; empty if the data draw none anew."""
        real = self.held_out[-1]
        if not hasattr(real, "again"):
            return {}
        rows = torch.arange(num_samples) % len(real)
        return self(real.again(rows)["data"], real[rows])

    def _truths(self, part: Tensor) -> Iterator[Tensor]:
        """The true scenes [m, 3] of partial scans, some read at a time."""
        rows = self.references.rows(part)
        starts = range(0, len(rows), READ)
        return (truth for first in starts for truth in self.references.samples(rows[first : first + READ]))
