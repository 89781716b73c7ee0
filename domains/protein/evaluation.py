"""How good backbones are: the geometry of each, and the sets as distributions.

No structure predictor is needed.

Lengths are in nanometres, angles in degrees. What needs a structure predictor is left to a program
of the user's, see `designability.py`.

n: chains; N: residues of the longest one; D: numbers of a descriptor.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from distillkit.errors import optional
from distillkit.evaluation import metrics
from distillkit.evaluation.samples import check_finite, spread
from domains.protein import geometry
from domains.protein.designability import Designability
from domains.protein.geometry import BOND, CLASH

MOST_TM = 48  # chains that are compared pair by pair, evenly spread over the set
MOST_TRAINING = 100  # training chains that they are compared with
SAME_FOLD = 0.5  # TM-score (Xu and Zhang 2010)
CHUNK = 256  # chains, or pairs of chains, looked at at once
SEED = 0

BOND_EDGES = (0.30, 0.34, 0.36, 0.37, 0.375, 0.38, 0.385, 0.39, 0.40, 0.42, 0.46)
ANGLE_EDGES = tuple(range(70, 160, 10))
DIHEDRAL_EDGES = tuple(range(-150, 180, 30))
PAIR_EDGES = (0.3, 0.38, 0.5, 0.6, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
FINE = {"angle": torch.arange(60.0, 180, 4), "dihedral": torch.arange(-180.0, 180, 10)}  # of pooled values

Batch = dict[str, Tensor]


class ProteinEvaluator:
    """Compares C-alpha traces with held-out chains.

    - `frechet` (the headline): between Gaussians fitted to the chains' descriptors, see
      `descriptors`. It sees everything below except the comparisons of whole chains.
    - `bond`, `bond_spread`: mean and standard deviation of the distance between neighbours, nm.
    - `bond_valid`: share of these distances within 0.02 nm of 0.38 nm.
    - `clash`: pairs, three or more apart along the chain, nearer than 0.3 nm, per residue.
    - `angle_js`, `dihedral_js`: Jensen-Shannon divergence, in bits, between the pooled virtual
      angles and dihedrals.
    - `rg_ratio`: mean radius of gyration, in units of what natural chains of the length have.
    - `helix`, `strand`: mean P-SEA contents.
    - `left_helix`: share of residues in turns of four with dihedrals of a left-handed helix.
    - `class_agreement`: share of chains whose contents are of the class that was asked for.
    - `designability`, with a program that predicts it: share of chains with an scRMSD below 2
      angstrom.

    Whole chains are compared by TM-score:

    - `diversity_tm`: its mean over pairs of samples.
    - `clusters`: number of groups that single linkage at 0.5 finds, over the number of chains.
    - `novelty_tm`: mean of the largest one with a training chain; near 1 for a model that copies.

    Their names begin with `gapless_` where no alignment was searched: this is the TM-score with
    residue k on residue k, a lower bound.

    Args:
        train: the training data, len() and train[indices] -> batch.
        held_out: validation data, test data, or both.
        tm: `gapless`, or `align` by TM-align (needs tmtools).
        designability: samples and conditions to the share of designable ones.
    """

    headline = "frechet"
    device = torch.device("cpu")  # of all geometry but alignments

    def __init__(
        self,
        train: Any,
        held_out: list[Any],
        tm: Literal["gapless", "align"] = "gapless",
        designability: Designability | None = None,
    ):
        if tm not in ("gapless", "align"):
            raise ValueError(f"tm must be gapless or align, got {tm!r}")
        if tm == "align":
            import_tmtools()
        self.train, self.tm, self.designability = train, tm, designability
        parts = [part[torch.arange(len(part))] for part in held_out]
        self.reference = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @cached_property
    def _reference(self) -> tuple[Tensor, Tensor]:
        """The held-out chains and their masks, on the device."""
        return tuple(self.reference[name].to(self.device) for name in ("data", "mask"))

    @cached_property
    def _reference_descriptors(self) -> metrics.Points:
        return metrics.Points(descriptors(*self._reference))

    @cached_property
    def _reference_pooled(self) -> dict[str, Tensor]:
        return pooled(*self._reference)

    @property
    def prefix(self) -> str:
        return "gapless_" if self.tm == "gapless" else ""

    @property
    def better(self) -> dict[str, str]:
        """Which way each metric is good; `target` means close to the value of real data."""
        of_chains = {self.prefix + name: "target" for name in ("diversity_tm", "clusters", "novelty_tm")}
        return {
            "frechet": "lower",
            **{"bond": "target", "bond_spread": "target", "bond_valid": "higher", "clash": "lower"},
            **{"angle_js": "lower", "dihedral_js": "lower", "rg_ratio": "target"},
            **{"helix": "target", "strand": "target", "left_helix": "lower", "class_agreement": "higher"},
            **of_chains,
            **({"designability": "higher"} if self.designability else {}),
        }

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data; numbers under different protocols are not comparable."""
        return {
            "domain": "protein",
            "features": {"name": "geometry of the C-alpha trace", "dimensions": self._reference_descriptors.shape[1]},
            "reference": "validation and test data",
            "num_reference": len(self._reference_descriptors),
            "num_train": len(self.train),
            "tm": self.tm,
            "most_tm": MOST_TM,
            "most_training": MOST_TRAINING,
            "seed": SEED,
            **({"designability": self.designability.describe()} if self.designability else {}),
        }

    def __call__(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """Metrics of samples [n, N, 3] made for conditions that have `mask` [n, N]."""
        if samples.ndim != 3 or samples.shape[-1] != 3 or samples.shape[:2] != cond["mask"].shape:
            got, expected = list(samples.shape), [*cond["mask"].shape, 3]
            raise ValueError(
                f"samples have shape {got}, but their mask asks for {expected}; give samples in data space"
            )
        check_finite(samples)
        x, mask = samples.float().to(self.device), cond["mask"].to(self.device)
        ours = measured(x, mask)
        found = {"frechet": metrics.frechet_distance(ours.descriptors, self._reference_descriptors)}
        found |= self._geometry(x, mask, ours)
        if "label" in cond:
            seen = geometry.class_of(ours.helix, ours.strand)
            found["class_agreement"] = metrics.Estimate.mean(seen == cond["label"].to(seen))
        rows = spread(len(x), MOST_TM).to(self.device)
        return found | self._chains(x[rows], mask[rows])

    def thorough(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """`designability`, if there is a program that tells."""
        return {"designability": self.designability(samples, cond)} if self.designability else {}

    def floor(self, num_samples: int = 200) -> dict[str, float]:
        """Metrics of real chains: as many training chains as samples, against the held-out ones.

        `novelty_tm` is that of held-out chains, for a training chain is its own nearest one.
        """
        rows = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(SEED))[:num_samples]
        found, held_out = self.train[rows], spread(len(self.reference["data"]), MOST_TM)
        x, mask = (value[held_out.to(self.device)] for value in self._reference)
        metrics = self(found["data"], found) | {f"{self.prefix}novelty_tm": self._novelty(x, mask)}
        return metrics | self.thorough(found["data"], found)

    def _geometry(self, x: Tensor, mask: Tensor, ours: Measured) -> dict[str, float]:
        bond = geometry.bonds(x, mask)
        bond = bond[bond.isfinite()].double()
        found = {
            "bond": float(bond.mean()),
            "bond_spread": float(bond.std()),
            "bond_valid": float(((bond - BOND).abs() <= 0.02).double().mean()),
            "clash": float(ours.clash.double().mean()),
        }
        for name, share in pooled(x, mask).items():
            found[f"{name}_js"] = jensen_shannon(share, self._reference_pooled[name])
        found["rg_ratio"] = float(geometry.gyration(x, mask).double().mean())
        return found | {
            "helix": float(ours.helix.double().mean()),
            "strand": float(ours.strand.double().mean()),
            "left_helix": float(left_helix(x, mask).double().mean()),
        }

    def _chains(self, x: Tensor, mask: Tensor) -> dict[str, float]:
        among = tm_scores(x, mask, x, mask, self.tm, twice=False)
        pairs = torch.ones_like(among, dtype=torch.bool).triu(1)
        groups = connected_components(((among >= SAME_FOLD) & pairs).cpu().numpy(), directed=False)[0]
        return {
            f"{self.prefix}diversity_tm": float(among[pairs].mean()) if len(x) > 1 else 1.0,
            f"{self.prefix}clusters": groups / len(x),
            f"{self.prefix}novelty_tm": self._novelty(x, mask),
        }

    def _novelty(self, x: Tensor, mask: Tensor) -> float:
        training = self.train[spread(len(self.train), MOST_TRAINING)]
        theirs = (training[name].to(self.device) for name in ("data", "mask"))
        return float(tm_scores(x, mask, *theirs, self.tm).amax(1).mean())


class Measured(NamedTuple):
    """What is quadratic in the length of a chain, or built on it."""

    descriptors: Tensor  # [n, D] float64, see `descriptors`
    helix: Tensor  # share of residues, [n], as the next
    strand: Tensor
    clash: Tensor  # see `clashes`, [n]


def descriptors(x: Tensor, mask: Tensor) -> Tensor:
    """Descriptors of each chain for the Frechet distance, [n, D] float64.

    Every number is bounded, so that no single fault hides the others.

    Roots of the shares (Hellinger's embedding) of bond lengths, virtual angles, virtual dihedrals
    and distances of pairs three or more apart in fixed bins; shares of helix and strand; radius of
    gyration over its law, up to 2; clashes per residue, up to 1.
    """
    return measured(x, mask).descriptors


def measured(x: Tensor, mask: Tensor) -> Measured:
    """The measurements of chains, `CHUNK` at once."""
    found = []
    for rows in torch.arange(len(x)).split(CHUNK):
        part, seen = x[rows], mask[rows]
        far = geometry.separated(x.shape[1], 3).to(x.device)
        pairs = geometry.distances(part, seen)[:, far]
        values = (
            (geometry.bonds(part, seen), BOND_EDGES),
            (geometry.angles(part, seen), ANGLE_EDGES),
            (geometry.dihedrals(part, seen), DIHEDRAL_EDGES),
            (pairs, PAIR_EDGES),
        )
        numbers = [shares(value, torch.tensor(edges)).sqrt() for value, edges in values]
        helix, strand = geometry.contents(geometry.secondary_structure(part, seen), seen)
        clash = clashes(part, seen)
        last = (helix, strand, geometry.gyration(part, seen).clamp_max(2), clash.clamp_max(1))
        numbers += [number[:, None] for number in last]
        found.append((torch.cat([number.double() for number in numbers], 1), helix, strand, clash))
    return Measured(*map(torch.cat, zip(*found, strict=True)))


def pooled(x: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Shares of all chains' virtual angles and dihedrals together, in the bins of `FINE`."""
    values = {"angle": geometry.angles(x, mask), "dihedral": geometry.dihedrals(x, mask)}
    return {name: shares(value.flatten()[None], FINE[name])[0] for name, value in values.items()}


def shares(values: Tensor, edges: Tensor) -> Tensor:
    """Shares of values [n, K] in the bins below, between and above the edges.

    Returns [n, len(edges) + 1]; NaN counts nowhere.
    """
    there = ~values.isnan()
    place = torch.bucketize(values.nan_to_num(0.0), edges.to(values))
    counts = values.new_zeros(len(values), len(edges) + 1).scatter_add(1, place, there.to(values))
    return counts / counts.sum(1, keepdim=True).clamp_min(1)


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Jensen-Shannon divergence of two discrete laws, in bits: from 0 (equal) to 1 (disjoint)."""
    p, q = p.double(), q.double()
    middle = (p + q) / 2
    return float(sum(torch.xlogy(law, law / middle.clamp_min(1e-300)).sum() for law in (p, q)) / (2 * np.log(2)))


def clashes(x: Tensor, mask: Tensor) -> Tensor:
    """Pairs, three or more apart along the chain, nearer than 0.3 nm, per residue, [n]."""
    near = geometry.distances(x, mask)[:, geometry.separated(x.shape[1], 3).to(x.device)] < CLASH
    return near.sum(1) / mask.sum(1)


def left_helix(x: Tensor, mask: Tensor) -> Tensor:
    """Share of residues in runs of four dihedrals between -70 and -30 degrees, [n]."""
    dihedral = geometry.dihedrals(x, mask)
    like = F.pad((dihedral >= -70) & (dihedral <= -30), (1, 2))
    return geometry.runs(like, 4).sum(1) / mask.sum(1)


def tm_scores(x: Tensor, mask_x: Tensor, y: Tensor, mask_y: Tensor, kind: str, twice: bool = True) -> Tensor:
    """TM-scores of all pairs over the longer chain's length, [n, m].

    Args:
        x, y: chains [n, N, 3] and [m, M, 3].
        mask_x, mask_y: their residues.
        kind: `gapless` (see `geometry.gapless_tm`) or `align`.
        twice: false leaves the pairs i >= j at zero.
    """
    if kind == "align":
        return _aligned(x, mask_x, y, mask_y, twice)
    size = max(x.shape[1], y.shape[1])
    x, y = (F.pad(a, (0, 0, 0, size - a.shape[1])) for a in (x, y))
    mask_x, mask_y = (F.pad(m, (0, size - m.shape[1])) for m in (mask_x, mask_y))
    wanted = torch.ones(len(x), len(y), device=x.device)
    i, j = (wanted if twice else wanted.triu(1)).nonzero(as_tuple=True)
    found = x.new_zeros(len(x), len(y))
    for a, b in zip(i.split(8 * CHUNK), j.split(8 * CHUNK), strict=True):
        found[a, b] = geometry.gapless_tm(x[a], y[b], mask_x[a], mask_y[b])
    return found


def _aligned(x: Tensor, mask_x: Tensor, y: Tensor, mask_y: Tensor, twice: bool) -> Tensor:
    tm_align = import_tmtools().tm_align
    ours, theirs = (
        [10 * chain[own].double().cpu().numpy() for chain, own in zip(*pair, strict=True)]
        for pair in ((x, mask_x), (y, mask_y))
    )
    found = torch.zeros(len(ours), len(theirs), device=x.device)
    for i, a in enumerate(ours):
        for j, b in enumerate(theirs):
            if twice or i < j:
                both = tm_align(a, b, "A" * len(a), "A" * len(b))
                found[i, j] = min(both.tm_norm_chain1, both.tm_norm_chain2)
    return found


def import_tmtools() -> Any:
    """The package `tmtools`, or an error that says how to get it."""
    return optional("tmtools", "protein", "data.tm=align, unlike gapless, needs")
