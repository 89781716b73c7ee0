"""How good shapes are: as a distribution, each by itself, and beside a reference.

A reference is made from the same noise.

Lengths are in units of the cube's side unless said otherwise.

n, m: shapes; N: voxels of a padded set; R: voxels along a side; S: cells along a side.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation import metrics
from distillkit.evaluation.extractor import load_extractor, packed
from distillkit.evaluation.samples import OUTSIDE, check_finite, out_of_range, spread
from domains.threed import features as extractors
from domains.threed.lattice import CORNERS
from domains.threed.meshes import POINTS, Mesh, clouds, feature_meshes, seams, structure_meshes

MOST_MESHES = 250  # shapes of a set that are turned into meshes, evenly spread over it
CELLS = 32  # along a side, in which surfaces are compared all with all
CELL_POINTS = 2048  # of a surface, that say which cells it passes through
CHUNK = 128  # shapes in one pass of the classifier
SEED = 0  # of the points on surfaces

Batch = dict[str, Tensor]


class ShapeEvaluator(ABC):
    """Base of the evaluation of both stages.

    - `frechet` (the headline): between Gaussians fitted to the classifier's features, each in units
      of its standard deviation over the reference. Its floor is well above 0, because there are
      many features and few samples.
    - `coverage`, `mmd`, `nearest_accuracy`: see `compare_sets`, with the Chamfer distance.
    - `volume`: its mean.
    - `watertight`: share of shapes whose mesh is closed and not empty.
    - `class_agreement`: share in which the classifier sees the class that was asked for.
    - `outside`, `outside_by`: share of the values of a structure, or of the colours, that lie
      outside of [-1, 1], and how far.

    Args:
        train: the training data, len() and train[indices] -> batch.
        held_out: validation data, test data, or both.
        classes: {"label": number of classes}, or empty: then the features are averages over parts
            of the grid.
        side: voxels along each side.
    """

    headline = "frechet"
    device = torch.device("cpu")  # of the classifier, of all features and of surfaces' distances; meshes are NumPy's
    stage: str

    def __init__(self, train: Any, held_out: list[Any], classes: dict[str, int], side: int = 16):
        self.train, self.held_out, self.side = train, held_out, side
        self.num_classes = classes.get("label")

    @abstractmethod
    def meshes(self, samples: Tensor, cond: Batch) -> list[Mesh]:
        """Decoded shapes."""

    @abstractmethod
    def reference(self) -> Batch:
        """The real shapes that samples are compared with."""

    @abstractmethod
    def real(self, num: int) -> Batch:
        """About `num` real shapes that stand in for samples."""

    @property
    def better(self) -> dict[str, str]:
        """Which way each metric is good; `target` means close to the value of real data."""
        better = {"frechet": "lower", "coverage": "higher", "mmd": "lower", "nearest_accuracy": "target"}
        better |= {"volume": "target", "watertight": "higher", "chamfer": "lower", "f_score": "higher", **OUTSIDE}
        return better | ({"class_agreement": "higher"} if self.num_classes else {})

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data; numbers under different protocols are not comparable."""
        return {
            "domain": "threed",
            "stage": self.stage,
            "side": self.side,
            "features": self.extractor[1],
            "num_reference": len(self._reference["data"]),
            "most_meshes": MOST_MESHES,
            "surface_cells": CELLS,
            "surface_points": POINTS,
            "f_score_distance": 0.5 / self.side,
            "seed": SEED,
        }

    def __call__(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """Metrics of samples made for the conditions `cond`."""
        expected = self.train[torch.zeros(1, dtype=torch.long)]["data"].shape[1:]
        if samples.ndim != len(expected) + 1 or samples.shape[-1] != expected[-1]:
            got = list(samples.shape[1:])
            raise ValueError(
                f"samples have shape {got}, but this data has {list(expected)}; give samples in data space"
            )
        check_finite(samples)
        raw = self._raw(samples, cond)
        scaled = metrics.standardise(raw, self._raw_reference)
        found = {"frechet": metrics.frechet_distance(scaled, self._scaled_reference)}
        meshes = self.meshes(*_thinned(samples, cond))
        ours, theirs = Surfaces(meshes, self.device), self._reference_surfaces
        size = min(len(ours), len(theirs))  # equally many of both, for the metrics depend on it
        i, j = spread(len(ours), size), spread(len(theirs), size)
        across, within = chamfer(ours, theirs)[i][:, j], self._reference_chamfer[j][:, j]
        found |= compare_sets(across, chamfer(ours, ours)[i][:, i], within)
        found["volume"] = float(np.mean([mesh.volume for mesh in meshes]))
        found["watertight"] = float(np.mean([mesh.watertight for mesh in meshes]))
        if self.num_classes and "label" in cond:
            found["class_agreement"] = self._agreement(raw, cond)
        return found

    def floor(self, num_samples: int = 500) -> dict[str, float]:
        """Metrics of real shapes.

        Give `num_samples` the number of samples of the model beside it: the distances are biased by
        it.
        """
        batch = self.real(num_samples)
        return self(batch["data"], batch)

    def paired(self, samples: Tensor, reference: Tensor, cond: Batch) -> dict[str, float]:
        """How far shapes are from a reference made from the same noise, one by one.

        - `chamfer`: between clouds of 1,024 points, the mean over both ways of the mean distance to
          the nearest point of the other. For equal surfaces drawn anew it is the clouds' own
          spacing (about 0.012).
        - `f_score`: harmonic mean of the shares of points within half a voxel of the other cloud
          (Tatarchenko et al. 2019).
        """
        ours, theirs = (clouds(self.meshes(*_thinned(x, cond)), POINTS, SEED) for x in (samples, reference))
        gaps, scores = [], []
        for a, b in zip(ours, theirs, strict=True):
            there, back = cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]
            precision, recall = (float((gap < 0.5 / self.side).mean()) for gap in (there, back))
            gaps.append((there.mean() + back.mean()) / 2)
            scores.append(2 * precision * recall / max(precision + recall, 1e-9))
        return {"chamfer": float(np.mean(gaps)), "f_score": float(np.mean(scores))}

    @cached_property
    def extractor(self) -> tuple[extractors.Classifier | None, dict[str, Any]]:
        """The classifier and its description: the shipped one if it reads this data, or a new one.

        A new one is fitted to the training data.
        """
        if not self.num_classes:
            return None, {"name": "averages over parts of the grid"}
        path = extractors.SHIPPED / f"{self.stage}.safetensors"
        if self.side == 16 and self.num_classes == 5:
            net = load_extractor(extractors.Classifier, path).to(self.device)
            if (right := self._accuracy(net)) > 0.9:
                sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
                return net, {"name": "solids classifier", "sha256": sha256, "held_out_accuracy": round(right, 4)}
        net = extractors.train_classifier(self.train, self.num_classes, self.side, extractors.STEPS).to(self.device)
        facts = {
            "name": f"classifier fitted to the training data ({extractors.STEPS} steps, seed 0)",
            "sha256": hashlib.sha256(packed(net)).hexdigest(),
            "held_out_accuracy": round(self._accuracy(net), 4),
        }
        return net, facts

    def _accuracy(self, net: extractors.Classifier) -> float:
        parts = [(extractors.accuracy(net, part, self.side), len(part)) for part in self.held_out]
        return sum(right * size for right, size in parts) / sum(size for _, size in parts)

    @cached_property
    def _reference(self) -> Batch:
        return self.reference()

    @cached_property
    def _raw_reference(self) -> metrics.Points:
        return metrics.Points(self._raw(self._reference["data"], self._reference))

    @cached_property
    def _scaled_reference(self) -> metrics.Points:
        return metrics.Points(metrics.standardise(self._raw_reference, self._raw_reference))

    @cached_property
    def _reference_surfaces(self) -> Surfaces:
        return Surfaces(self.meshes(*_thinned(self._reference["data"], self._reference)), self.device)

    @cached_property
    def _reference_chamfer(self) -> Tensor:
        return chamfer(self._reference_surfaces, self._reference_surfaces)

    @torch.no_grad()
    def _raw(self, samples: Tensor, cond: Batch) -> Tensor:
        net = self.extractor[0]
        found = []
        for rows in torch.arange(len(samples)).split(CHUNK):
            part = {key: value[rows].to(self.device) for key, value in cond.items()}
            grid = extractors.as_grid(samples[rows].to(self.device), part, self.side)
            coarse = 4 if grid.shape[1] == 1 else 2
            found.append(net.features(grid) if net else F.adaptive_avg_pool3d(grid, coarse).flatten(1))
        return torch.cat(found).double()  # [n, D]

    @torch.no_grad()
    def _agreement(self, raw: Tensor, cond: Batch) -> metrics.Estimate:
        seen = self.extractor[0].logits(raw.float()).argmax(1)
        return metrics.Estimate.mean(seen == cond["label"].to(seen))


class Structure(ShapeEvaluator):
    """Stage one: structures [n, 1, R, R, R]; the reference is the held-out data.

    Further metrics beside those of `ShapeEvaluator`:

    - `connected`: share of solids in one piece (through faces).
    - `nearest_train`: mean of 1 - intersection / union with the most similar training solid. For a
      model that copies its training data it is far below that of real data.
    """

    stage = "structure"

    @property
    def better(self) -> dict[str, str]:
        return super().better | {"connected": "higher", "nearest_train": "target"}

    def meshes(self, samples: Tensor, cond: Batch) -> list[Mesh]:
        return structure_meshes(samples)

    def reference(self) -> Batch:
        parts = [_whole(part) for part in self.held_out]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def real(self, num: int) -> Batch:
        """Training data, for the held-out data are the reference."""
        rows = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(SEED))[:num]
        return self.train[rows]

    def __call__(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        found = super().__call__(samples, cond)
        pieces = np.zeros((3, 3, 3, 3), bool)  # of one shape, never of two
        pieces[1] = ndimage.generate_binary_structure(3, 1)
        region = ndimage.label(samples[:, 0].cpu().numpy() > 0, pieces)[0].reshape(len(samples), -1)
        first = np.where(region > 0, region, region.max() + 1).min(1, keepdims=True)
        found["connected"] = float(((region == 0) | (region == first)).all(1).mean() - (region == 0).all(1).mean())
        found["nearest_train"] = self._nearest_train(samples)
        return found | out_of_range(samples)

    def floor(self, num_samples: int = 500) -> dict[str, float]:
        """As in the base; the value of the held-out data where training data would look perfect.

        That is where they are their own nearest neighbour, or the classifier was fitted to them.
        """
        found = super().floor(num_samples) | {"nearest_train": self._nearest_train(self._reference["data"])}
        return found | (
            {"class_agreement": self._agreement(self._raw_reference.points_ND, self._reference)}
            if self.num_classes
            else {}
        )

    def _nearest_train(self, samples: Tensor) -> float:
        alike = []
        for part in samples.split(CHUNK):
            ours, theirs = (part > 0).flatten(1).to(self.device, torch.float32), self._training_solids
            both = ours @ theirs.T
            either = ours.sum(1, keepdim=True) + theirs.sum(1) - both
            alike.append((both / either.clamp_min(1)).amax(1))
        return float(1 - torch.cat(alike).mean())

    @cached_property
    def _training_solids(self) -> Tensor:
        """0 or 1 for each voxel, [M, R^3]."""
        return (_whole(self.train)["data"] > 0).flatten(1).to(self.device, torch.float32)


class Features(ShapeEvaluator):
    """Stage two: features [n, N, 11] on the voxels of test shapes; reference: validation data.

    The test shapes' own features are what a perfect model gives, so they stand for real data. The
    reference must not hold them: a sample would find its twin in it.

    Further metrics beside those of `ShapeEvaluator`:

    - `seams`: root mean square difference, in voxels, between a voxel's distance at a corner and
      the mean of all voxels there (0 for real data).
    - `distance` and `colour`, in pairs: mean absolute differences of features (in voxels; of a
      range of 2).
    """

    stage = "features"

    @property
    def better(self) -> dict[str, str]:
        return super().better | {"seams": "lower", "distance": "lower", "colour": "lower"}

    def meshes(self, samples: Tensor, cond: Batch) -> list[Mesh]:
        return feature_meshes(samples, cond["coords"], cond["mask"], self.side)

    def reference(self) -> Batch:
        return _whole(self.held_out[0])

    def real(self, num: int) -> Batch:
        test = self.held_out[-1]
        return test[torch.arange(num) % len(test)]

    def __call__(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        found = super().__call__(samples, cond)
        found["seams"] = seams(samples, cond["coords"], cond["mask"], self.side)
        return found | out_of_range(samples[cond["mask"]][:, len(CORNERS) :])

    def paired(self, samples: Tensor, reference: Tensor, cond: Batch) -> dict[str, float]:
        gap = (samples - reference).abs()[cond["mask"]]
        own = {"distance": float(gap[:, : len(CORNERS)].mean()), "colour": float(gap[:, len(CORNERS) :].mean())}
        return super().paired(samples, reference, cond) | own


def compare_sets(across: Tensor, ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Metrics of two sets of shapes, from the distances between them.

    Source: Yang et al. 2019 (PointFlow, arXiv 1906.12320), section 5.1.

    Args:
        across: [n, m] from ours to theirs (the reference).
        ours: [n, n].
        theirs: [m, m].

    Returns:
        `coverage`: share of the reference shapes that are the nearest of some of ours.
        `mmd`: mean distance from a reference shape to the nearest of ours.
        `nearest_accuracy`: how often the nearest other shape (of both sets together) is of the same
            set; for two draws of one law, of one size, 1/2 on average.
    """
    nearest_other, own, their = across.argmin(1), ours.clone(), theirs.clone()
    own.fill_diagonal_(torch.inf)
    their.fill_diagonal_(torch.inf)
    hits = (own.amin(1) < across.amin(1)).sum() + (their.amin(1) < across.amin(0)).sum()
    return {
        "coverage": len(nearest_other.unique()) / across.shape[1],
        "mmd": float(across.amin(0).mean()),
        "nearest_accuracy": float(hits) / (len(own) + len(their)),
    }


class Surfaces:
    """Surfaces as the cells that they pass through (in which some of their points lie).

    Args:
        meshes: the surfaces.
        device: of the attributes.

    Attributes:
        share: float32 [n, S^3], of a shape's cells each its share.
        away: float32 [n, S^3], how far the centre of each cell is from the nearest centre among
            them.
    """

    def __init__(self, meshes: list[Mesh], device: torch.device | str = "cpu"):
        place = ((clouds(meshes, CELL_POINTS, SEED) + 0.5) * CELLS).astype(np.int64).clip(0, CELLS - 1)
        cells = np.zeros((len(meshes), CELLS, CELLS, CELLS), bool)
        cells[(np.arange(len(meshes))[:, None], *np.moveaxis(place, -1, 0))] = True
        away = np.stack([ndimage.distance_transform_edt(~of_one) for of_one in cells]).astype(np.float32)
        self.away = torch.from_numpy(away).to(device).flatten(1) / CELLS
        self.share = F.normalize(torch.from_numpy(cells).to(device).flatten(1).float(), p=1)

    def __len__(self) -> int:
        return len(self.share)


def chamfer(a: Surfaces, b: Surfaces) -> Tensor:
    """Chamfer distance [n, m] between the centres of two surfaces' cells, of all pairs at once.

    It is the mean over both ways of the mean distance to the nearest centre of the other, computed
    as a matrix product.
    """
    return (a.share @ b.away.T + (b.share @ a.away.T).T) / 2


def _whole(data: Any) -> Batch:
    return data[torch.arange(len(data))]


def _thinned(samples: Tensor, cond: Batch) -> tuple[Tensor, Batch]:
    rows = spread(len(samples), MOST_MESHES)
    return samples[rows], {key: value[rows] for key, value in cond.items()}
