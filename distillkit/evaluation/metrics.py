"""Distances between two sets of points, as pure functions on features [N, D].

A set is a tensor, or `Points`, which keeps what several metrics or models share. Everything is
computed in float64 on the device of the features. Pairwise distances go tile by tile, so that no
matrix [N, M] is ever held. Nothing here draws from a global generator: the same features give the
same number.

N, M: points; D: features; I, J: rows and columns of a tile.
"""

import itertools
import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from distillkit.evaluation.samples import Diverged
from distillkit.progress import counted

CHUNK = 1024  # rows and columns of a tile of distances (8 MB)
SHOWN = 32  # tiles from which on a pass over distances shows its progress
NEIGHBOURS = 5  # of every point, found in one pass
NORMAL = 1.96  # standard deviations of a 95 % interval


class TooFew(ValueError):
    """A metric needs more points than one of the sets has, or points that differ."""


class Estimate(float):
    """A metric of a set of samples that knows how much each of them moves it.

    Args:
        value: the metric.
        influence: [N] of the samples in their order: the derivative of the metric by a sample's
            weight, with mean zero (the empirical influence function, Hampel 1974). A metric of N
            samples scatters by std(influence) / sqrt(N), also one that is biased by N, for which a
            bootstrap would be biased once more. None if it is not known.
    """

    influence: Tensor | None

    def __new__(cls, value: float, influence: Tensor | None = None):
        made = super().__new__(cls, value)
        made.influence = None if influence is None else (influence - influence.mean()).detach().double().cpu()
        return made

    @classmethod
    def mean(cls, values: Tensor) -> "Estimate":
        """The mean of a number for each sample, [N]."""
        return cls(float(values.double().mean()), values.double())


def margin(estimate: float, other: float | None = None) -> float | None:
    """Half of the 95 % interval of an estimate, or of its difference from another.

    Two estimates are of samples of the same noise and conditions, one by one, so what these have
    in common does not count. None where influences are not known.
    """
    found = [getattr(each, "influence", None) for each in (estimate, other) if each is not None]
    if any(each is None or len(each) < 2 or each.shape != found[0].shape for each in found):
        return None
    own = found[0] - found[1] if len(found) > 1 else found[0]
    return NORMAL * float(own.std()) / math.sqrt(len(own))


class Points:
    """A set of points, and what every comparison with it shares: found when first asked for, kept.

    Args:
        features_ND: finite numbers [N, D]; held as float64, on the CPU if their device has none.
    """

    def __init__(self, features_ND: Tensor):
        if not features_ND.isfinite().all():
            raise Diverged("features hold NaN or infinity, so no distance is defined: look at the samples first")
        features_ND = features_ND.detach()
        self.points_ND = (features_ND.cpu() if features_ND.device.type == "mps" else features_ND).double()
        self.shape, self.ndim = self.points_ND.shape, self.points_ND.ndim
        self.kernels: dict[tuple[int, ...], list[Tensor]] = {}  # terms within subsets, by how these are drawn
        self._nearest_NK: Tensor | None = None

    def __len__(self) -> int:
        return len(self.points_ND)

    @cached_property
    def mean_D(self) -> Tensor:
        return self.points_ND.mean(0)

    @cached_property
    def std_D(self) -> Tensor:
        return self.points_ND.std(0)

    @cached_property
    def covariance_DD(self) -> Tensor:
        """With the n - 1 denominator."""
        centred_ND = self.points_ND - self.mean_D
        return centred_ND.T @ centred_ND / (len(self) - 1)

    @cached_property
    def root_DD(self) -> Tensor:
        """The symmetric root of the covariance; eigenvalues that rounding made negative are 0."""
        values, vectors = torch.linalg.eigh(self.covariance_DD)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    @cached_property
    def mean_distance(self) -> float:
        """Mean distance of all pairs, also of a point and itself."""
        return _mean(self.mean_distances)

    @cached_property
    def mean_distances(self) -> Tensor:
        """The mean distance of each point from all, [N]."""
        return _mean_distances(self, self)

    def radius(self, k: int, centre_D: Tensor) -> Tensor:
        """Squared distance from each point to its k-th nearest other one, [N].

        It is raised by the rounding of itself and of tiles around `centre_D` that are compared with
        it, so that a point just so far away is `<=` it, whatever the order of summation.
        """
        if not 1 <= k < len(self):
            raise TooFew(f"k = {k} neighbours need 1 <= k < number of points, got {len(self)} points")
        if self._nearest_NK is None or self._nearest_NK.shape[1] < k:
            self._nearest_NK = _nearest(self, min(max(k, NEIGHBOURS), len(self) - 1))
        radius_N = self._nearest_NK[:, k - 1]
        size_N = sum((self.points_ND - centre).square().sum(1) for centre in (self.mean_D, centre_D))
        # a point x on the sphere around y has |x|^2 + |y|^2 <= 3 |y|^2 + 2 r^2
        return radius_N + _rounding(self.shape[1]) * (3 * size_N + 4 * radius_N)


Set = Tensor | Points


def frechet_distance(a: Set, b: Set, each: int = 1) -> Estimate:
    """Squared Frechet (Wasserstein-2) distance between Gaussians fitted to both sets; 0 is best.

        |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    Dowson and Landau 1982; FID, arXiv 1706.08500, eq. 6. Covariances have the n - 1 denominator.
    The trace of the root is the sum of the roots of the eigenvalues of S_b^(1/2) S_a S_b^(1/2),
    which is symmetric and so stable; eigenvalues that rounding made negative count as 0.

    The influence of a point c of `a`, seen from m_a, is `2 (m_a - m_b).c + c.c - c.T c` less its
    mean, where T = S_b^(1/2) (S_b^(1/2) S_a S_b^(1/2))^(-1/2) S_b^(1/2) is the optimal map.

    Args:
        a: of the samples.
        b: the reference.
        each: points of a sample, which follow each other in `a`.
    """
    a, b = _sets(a, b, at_least=2)
    values, vectors = torch.linalg.eigh(b.root_DD @ a.covariance_DD @ b.root_DD)
    gap_D = a.mean_D - b.mean_D
    cross = values.clamp_min(0).sqrt().sum()
    total = gap_D.square().sum() + a.covariance_DD.trace() + b.covariance_DD.trace() - 2 * cross
    kept = values > 1e-10 * values[-1]  # where `a` has no spread no point of it lies
    map_DK = b.root_DD @ (vectors[:, kept] / values[kept] ** 0.25)
    centred_ND = a.points_ND - a.mean_D
    pulls_N = 2 * centred_ND @ gap_D + centred_ND.square().sum(1) - (centred_ND @ map_DK).square().sum(1)
    return Estimate(float(total.clamp_min(0)), pulls_N.unflatten(0, (-1, each)).mean(1))


def standardise(features: Set, reference: Set) -> Tensor:
    """Features in units of the reference's mean and standard deviation, [N, D'], float64.

    Features that are constant over the reference carry no information and are dropped: D' <= D.
    """
    features, reference = _sets(features, reference)
    if len(reference) < 2:
        raise TooFew("features are compared in units of their spread over at least 2 reference samples, got 1")
    keep = reference.std_D > 1e-6 * reference.std_D.max()
    if not keep.any():
        raise TooFew("every feature is constant over the reference samples; give references that differ")
    return (features.points_ND[:, keep] - reference.mean_D[keep]) / reference.std_D[keep]


def kernel_distance(a: Set, b: Set, subsets: int = 50, size: int = 1000, seed: int = 0) -> float:
    """Kernel distance (KID, arXiv 1801.01401): unbiased MMD^2 with k(x, y) = (x.y / D + 1)^3.

    Gretton et al. 2012, eq. 3. It is the mean over subsets; when both sets fit into one subset, the
    full estimate is taken once. Being unbiased it is 0 on average for equal laws and may fall
    slightly below.
    """
    a, b = _sets(a, b, at_least=2)
    kept = b.kernels.setdefault((len(a), subsets, size, seed), [])
    if max(len(a), len(b)) <= size:
        subsets, size = 1, None
    else:
        size = min(size, len(a), len(b))
    rng, draws = torch.Generator().manual_seed(seed), []
    for i in counted("kernel distance", subsets) if size else range(1):
        x, y = (_subset(each.points_ND, size, rng) for each in (a, b))
        if len(kept) <= i:
            kept.append(_kernel_within(y))
        draws.append(_kernel_within(x) + kept[i] - 2 * _kernel(x, y).mean())
    return float(torch.stack(draws).mean())


def prdc(
    real: Set, fake: Set, precision_recall: int | None = None, density_coverage: int | None = None
) -> dict[str, float]:
    """Precision and recall, density and coverage, by one pass over the distances between the sets.

    Args:
        real: the reference.
        fake: the samples.
        precision_recall: k of `precision_recall`; None leaves both out.
        density_coverage: k of `density_coverage`; None leaves both out.
    """
    real, fake = _sets(real, fake, at_least=1 + (precision_recall or 0))
    own = {k: real.radius(k, real.mean_D) for k in sorted({precision_recall, density_coverage} - {None}, reverse=True)}
    reach_M = fake.radius(precision_recall, real.mean_D) if precision_recall else None
    precise_M, recalled_N, covered_N = (
        torch.zeros(len(each), dtype=torch.bool, device=real.points_ND.device) for each in (fake, real, real)
    )
    hits = torch.zeros((), dtype=torch.long, device=real.points_ND.device)
    for i, j, squared_IJ in _tiles(fake, real, "comparing with the reference"):
        if precision_recall:
            precise_M[i] |= (squared_IJ <= own[precision_recall][j]).any(1)
            recalled_N[j] |= (squared_IJ <= reach_M[i, None]).any(0)
        if density_coverage:
            inside_IJ = squared_IJ <= own[density_coverage][j]
            hits += inside_IJ.count_nonzero()
            covered_N[j] |= inside_IJ.any(0)
    found = {}
    if precision_recall:
        found |= {"precision": Estimate.mean(precise_M), "recall": float(recalled_N.double().mean())}
    if density_coverage:
        found |= {
            "density": int(hits) / (density_coverage * len(fake)),
            "coverage": float(covered_N.double().mean()),
        }
    return found


def precision_recall(real: Set, fake: Set, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991, eq. 1 to 3), both in [0, 1].

    - Precision: the share of fakes inside the ball of some real sample, whose radius reaches its
      k-th real neighbour.
    - Recall: the same with the roles exchanged.
    """
    return tuple(prdc(real, fake, precision_recall=k).values())


def density_coverage(real: Set, fake: Set, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, arXiv 2002.09797, eq. 3 and 4).

    - Density: the number of balls of real samples in which a fake lies, over k; about 1 for equal
      laws, not bounded by 1.
    - Coverage: the share of real samples whose ball holds at least one fake, in [0, 1].
    """
    return tuple(prdc(real, fake, density_coverage=k).values())


def nearest_distance(samples: Set, training: Set) -> tuple[float, float]:
    """Distance of samples to the nearest training sample: mean, 5 % quantile; 0 is memorised."""
    samples, training = _sets(samples, training)
    x_ND, y_MD = samples.points_ND, training.points_ND
    squared_N = torch.full_like(x_ND[:, 0], torch.inf)
    nearest_N = torch.zeros_like(squared_N, dtype=torch.long)
    for i, j, squared_IJ in _tiles(samples, training, "seeking the nearest training samples"):
        least_I, where_I = squared_IJ.min(1)
        nearest_N[i] = torch.where(least_I < squared_N[i], j.start + where_I, nearest_N[i])
        squared_N[i] = torch.minimum(least_I, squared_N[i])
    # not of the tiles, whose rounding of squares is worth 1e-8 of a distance
    blocks = zip(x_ND.split(CHUNK), nearest_N.split(CHUNK), strict=True)
    distance_N = torch.cat([(x_BD - y_MD[nearest_B]).norm(dim=1) for x_BD, nearest_B in blocks])
    return Estimate.mean(distance_N), float(torch.quantile(distance_N, 0.05))


def sliced_wasserstein(a: Set, b: Set, num_projections: int = 128, seed: int = 0) -> Estimate:
    """Sliced Wasserstein-2 distance (Bonneel et al. 2015), in data units.

    It is the root of the mean of W_2^2 over random directions. Each one-dimensional W_2^2 is the
    exact integral of (F_a^-1(u) - F_b^-1(u))^2 over u, for equal and for unequal numbers of points.
    A shift by v gives about |v| / sqrt(D).

    The influence of a point of `a` on W_2^2 is its Kantorovich potential (Villani 2003), the
    integral of twice its way to `b` along the line.
    """
    a_ND, b_MD = (each.points_ND for each in _sets(a, b))
    rng = torch.Generator().manual_seed(seed)
    shape = (a_ND.shape[1], num_projections)
    direction_DP = torch.randn(shape, generator=rng, dtype=torch.float64, device=rng.device).to(a_ND.device)
    direction_DP = direction_DP / direction_DP.norm(dim=0)
    line_a, order_a = (a_ND @ direction_DP).sort(0)
    line_b = (b_MD @ direction_DP).sort(0).values

    # Both quantile functions are steps, constant between neighbouring edges (in units of 1 / nm).
    n, m = len(a_ND), len(b_MD)
    edges = torch.cat([torch.arange(0, n * m + 1, step, device=a_ND.device) for step in (m, n)]).unique()
    left, width = edges[:-1], edges.diff().double() / (n * m)
    gap_EP = line_a[left // m] - line_b[left // n]
    distance = float((width[:, None] * gap_EP.square()).sum(0).mean().sqrt())

    way_NP = torch.zeros_like(line_a).index_add_(0, left // m, n * width[:, None] * gap_EP)
    steps_NP = (way_NP[1:] + way_NP[:-1]) * line_a.diff(dim=0)
    along_NP = torch.cat([torch.zeros_like(line_a[:1]), steps_NP.cumsum(0)])
    potential_N = torch.zeros_like(line_a).scatter_(0, order_a, along_NP - along_NP.mean(0)).mean(1)
    return Estimate(distance, potential_N / (2 * distance) if distance else potential_N)


def energy_distance(a: Set, b: Set) -> Estimate:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo 2013), in data units.

    It is the V-statistic: never negative, 0 only for equal sets. Two draws of one law give about
    E|X - X'| (1/n + 1/m). The influence of x is 2 E|x - Y| - 2 E|x - X'|, but for its mean.
    """
    a, b = _sets(a, b)
    across_N = _mean_distances(a, b)
    return Estimate(2 * _mean(across_N) - a.mean_distance - b.mean_distance, 2 * (across_N - a.mean_distances))


def _sets(*sets: Set, at_least: int = 1) -> list[Points]:
    """Sets of points, checked for shapes, numbers and finite values."""
    for points in sets:
        if points.ndim != 2 or points.shape[1] != sets[0].shape[1]:
            shapes = " and ".join(str(list(points.shape)) for points in sets)
            raise ValueError(f"features must be [N, D] with one D for both sets, got {shapes}")
        if len(points) < at_least:
            raise TooFew(f"this metric needs at least {at_least} points in each set, got {len(points)}")
    return [points if isinstance(points, Points) else Points(points) for points in sets]


def _subset(x_ND: Tensor, size: int | None, rng: torch.Generator) -> Tensor:
    """As many points drawn without replacement; None takes all."""
    if size is None:
        return x_ND
    return x_ND[torch.randperm(len(x_ND), generator=rng, device=rng.device)[:size].to(x_ND.device)]


def _kernel(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    return (x_ND @ y_MD.T / x_ND.shape[1] + 1) ** 3


def _kernel_within(x_ND: Tensor) -> Tensor:
    """Mean kernel of all pairs of different points."""
    k_NN = _kernel(x_ND, x_ND)
    return (k_NN.sum() - k_NN.trace()) / (len(x_ND) * (len(x_ND) - 1))


def _tiles(a: Points, b: Points, what: str, half: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and squared Euclidean distances of each tile; `half` leaves out rows > columns.

    They are |x|^2 + |y|^2 - 2 x.y around the mean of `b`, so that an offset of the features costs
    no digits. Those that rounding cannot tell from 0 are 0: points nearer than about 1e-6 of their
    distance from the mean (2,048 features) are the same.
    """
    rows, columns = ([slice(i, i + CHUNK) for i in range(0, len(each), CHUNK)] for each in (a, b))
    pairs = [(i, j) for i, j in itertools.product(rows, columns) if not half or i.start <= j.start]
    smallest, last = _rounding(b.shape[1]), None
    for at in counted(what, len(pairs)) if len(pairs) > SHOWN else range(len(pairs)):
        i, j = pairs[at]
        if i is not last:
            last, x_ID = i, a.points_ND[i] - b.mean_D
        y_JD = b.points_ND[j] - b.mean_D
        sizes_IJ = x_ID.square().sum(1)[:, None] + y_JD.square().sum(1)
        squared_IJ = torch.addmm(sizes_IJ, x_ID, y_JD.T, alpha=-2)
        yield i, j, squared_IJ.masked_fill_(squared_IJ <= smallest * sizes_IJ, 0)


def _rounding(dim: int) -> float:
    """Bound of the rounding of a squared distance in a tile, over |x|^2 + |y|^2.

    It is that of sums of D terms in any order (Higham 2002, eq. 3.4) and of a few roundings more.
    """
    return (dim + 8) * torch.finfo(torch.float64).eps


def _nearest(x: Points, k: int) -> Tensor:
    """Squared distances to the k nearest other points of the same set, ascending, [N, k]."""
    nearest_Nk = torch.full_like(x.points_ND[:, :1], torch.inf).repeat(1, k)

    def add(rows: slice, squared_IJ: Tensor) -> None:
        found = squared_IJ.topk(min(k, squared_IJ.shape[1]), largest=False).values
        nearest_Nk[rows] = torch.cat([nearest_Nk[rows], found], 1).topk(k, largest=False).values

    for i, j, squared_IJ in _tiles(x, x, "measuring distances between neighbours", half=True):
        if i == j:
            squared_IJ.fill_diagonal_(torch.inf)
        else:
            add(j, squared_IJ.T)
        add(i, squared_IJ)
    return nearest_Nk


def _mean_distances(a: Points, b: Points) -> Tensor:
    """The mean distance of each point of `a` from those of `b`, [N]."""
    total_N = torch.zeros_like(a.points_ND[:, 0])
    for i, _, squared_IJ in _tiles(a, b, "averaging distances"):
        total_N[i] += squared_IJ.sqrt_().sum(1)
    return total_N / len(b)


def _mean(values_N: Tensor) -> float:
    return math.fsum(values_N.tolist()) / len(values_N)
