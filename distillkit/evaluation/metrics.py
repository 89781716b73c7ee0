"""Distances between two sets of points, as pure functions on features [N, D].

Everything is computed in float64 on the device of the features. Pairwise distances go block by
block, so that 10,000 against 10,000 points never hold more than one block of rows. Nothing here
draws from a global generator: the same features give the same number.

N, M: points; D: features.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 1024  # rows of a distance matrix held at once


class TooFew(ValueError):
    """A metric needs more points than one of the sets has."""


def frechet_distance(a_ND: Tensor, b_MD: Tensor) -> float:
    """Squared Frechet (Wasserstein-2) distance between Gaussians fitted to both sets; 0 is best.

        |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    Dowson and Landau 1982; FID, arXiv 1706.08500, eq. 6. Covariances have the n - 1 denominator.
    The trace of the root is the sum of the roots of the eigenvalues of S_a^(1/2) S_b S_a^(1/2),
    which is symmetric and so stable; eigenvalues that rounding made negative count as 0.
    """
    a_ND, b_MD = _points(a_ND, b_MD, at_least=2)
    cov_a, cov_b = _covariance(a_ND), _covariance(b_MD)
    root = _psd_root(cov_a)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    gap = (a_ND.mean(0) - b_MD.mean(0)).square().sum()
    return float((gap + cov_a.trace() + cov_b.trace() - 2 * cross).clamp_min(0))


def standardise(features_ND: Tensor, reference_MD: Tensor) -> Tensor:
    """Features in units of the reference's mean and standard deviation, [N, D'], float64.

    Features that are constant over the reference carry no information and are dropped: D' <= D.
    """
    features_ND, reference_MD = _points(features_ND, reference_MD)
    if len(reference_MD) < 2:
        raise TooFew("features are compared in units of their spread over at least 2 reference samples, got 1")
    std = reference_MD.std(0)
    keep = std > 1e-6 * std.max()
    if not keep.any():
        raise ValueError("every feature is constant over the reference samples; give references that differ")
    return (features_ND[:, keep] - reference_MD.mean(0)[keep]) / std[keep]


def kernel_distance(a_ND: Tensor, b_MD: Tensor, subsets: int = 50, size: int = 1000, seed: int = 0) -> float:
    """Kernel distance (KID, arXiv 1801.01401): unbiased MMD^2 with k(x, y) = (x.y / D + 1)^3.

    It is the mean over subsets; when both sets fit into one subset, the full estimate is taken
    once. Being unbiased it is 0 on average for equal laws and may fall slightly below.
    """
    a_ND, b_MD = _points(a_ND, b_MD, at_least=2)
    if max(len(a_ND), len(b_MD)) <= size:
        return float(_mmd2(a_ND, b_MD))
    size = min(size, len(a_ND), len(b_MD))
    rng = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(subsets):
        rows_a = torch.randperm(len(a_ND), generator=rng)[:size].to(a_ND.device)
        rows_b = torch.randperm(len(b_MD), generator=rng)[:size].to(b_MD.device)
        draws.append(_mmd2(a_ND[rows_a], b_MD[rows_b]))
    return float(torch.stack(draws).mean())


def precision_recall(real_ND: Tensor, fake_MD: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991, eq. 1 to 3), both in [0, 1].

    - Precision: the share of fakes inside the ball of some real sample, whose radius reaches its
      k-th real neighbour.
    - Recall: the same with the roles exchanged.
    """
    real_ND, fake_MD = _points(real_ND, fake_MD, at_least=k + 1)
    return _inside_share(fake_MD, real_ND, k), _inside_share(real_ND, fake_MD, k)


def density_coverage(real_ND: Tensor, fake_MD: Tensor, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, arXiv 2002.09797, eq. 3 and 4).

    - Density: the number of balls of real samples in which a fake lies, over k; about 1 for equal
      laws, not bounded by 1.
    - Coverage: the share of real samples whose ball holds at least one fake, in [0, 1].
    """
    real_ND, fake_MD = _points(real_ND, fake_MD)
    radius_N = _neighbour_radius(real_ND, k)
    hits, covered = 0, torch.zeros(len(real_ND), dtype=torch.bool, device=real_ND.device)
    for distance_BN in _distances(fake_MD, real_ND):
        inside_BN = distance_BN <= radius_N
        hits += int(inside_BN.sum())
        covered |= inside_BN.any(0)
    return hits / (k * len(fake_MD)), float(covered.double().mean())


def nearest_distance(samples_ND: Tensor, training_MD: Tensor) -> tuple[float, float]:
    """Distance of samples to the nearest training sample: mean, 5 % quantile; 0 is memorised."""
    samples_ND, training_MD = _points(samples_ND, training_MD)
    nearest_N = torch.cat([distance_BM.amin(1) for distance_BM in _distances(samples_ND, training_MD)])
    return float(nearest_N.mean()), float(torch.quantile(nearest_N, 0.05))


def sliced_wasserstein(a_ND: Tensor, b_MD: Tensor, num_projections: int = 128, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance (Bonneel et al. 2015), in data units.

    It is the root of the mean of W_2^2 over random directions. Each one-dimensional W_2^2 is the
    exact integral of (F_a^-1(u) - F_b^-1(u))^2 over u, for equal and for unequal numbers of points.
    A shift by v gives about |v| / sqrt(D).
    """
    a_ND, b_MD = _points(a_ND, b_MD)
    rng = torch.Generator().manual_seed(seed)
    direction_DP = torch.randn(a_ND.shape[1], num_projections, generator=rng, dtype=torch.float64).to(a_ND.device)
    direction_DP = direction_DP / direction_DP.norm(dim=0)
    line_a, line_b = (a_ND @ direction_DP).sort(0).values, (b_MD @ direction_DP).sort(0).values

    # Both quantile functions are steps, constant between neighbouring edges (in units of 1 / nm).
    n, m = len(a_ND), len(b_MD)
    edges = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique().to(a_ND.device)
    left, width = edges[:-1], edges.diff().double() / (n * m)
    gap_EP = line_a[left // m] - line_b[left // n]
    return float((width[:, None] * gap_EP.square()).sum(0).mean().sqrt())


def energy_distance(a_ND: Tensor, b_MD: Tensor) -> float:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo 2013), in data units.

    It is the V-statistic: never negative, 0 only for equal sets. Two draws of one law give about
    E|X - X'| (1/n + 1/m).
    """
    a_ND, b_MD = _points(a_ND, b_MD)
    return 2 * _mean_distance(a_ND, b_MD) - _mean_distance(a_ND, a_ND) - _mean_distance(b_MD, b_MD)


def _points(*sets: Tensor, at_least: int = 1) -> list[Tensor]:
    """Float64 copies of point sets [N, D], checked for shapes, numbers and finite values."""
    for points in sets:
        if points.ndim != 2 or points.shape[1] != sets[0].shape[1]:
            shapes = " and ".join(str(list(points.shape)) for points in sets)
            raise ValueError(f"features must be [N, D] with one D for both sets, got {shapes}")
        if len(points) < at_least:
            raise TooFew(f"this metric needs at least {at_least} points in each set, got {len(points)}")
        if not points.isfinite().all():
            raise ValueError("features hold NaN or infinity, so no distance is defined; look at the samples first")
    cpu = any(points.device.type == "mps" for points in sets)  # no float64 there
    return [(points.detach().cpu() if cpu else points.detach()).double() for points in sets]


def _covariance(x_ND: Tensor) -> Tensor:
    centred_ND = x_ND - x_ND.mean(0)
    return centred_ND.T @ centred_ND / (len(x_ND) - 1)


def _psd_root(matrix_DD: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix_DD)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _mmd2(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Unbiased MMD^2 (Gretton et al. 2012, eq. 3), cubic kernel, without pairs of one point."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return within(a_ND) + within(b_MD) - 2 * kernel(a_ND, b_MD).mean()


def _distances(rows_ND: Tensor, columns_MD: Tensor) -> Iterator[Tensor]:
    """Yields Euclidean distances [block, M], block after block of rows."""
    for block_BD in rows_ND.split(CHUNK):
        yield torch.cdist(block_BD, columns_MD)


def _neighbour_radius(x_ND: Tensor, k: int) -> Tensor:
    """Distance to the k-th nearest other point of the same set, [N]."""
    if not 1 <= k < len(x_ND):
        raise TooFew(f"k = {k} neighbours need 1 <= k < number of points, got {len(x_ND)} points")
    return torch.cat([distance_BN.kthvalue(k + 1, dim=1).values for distance_BN in _distances(x_ND, x_ND)])


def _inside_share(points_MD: Tensor, centres_ND: Tensor, k: int) -> float:
    radius_N = _neighbour_radius(centres_ND, k)
    inside_M = torch.cat([(distance_BN <= radius_N).any(1) for distance_BN in _distances(points_MD, centres_ND)])
    return float(inside_M.double().mean())


def _mean_distance(a_ND: Tensor, b_MD: Tensor) -> float:
    return math.fsum(float(distance_BM.sum()) for distance_BM in _distances(a_ND, b_MD)) / (len(a_ND) * len(b_MD))
