"""Exact teachers in the plane, in plain units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from distillkit import checks
from distillkit.diffusion.process import Process, VarianceExploding
from distillkit.teachers.exact import ExactTeacher, Mixture


class Gaussian(ExactTeacher):
    """N(mean, covariance).

    Args:
        mean: [D].
        covariance: [D][D].
        process: the noising process; None means variance exploding.
    """

    def __init__(
        self,
        mean: list[float] = (1.0, -1.0),
        covariance: list[list[float]] = ((1.0, 0.6), (0.6, 0.5)),
        process: Process | None = None,
    ):
        super().__init__(Mixture([list(mean)], [[list(row) for row in covariance]]), process or VarianceExploding())

    @property
    def id(self) -> str:
        return "toy-gaussian"


class Circle(ExactTeacher):
    """Round Gaussians on a circle, heavier and heavier counter-clockwise.

    Args:
        modes: their number.
        radius: of the circle.
        std: of each mode.
        weights: relative; None means 1, 2 ... modes.
        labelled: whether each mode is a class of its own, the condition `label`.
        process: the noising process; None means variance exploding.
    """

    def __init__(
        self,
        modes: int = 8,
        radius: float = 4.0,
        std: float = 0.25,
        weights: list[float] | None = None,
        labelled: bool = False,
        process: Process | None = None,
    ):
        checks.whole(1, 1000, modes=modes)
        checks.positive(radius=radius, std=std)
        angles = [2 * math.pi * k / modes for k in range(modes)]
        means = [[radius * math.cos(a), radius * math.sin(a)] for a in angles]
        covariances = (std**2 * torch.eye(2)).expand(modes, 2, 2)
        weights = list(range(1, modes + 1)) if weights is None else weights
        labels, classes = (list(range(modes)), {"label": modes}) if labelled else (None, None)
        law = Mixture(means, covariances, weights, labels)
        super().__init__(law, process or VarianceExploding(), classes=classes)

    @classmethod
    def offers(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        return super().offers(arguments) | ({"classes", "labels"} if arguments.get("labelled") else set())

    @property
    def id(self) -> str:
        return "toy-labelled" if self.classes else "toy-mixture"
