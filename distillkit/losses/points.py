"""ScoreLiDAR's structural losses (arXiv 2412.03515): a generated scene beside the true one.

x_g and y are generated and true points, [B, N, 3], metres. A scene has no order, so which points
belong together has to be found:

- `nn`: each point belongs to the nearest one of the other scene, in either direction. From the
  generated points to the true ones alone, a scene that shrinks into the middle of the true one
  would cost little.
- `index`: the points of one index belong together, as in the released code, for comparison. True
  points are shuffled there, so this pulls every generated point towards the centroid of all.

Who is nearest is found anew in every call and carries no gradient; the distances carry it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distillkit.losses.reduce import mean

Correspondence = Literal["nn", "index"]
DISTANCES = 2**20  # held at once; with 2**24 a CPU takes twice as long, for they leave its cache


def scene_loss(
    x_g: Tensor, y: Tensor, correspondence: Correspondence = "nn", squared: bool = True, mask: Tensor | None = None
) -> Tensor:
    """The scene-wise loss: the distance of points that belong together (a scalar).

    Args:
        x_g, y: generated and true points, [B, N, 3].
        correspondence: see above; of `nn` the loss is the mean of both directions.
        squared: the mean square over points and axes, as published; else the mean distance.
        mask: bool [B, N], true at the points of sets, of both alike; None means all.
    """
    if correspondence == "index":
        gaps = [x_g - y]
    else:
        gaps = [one - taken(other, nearest(one, other, mask=mask)[..., 0]) for one, other in ((x_g, y), (y, x_g))]
    return sum(mean(gap.square() if squared else gap.norm(dim=-1), mask) for gap in gaps) / len(gaps)


def keypoint_loss(
    x_g: Tensor,
    y: Tensor,
    u: Tensor,
    correspondence: Correspondence = "nn",
    share: float = 0.1,
    key_share: float = 1 / 3,
    neighbours: int = 180,
    mask: Tensor | None = None,
) -> Tensor:
    """The point-wise loss: the mean square error of the key points' mutual distances (a scalar).

    Distances within the generated scene are compared with those within the true one, so where
    either scene lies does not matter.

    Args:
        x_g, y, mask: as in `scene_loss`.
        u: uniform numbers [B, N], by which true points are drawn.
        correspondence: with `nn` a key point belongs to the nearest generated point.
        share, key_share, neighbours: as in `key_points`.
    """
    keys, there = key_points(y, u, share, key_share, neighbours, mask)
    y = taken(y, keys)
    x_g = taken(x_g, keys if correspondence == "index" else nearest(y, x_g, mask=mask)[..., 0])
    chunks, errors = [*_chunks(y.shape[1], y.shape[0] * y.shape[1])], _errors
    if len(chunks) > 1:  # the backward pass would keep them all
        errors = partial(checkpoint, _errors, use_reentrant=False, preserve_rng_state=False)
    return (sum(errors(x_g, y, there, rows) for rows in chunks) / there.sum(1).square().clamp_min(1)).mean()


def _errors(x: Tensor, y: Tensor, there: Tensor, rows: slice) -> Tensor:
    """The sum of squared errors of some rows of the matrices of distances, [B]."""
    error = (apart(x[:, rows], x) - apart(y[:, rows], y)).square()
    return torch.where(there[:, rows, None] & there[:, None], error, 0).sum((1, 2))


@torch.no_grad()
def key_points(
    y: Tensor, u: Tensor, share: float, key_share: float, neighbours: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The indices [B, K] of the most curved of some points, and which of them there are, [B, K].

    Args:
        y, u, mask: as in `keypoint_loss`.
        share: the part of the points that is drawn, in (0, 1].
        key_share: the part of these, the most curved, that is taken, in (0, 1].
        neighbours: as in `curvature`.
    """
    mask = torch.ones_like(u, dtype=torch.bool) if mask is None else mask
    drawn, there = _highest(u, share, mask)
    keys, there = _highest(curvature(taken(y, drawn), y, neighbours, mask), key_share, there)
    return drawn.gather(1, keys), there


def _highest(score: Tensor, share: float, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The indices of the highest scores of each set [B, n], and which of them there are.

    Smaller sets have fewer of them.
    """
    num = math.ceil(share * score.shape[1])
    ranks = torch.arange(num, device=score.device)
    return score.masked_fill(~mask, -math.inf).topk(num).indices, ranks < (share * mask.sum(1, keepdim=True)).ceil()


@torch.no_grad()
def curvature(points: Tensor, y: Tensor, neighbours: int, mask: Tensor | None = None) -> Tensor:
    """`lambda_min / (lambda_1 + lambda_2 + lambda_3)` of the covariance of the neighbours, [B, n].

    It is 0 on planes and lines and 1/3 where neighbours lie alike in all directions.

    Args:
        points: [B, n, 3].
        y, mask: points [B, N, 3] among which neighbours are, and which of them there are.
        neighbours: how many of y are looked at; of a smaller set all.
    """
    found = nearest(points, y, neighbours, mask)
    local = taken(y, found).double()
    there = torch.ones_like(local[..., :1], dtype=torch.bool) if mask is None else taken(mask[..., None], found)
    local = torch.where(there, local, 0)
    local = torch.where(there, local - local.sum(2, keepdim=True) / there.sum(2, keepdim=True).clamp_min(1), 0)
    scatter = local.mT @ local
    trace = scatter.diagonal(dim1=-2, dim2=-1).sum(-1)
    return smallest_eigenvalue(scatter) / trace.clamp_min(torch.finfo(trace.dtype).tiny)


def smallest_eigenvalue(a: Tensor) -> Tensor:
    """The smallest eigenvalue of symmetric matrices [..., 3, 3] in closed form (Smith 1961).

    `torch.linalg.eigvalsh` would wait for the device.
    """
    q = a.diagonal(dim1=-2, dim2=-1).mean(-1)
    b = a - q[..., None, None] * torch.eye(3, dtype=a.dtype, device=a.device)
    p = (b.square().sum((-2, -1)) / 6).sqrt()
    det = (b[..., 0, :] * torch.linalg.cross(b[..., 1, :], b[..., 2, :])).sum(-1)
    r = det / (2 * p**3).clamp_min(torch.finfo(a.dtype).tiny)
    return q + 2 * p * torch.cos(torch.acos(r.clamp(-1, 1)) / 3 + 2 * math.pi / 3)


@torch.no_grad()
def nearest(points: Tensor, y: Tensor, num: int = 1, mask: Tensor | None = None) -> Tensor:
    """The indices [B, n, num] of the points of y that are nearest to each of `points` [B, n, 3].

    The nearest comes first. There are fewer if y has fewer places; points outside of the mask come
    last.
    """
    points, y, found = points.double(), y.double(), []
    offset = y.square().sum(-1)[:, None]  # |p - y|^2 = |p|^2 + |y|^2 - 2 p y, and |p|^2 changes no order
    if mask is not None:
        offset = torch.where(mask[:, None], offset, math.inf)
    for rows in _chunks(points.shape[1], y.shape[0] * y.shape[1]):
        squares = torch.baddbmm(offset, points[:, rows], y.mT, alpha=-2)
        if num == 1:  # on a CPU `topk` takes twice as long
            found.append(squares.min(-1, keepdim=True).indices)
        else:
            found.append(squares.topk(min(num, y.shape[1]), largest=False).indices)
    return torch.cat(found, 1)


def apart(x: Tensor, y: Tensor) -> Tensor:
    """All distances between x [B, n, 3] and y [B, m, 3], [B, n, m].

    They are differences of coordinates: by products, which are faster, metres lose their
    centimetres far from the origin.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def taken(y: Tensor, index: Tensor) -> Tensor:
    """The rows of y [B, N, C] at an index [B, ...], [B, ..., C]."""
    return y.gather(1, index.flatten(1)[..., None].expand(-1, -1, y.shape[2])).unflatten(1, index.shape[1:])


def _chunks(num: int, width: int) -> Iterator[slice]:
    """Slices of `num` rows of so many distances each, such that each holds `DISTANCES` at most."""
    step = max(1, DISTANCES // width)
    yield from (slice(start, start + step) for start in range(0, num, step))
