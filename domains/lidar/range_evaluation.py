"""How good completed range images are: as images, and as the points that they stand for.

N: samples; H: beams; W: columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillkit.evaluation.samples import BEYOND, batches, check, outside
from distillkit.progress import counted
from domains.lidar import measures
from domains.lidar.projection import back_project, metres
from domains.lidar.rays import between_beams, is_given, nearest_beam

VOXEL = 0.5  # metres, of the intersection over union

Batch = dict[str, Tensor]


class RangeEvaluator:
    """Compares completed images with the held-out ones, which it knows by their given rays.

    As points, all rays together:

    - `chamfer` (the headline), in metres, and `jsd_bev`: see `domains.lidar.measures`.
    - `iou`: of voxels of 0.5 m, over all samples together.

    On rays that were not given:

    - `range_mae`: mean absolute error of ranges in metres, where sample and truth have a return.
    - `reflectance_mae`: the same of reflectance in [0, 1].
    - `hit_accuracy`: share of the rays of which a sample says rightly whether there is a return.

    `outside` is the share of values clearly beyond [-1, 1], to which all are cut before.

    Args:
        held_out: one or several data sets, len() and data[indices] -> {"data": [N, 2, H, W],
            "rays"}. The last one's `again`, the same scenes with other noise, is the floor.
        elevations: [H], of the beams, in degrees.
        farthest: what is farther, in metres, is no return.
    """

    headline = "chamfer"
    better = {
        "chamfer": "lower",
        "jsd_bev": "lower",
        "iou": "higher",
        "range_mae": "lower",
        "reflectance_mae": "lower",
        "hit_accuracy": "higher",
        "outside": "lower",
        "teacher_mae": "lower",
    }
    device = torch.device("cpu")  # trees are not for others

    def __init__(self, held_out: Sequence[Any], elevations: Tensor, farthest: float):
        self.held_out, self.elevations, self.farthest = list(held_out), elevations, farthest

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data; numbers under different protocols are not comparable."""
        return {
            "domain": "lidar",
            "stage": "range",
            "reference": "held-out range images of the same rays",
            "num_reference": sum(map(len, self.held_out)),
            "elevations": self.elevations.tolist(),
            "farthest": self.farthest,
            "cell": measures.CELL,
            "voxel": VOXEL,
            "outside": f"more than {BEYOND} beyond [-1, 1]",
        }

    def __call__(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """Metrics of samples [N, 2, H, W] in [-1, 1], made for `cond["rays"]`."""
        check(samples, (2, *cond["rays"].shape[2:]))
        real, samples = self._truth(cond["rays"]), samples.float()
        distances, overlap = [], np.zeros(3, dtype=np.int64)
        for number in counted("measuring range images", len(samples)):
            points = self.points(samples[number]), self.points(real[number])
            distances.append((float(measures.chamfer(*points)), measures.jsd_bev(*points)))
            overlap += measures.overlap(*points, VOXEL)
        chamfer, jsd = np.mean(distances, axis=0).tolist()
        return {
            "chamfer": chamfer,
            "jsd_bev": jsd,
            "iou": measures.iou(overlap),
            **self._beside(samples, real, ~is_given(cond["rays"])),
            "outside": outside(samples),
        }

    def paired(self, samples: Tensor, reference: Tensor, cond: Batch) -> dict[str, float]:
        """`teacher_mae`: `range_mae` of samples beside a teacher's from the same noise."""
        return {"teacher_mae": self._beside(samples, reference, ~is_given(cond["rays"]))["range_mae"]}

    def baselines(self, cond: Batch) -> dict[str, Tensor]:
        """What needs no model: the nearest given beam, and planes between given beams."""
        return {"nearest beam": nearest_beam(cond["rays"]), "between beams": between_beams(cond["rays"], self.farthest)}

    def floor(self, num_samples: int = 100) -> dict[str, float]:
        """Metrics of the same scenes as the sensor saw them another time."""
        real = self.held_out[-1]
        batch = real.again(torch.arange(num_samples) % len(real))
        return self(batch["data"], batch)

    def points(self, image: Tensor) -> Tensor:
        """The returns of an image [2, H, W] as points [n, 3]; without any, the sensor itself."""
        ranges = metres(image[0], self.farthest)
        points = back_project(ranges, self.elevations)[ranges > 0]
        return points if len(points) else points.new_zeros(1, 3)

    def _beside(self, samples: Tensor, real: Tensor, asked: Tensor) -> dict[str, float]:
        """Metrics of pixels on the rays `asked`, bool [N, H, W]; without any, the worst values."""
        ours, theirs = (metres(x[:, 0], self.farthest) for x in (samples, real))
        there = (ours > 0) & (theirs > 0) & asked
        bright = (samples[:, 1].clamp(-1, 1) - real[:, 1].clamp(-1, 1)).abs() / 2
        return {
            "range_mae": _mean((ours - theirs).abs()[there], self.farthest),
            "reflectance_mae": _mean(bright[there], 1.0),
            "hit_accuracy": _mean(((ours > 0) == (theirs > 0))[asked], 0.0),
        }

    def _truth(self, rays: Tensor) -> Tensor:
        """The held-out images [N, 2, H, W] of these rays."""
        keys = [*map(_key, rays)]
        if unknown := [number for number, key in enumerate(keys) if key not in self._known]:
            raise ValueError(
                f"samples are compared with the held-out images of their rays, and there is none for sample {unknown[0]}: "
                f"evaluate with the data that it was made for"
            )
        return torch.stack([self._known[key] for key in keys])

    @cached_property
    def _known(self) -> dict[bytes, Tensor]:
        """The held-out images by the keys of their rays."""
        parts = (batch for data in self.held_out for batch in batches(data, 64))
        return {_key(rays): real for batch in parts for rays, real in zip(batch["rays"], batch["data"], strict=True)}


def _key(rays: Tensor) -> bytes:
    """Rays [3, H, W] in 16 bytes."""
    return hashlib.blake2b(rays.float().contiguous().numpy().tobytes(), digest_size=16).digest()


def _mean(values: Tensor, worst: float) -> float:
    """The mean, or `worst` where there are no values."""
    return float(values.double().mean()) if len(values) else worst
