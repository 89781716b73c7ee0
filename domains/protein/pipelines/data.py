"""Prepared designs as data, and what is measured where there are no real structures.

N: tokens of the largest design; n: structures.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from distillkit.data import DistillData, TensorData
from distillkit.evaluation import metrics
from distillkit.evaluation.samples import check_finite
from domains.protein import geometry
from domains.protein.evaluation import Measured, measured
from domains.protein.geometry import BOND
from domains.protein.pipelines.codec import CA
from domains.protein.pipelines.design import read_designs
from domains.protein.pipelines.residues import ATOMS

EPOCH = 1000  # draws of an epoch, at least


class Designs(DistillData):
    """Prepared designs, and no structures: enough for methods that learn from the teacher alone.

    Batch: `mask` bool [B, N], the tokens that are designed, and the features of the designs, see
    `read_designs`.

    Args:
        path: file or folder of designs.
        batch_size: structures of one micro-batch.
    """

    domain = "protein"
    pictured = 8
    provides = frozenset()
    asks = {"mask": "the features of each design; domains.protein.pipelines.read_designs(FILE) reads them"}

    def __init__(self, path: str, batch_size: int = 1):
        super().__init__(batch_size)
        self.designs = read_designs(path)
        self.event_shape = (self.designs["mask"].shape[1], len(ATOMS), 5)
        self.classes, self.context = {}, tuple(self.designs)

    def load(self) -> tuple[TensorData, TensorData, TensorData]:
        return Drawn(self.designs), TensorData(self.designs), TensorData(self.designs)

    def build_evaluator(self, held_out: Sequence[Any]) -> DesignEvaluator:
        return DesignEvaluator()

    @property
    def media(self) -> ModuleType:
        """`domains.protein.pipelines.media`."""
        from domains.protein.pipelines import media

        return media


class Drawn(TensorData):
    """Each design as often as the others, `EPOCH` draws or more."""

    def __len__(self) -> int:
        num = super().__len__()
        return -(-EPOCH // num) * num

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        return super().__getitem__(indices % super().__len__())


class DesignEvaluator:
    """Compares structures with the teacher's at its best, by their C-alpha traces.

    - `distance` (the headline): energy distance to the teacher's structures in the descriptors of
      `domains.protein.evaluation`, each in units of its standard deviation over the teacher's. With
      few structures two draws of one law are not 0 apart.
    - `bond_valid`: share of distances between neighbours within 0.02 nm of 0.38 nm.
    - `clash`: pairs, three or more apart along the chain, nearer than 0.3 nm, per residue.
    - `helix`, `strand`: mean P-SEA contents.
    """

    headline, as_sets = "distance", True
    device = torch.device("cpu")
    better = {"distance": "lower", "bond_valid": "higher", "clash": "lower"}

    def __init__(self):
        self.look = lru_cache(maxsize=3)(self._looked)  # by identity: the teacher's are looked at once

    def describe(self) -> dict[str, Any]:
        features = {"name": "geometry of the C-alpha trace"}
        return {"domain": "protein", "features": features, "reference": "the teacher's samples"}

    def __call__(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """Metrics of structures [n, N, 37, 5] by themselves."""
        ours = self.look(samples, cond["mask"])
        bond = geometry.bonds(samples[..., CA, :3].float(), cond["mask"])
        valid = (bond[bond.isfinite()] - BOND).abs() <= 0.02
        shown = {name: float(getattr(ours, name).double().mean()) for name in ("clash", "helix", "strand")}
        return {"bond_valid": float(valid.double().mean()), **shown}

    def paired(self, samples: Tensor, reference: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """The distance from the teacher's structures, as sets."""
        ours, theirs = (self.look(each, cond["mask"]).descriptors for each in (samples, reference))
        near, far = (metrics.standardise(features, theirs) for features in (ours, theirs))
        return {"distance": metrics.energy_distance(near, far)}

    def floor(self, num_samples: int = 0) -> dict[str, float]:
        """Empty: there are no real structures."""
        return {}

    def _looked(self, samples: Tensor, mask: Tensor) -> Measured:
        if samples.ndim != 4 or samples.shape[:2] != mask.shape:
            raise ValueError(
                f"samples have shape {list(samples.shape)}, but their mask asks for {[*mask.shape, len(ATOMS), 5]}; "
                f"give samples in data space"
            )
        check_finite(samples)
        return measured(samples[..., CA, :3].float().to(self.device), mask.to(self.device))
