"""Compares samples with a law that is known exactly.

N: samples; D: dimensions; K: modes of a mixture.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from distillkit.evaluation import metrics
from distillkit.evaluation.samples import check_finite
from distillkit.teachers.exact import ExactTeacher, Mixture

FAR = 4.0  # std from every mode: an outlier (a 2-D Gaussian leaves 3.4e-4 of its mass beyond)
ENERGY = 4096  # exact samples that the energy distance, quadratic in their number, is taken to
FOUND = 0.1  # share of its weight that a mode must have received


class ToyEvaluator:
    """Compares samples [N, D] with an exact teacher.

    Every law:

    - `sliced_w2` (data units, the headline) and `energy`: against exact samples.
    - `std_error`: largest relative error of a dimension's std, against the exact moments, as the
      next two.
    - `correlation_error`: largest difference of a correlation.
    - `mean_error`: largest error of a mean, in units of that dimension's std.

    Several modes; every sample belongs to its nearest one, in units of that mode's std:

    - `modes_found`: number of modes with at least a tenth of their weight.
    - `weight_error`: largest relative error of a mode's weight.
    - `mode_std_error`: largest relative error of the std inside a mode. A student that sharpens
      every mode has the right weights, and moments almost right.
    - `outliers`: share beyond 4 std from every mode.
    - `class_agreement`, with classes: share of samples nearest to a mode of the class that was
      asked for.

    Args:
        teacher: the exact teacher.
        num_exact: exact samples to compare with.
    """

    headline = "sliced_w2"
    device = torch.device("cpu")  # of everything but the draws
    num_projections = 128

    def __init__(self, teacher: ExactTeacher, num_exact: int = 16384):
        self.teacher, self.num_exact = teacher, num_exact
        self.law = teacher.mixture

    @property
    def better(self) -> dict[str, str]:
        """Which way each metric is good."""
        names = ["sliced_w2", "energy", "std_error", "correlation_error", "mean_error"]
        names += ["weight_error", "mode_std_error", "outliers"] if self._modes > 1 else []
        higher = (["modes_found"] if self._modes > 1 else []) + (["class_agreement"] if self.teacher.classes else [])
        return dict.fromkeys(names, "lower") | dict.fromkeys(higher, "higher")

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data."""
        facts = {
            "domain": "toy",
            "reference": "exact moments, and exact samples of the teacher",
            "num_exact": self.num_exact,
            "num_exact_energy": min(self.num_exact, ENERGY),
            "exact_seed": 0,
            "num_projections": self.num_projections,
            "dimensions": len(self.law.mean),
        }
        return facts | ({"modes": self._modes, "outlier_std": FAR, "found_share": FOUND} if self._modes > 1 else {})

    def __call__(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """Metrics of samples [N, D] or [N, *event_shape], in data units, made for `cond`."""
        expected = list(self.teacher.event_shape)
        if list(samples.shape[1:]) != expected or len(samples) < 2:
            raise ValueError(f"samples must be [N, *{expected}] with N >= 2, got {list(samples.shape)}")
        x_ND = samples.detach().to(self.device).double().flatten(1)
        check_finite(x_ND)
        found = {
            "sliced_w2": metrics.sliced_wasserstein(x_ND, self._exact, self.num_projections),
            "energy": metrics.energy_distance(x_ND, self._few_exact),
        }
        found |= self._against_moments(x_ND)
        distance_NK = mode_distances(self.law, x_ND)
        if self._modes > 1:
            found |= self._against_modes(distance_NK)
        for name in set(self.teacher.classes) & set(cond):
            label_N = self.law.labels.to(self.device)[distance_NK.argmin(1)]
            found["class_agreement"] = float((label_N == cond[name].to(self.device)).double().mean())
        return found

    def floor(self, num_samples: int | None = None) -> dict[str, float]:
        """Metrics of exact samples (4096 by default): the error that chance alone makes."""
        batch = self.teacher.exact_samples(num_samples or ENERGY, torch.Generator().manual_seed(1))
        return self(batch["data"], {name: batch[name] for name in self.teacher.classes})

    @property
    def _modes(self) -> int:
        return len(self.law.means)

    @cached_property
    def _exact(self) -> metrics.Points:
        return metrics.Points(self.law.sample(self.num_exact, torch.Generator().manual_seed(0))[0].to(self.device))

    @cached_property
    def _few_exact(self) -> metrics.Points:
        return metrics.Points(self._exact.points_ND[:ENERGY])

    def _against_moments(self, x_ND: Tensor) -> dict[str, float]:
        mean_D, covariance_DD = self.law.mean.to(self.device), self.law.covariance.to(self.device)
        std_D = covariance_DD.diagonal().sqrt()
        got_DD = torch.cov(x_ND.T).reshape(covariance_DD.shape)
        got_std_D = got_DD.diagonal().sqrt()
        # A dimension that has collapsed has no correlation: it counts as 0, and its std_error is 1.
        correlation_DD = got_DD / torch.outer(got_std_D, got_std_D).clamp_min(1e-300)
        gap_DD = correlation_DD - covariance_DD / torch.outer(std_D, std_D)
        return {
            "std_error": float((got_std_D / std_D - 1).abs().max()),
            "correlation_error": float(gap_DD.fill_diagonal_(0).abs().max()),
            "mean_error": float(((x_ND.mean(0) - mean_D) / std_D).abs().max()),
        }

    def _against_modes(self, distance_NK: Tensor) -> dict[str, float]:
        weight_K, dim = self.law.weights.to(self.device), self.law.means.shape[1]
        own_NK = one_hot(distance_NK.argmin(1), self._modes).double()
        core_NK = own_NK * (distance_NK <= FAR)  # what lies beyond is an outlier, not spread
        spread_K = (core_NK * distance_NK.square()).sum(0) / (core_NK.sum(0).clamp_min(1) * dim)
        return {
            "modes_found": float((core_NK.mean(0) >= FOUND * weight_K).sum()),
            "weight_error": float((own_NK.mean(0) / weight_K - 1).abs().max()),
            "mode_std_error": float((spread_K.sqrt() - 1).abs().max()),
            "outliers": float((distance_NK > FAR).all(1).double().mean()),
        }


def mode_distances(law: Mixture, x_ND: Tensor) -> Tensor:
    """Distance of every sample to every mode, [N, K].

    In units of the mode's std along the way (Mahalanobis).
    """
    means_KD, axes_KDD, std_KD = (value.to(x_ND.device) for value in (law.means, law.axes, law.variances.sqrt()))
    local_NKD = torch.einsum("nkd,kde->nke", x_ND[:, None] - means_KD, axes_KDD)
    return (local_NKD / std_KD).norm(dim=-1)
