"""How good completed range images are: as images, and as the points that they stand for.

N: samples; H: beams; W: columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distillkit.evaluation.references import References
from distillkit.evaluation.samples import check, out_of_range
from domains.lidar.evaluation import BETTER, compare, points_protocol
from domains.lidar.projection import back_project, metres
from domains.lidar.rays import between_beams, is_given, nearest_beam

Batch = dict[str, Tensor]


class RangeEvaluator:
    """Compares completed images with the held-out ones, which it knows by their given rays.

    As points, all rays together: the metrics of `LidarEvaluator`, of which `chamfer` is the
    headline. `outside` and `outside_by` are of the images, before they become points. On the rays
    that were not given:

    - `range_mae`: mean absolute error of ranges in metres, where sample and truth have a return.
    - `reflectance_mae`: the same of reflectance in [0, 1].
    - `hit_accuracy`: share of the rays of which a sample says rightly whether there is a return.

    In pairs `teacher_mae`: `range_mae` of samples beside a teacher's from the same noise.

    Args:
        held_out: one or several data sets, len() and data[indices] -> {"data": [N, 2, H, W],
            "rays"}. The last one's `again`, the same scenes with other noise, is real data.
        elevations: [H], of the beams, in degrees.
        farthest: what is farther, in metres, is no return.
    """

    headline = "chamfer"
    device = torch.device("cpu")  # of distances between points
    better = BETTER | {
        "range_mae": "lower",
        "reflectance_mae": "lower",
        "hit_accuracy": "higher",
        "teacher_mae": "lower",
    }

    def __init__(self, held_out: Sequence[Any], elevations: Tensor, farthest: float):
        self.held_out, self.elevations, self.farthest = list(held_out), elevations, farthest
        self.references = References(held_out, "rays")

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data; numbers under different protocols are not comparable."""
        return {
            "domain": "lidar",
            "stage": "range",
            "reference": "held-out range images of the same rays",
            "num_reference": sum(map(len, self.held_out)),
            "elevations": self.elevations.tolist(),
            **points_protocol(self.farthest),
        }

    def __call__(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """Metrics of samples [N, 2, H, W] in [-1, 1], made for `cond["rays"]`."""
        rays = cond["rays"]
        check(samples, (2, *rays.shape[2:]))
        real, samples = self.references.samples(self.references.rows(rays)), samples.float()
        scenes = [self.points(image) for image in samples]
        found = compare(scenes, map(self.points, real), self.farthest, device=self.device)
        return found | self._beside(samples, real, rays) | out_of_range(samples)

    def paired(self, samples: Tensor, reference: Tensor, cond: Batch) -> dict[str, float]:
        """`teacher_mae` of samples [N, 2, H, W]."""
        return {"teacher_mae": self._beside(samples, reference, cond["rays"])["range_mae"]}

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

    def _beside(self, samples: Tensor, real: Tensor, rays: Tensor) -> dict[str, float]:
        """Metrics of the rays that were not given; where no ray counts, the worst values."""
        asked = ~is_given(rays)
        ours, theirs = (metres(x[:, 0], self.farthest) for x in (samples, real))
        there = (ours > 0) & (theirs > 0) & asked
        bright = (samples[:, 1].clamp(-1, 1) - real[:, 1].clamp(-1, 1)).abs() / 2
        return {
            "range_mae": _mean((ours - theirs).abs()[there], self.farthest),
            "reflectance_mae": _mean(bright[there], 1.0),
            "hit_accuracy": _mean(((ours > 0) == (theirs > 0))[asked], 0.0),
        }


def _mean(values: Tensor, worst: float) -> float:
    """The mean, or `worst` where there are no values."""
    return float(values.double().mean()) if len(values) else worst
