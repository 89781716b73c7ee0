"""Geometry of C-alpha traces: bonds, angles, secondary structure, size, superposition.

Positions are in nanometres, angles in degrees. A batch is x [B, N, 3] with mask bool [B, N].
Undefined values (at the ends of a chain, in the padding) are NaN.

B: chains; N: residues of the longest one; n: residues of one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BOND = 0.38  # nm between neighbours, the peptide bond between them trans
CLASH = 0.3  # nm, nearer than any two residues that are not neighbours come
COIL, HELIX, STRAND = range(3)
CLASSES = ("mainly alpha", "mainly beta", "alpha beta", "few secondary structures")  # as CATH names its classes


def centred(x: Tensor, mask: Tensor) -> Tensor:
    """Positions with the mean of every chain at the origin, and zero in the padding."""
    x = torch.where(mask[..., None], x, 0)
    mean = x.sum(1, keepdim=True) / mask.sum(1).clamp_min(1)[:, None, None]
    return torch.where(mask[..., None], x - mean, 0)


def blanked(x: Tensor, mask: Tensor) -> Tensor:
    """Positions with NaN in the padding, so that it counts nowhere."""
    return torch.where(mask[..., None], x, torch.nan)


def bonds(x: Tensor, mask: Tensor) -> Tensor:
    """Distance from each residue to the next, [B, N - 1]."""
    return blanked(x, mask).diff(dim=1).norm(dim=-1)


def angles(x: Tensor, mask: Tensor) -> Tensor:
    """Virtual angle at residue i between i - 1 and i + 1, in [0, 180]; [B, N - 2], place i - 1."""
    step = F.normalize(blanked(x, mask).diff(dim=1), dim=-1)
    return torch.rad2deg((-step[:, :-1] * step[:, 1:]).sum(-1).clamp(-1, 1).acos())


def dihedrals(x: Tensor, mask: Tensor) -> Tensor:
    """Virtual dihedral of residues i - 1 .. i + 2, at place i - 1: [B, N - 3], in (-180, 180].

    About 50 degrees in an alpha helix.
    """
    step = blanked(x, mask).diff(dim=1)
    a, b, c = step[:, :-2], step[:, 1:-1], step[:, 2:]
    first, second = torch.linalg.cross(a, b), torch.linalg.cross(b, c)
    sine = (F.normalize(b, dim=-1) * torch.linalg.cross(first, second)).sum(-1)
    return torch.rad2deg(torch.atan2(sine, (first * second).sum(-1)))


def distances(x: Tensor, mask: Tensor) -> Tensor:
    """Distances of all pairs, [B, N, N]."""
    x = blanked(x, mask)
    return (x[:, :, None] - x[:, None]).norm(dim=-1)


def separated(num: int, gap: int) -> Tensor:
    """Which pairs i < j are at least `gap` apart along the chain, bool [num, num]."""
    return torch.ones(num, num, dtype=torch.bool).triu(gap)


def gyration(x: Tensor, mask: Tensor) -> Tensor:
    """Radius of gyration over that of natural globular chains of the same length, [B].

    The latter is 0.22 n^0.38 nm (Skolnick et al. 1997).
    """
    length = mask.sum(1)
    radius = (centred(x, mask).square().sum((1, 2)) / length).sqrt()
    return radius / (0.22 * length**0.38)


def secondary_structure(x: Tensor, mask: Tensor) -> Tensor:
    """COIL, HELIX or STRAND for every residue, int64 [B, N], by P-SEA (Labesse et al. 1997).

    P-SEA reads C-alpha positions alone. A residue is like a helix, or like a strand, if distances
    or angle and dihedral are those of one. Five such in a row are a helix, four a strand, and three
    a strand if they lie beside another (five contacts at 0.42 to 0.52 nm). One more residue at each
    end needs to be only roughly like it.
    """
    x = blanked(x, mask)

    def place(values: Tensor) -> Tensor:  # what starts at residue i - 1 belongs to residue i
        return F.pad(values, (1, mask.shape[1] - 1 - values.shape[1]), value=torch.nan)

    d2, d3, d4 = (place((x[:, k:] - x[:, :-k]).norm(dim=-1)) for k in (2, 3, 4))
    angle, dihedral = place(angles(x, mask)), place(dihedrals(x, mask))

    def near(value: Tensor, centre: float, by: float) -> Tensor:
        return (value - centre).abs() <= by

    away = (dihedral + 170 + 180) % 360 - 180  # from -170 degrees, around the circle
    like_helix = near(d3, 0.53, 0.05) & near(d4, 0.64, 0.06) | near(angle, 89, 12) & near(dihedral, 50, 20)
    like_strand = near(d2, 0.67, 0.06) & near(d3, 0.99, 0.09) & near(d4, 1.24, 0.11)
    like_strand = like_strand | near(angle, 124, 14) & near(away, 0, 45)

    helix = _extended(runs(like_helix, 5), near(d3, 0.53, 0.05) | near(angle, 89, 12))
    gaps = distances(x, mask)
    contacts = ((gaps > 0.42) & (gaps <= 0.52)).sum(-1)
    short = runs(like_strand, 3)
    strand = runs(like_strand, 4) | short & (_sums(contacts, short) >= 5)
    strand = _extended(strand, near(d3, 0.99, 0.09))
    found = torch.where(helix, HELIX, COIL).masked_fill(strand, STRAND)
    return found.masked_fill(~mask, COIL)


def contents(sse: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of helix and of strand, [B] each."""
    length = mask.sum(1)
    return (sse == HELIX).sum(1) / length, (sse == STRAND).sum(1) / length


def fold_class(x: Tensor, mask: Tensor) -> Tensor:
    """Index into `CLASSES` by P-SEA contents, int64 [B].

    Few where helix and strand together are below a fifth; mainly one above 85 % of their sum.
    """
    return class_of(*contents(secondary_structure(x, mask), mask))


def class_of(helix: Tensor, strand: Tensor) -> Tensor:
    """`fold_class` of chains whose contents are known."""
    both = helix + strand
    found = torch.where(helix > 0.85 * both, 0, torch.where(strand > 0.85 * both, 1, 2))
    return torch.where(both < 0.2, 3, found)


def rotations(num: int, generator: torch.Generator) -> Tensor:
    """Uniformly random proper rotations, [num, 3, 3].

    Never a reflection, because proteins are not their mirror images.
    """
    q, r = torch.linalg.qr(torch.randn(num, 3, 3, generator=generator))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    return q * torch.linalg.det(q).sign()[:, None, None]


def superposed(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """x moved onto y by the rotation and shift with the smallest weighted squared distance.

    Source: Kabsch 1976.

    Args:
        x, y: [..., N, 3].
        weight: [..., N], not all zero.
    """
    share = (weight / weight.sum(-1, keepdim=True).clamp_min(1e-12))[..., None]
    mean_x, mean_y = (share * x).sum(-2, keepdim=True), (share * y).sum(-2, keepdim=True)
    u, _, v = torch.linalg.svd((share * (x - mean_x)).mT @ (y - mean_y))
    sign = torch.ones_like(u[..., 0])
    sign[..., -1] = torch.linalg.det(u @ v).sign()
    return (x - mean_x) @ (u * sign[..., None, :]) @ v + mean_y


def gapless_tm(x: Tensor, y: Tensor, mask_x: Tensor, mask_y: Tensor, rounds: int = 2) -> Tensor:
    """TM-score with residue k on residue k, without gaps, over the longer chain's length, [B].

    Source: Zhang and Skolnick 2004.

    A lower bound of what a search over alignments finds, close to it only for chains that are alike
    from end to end. The best of three starts: the superposition of all residues, of the first half
    and of the second; from each, `rounds` times that of the residues nearer than d0.
    """
    both = mask_x & mask_y
    length = torch.maximum(mask_x.sum(1), mask_y.sum(1))
    d0 = (0.124 * (length - 15).clamp_min(1).double() ** (1 / 3) - 0.18).clamp_min(0.05).to(x)[:, None]
    first = both.cumsum(1) <= both.sum(1, keepdim=True) / 2
    best = x.new_zeros(len(x))
    for start in (both, both & first, both & ~first):
        weight = start.to(x)
        for _ in range(rounds + 1):
            gap = torch.where(both, (superposed(x, y, weight) - y).norm(dim=-1), torch.inf)
            best = torch.maximum(best, (1 / (1 + (gap / d0) ** 2)).sum(1) / length)
            near = gap < d0
            weight = torch.where(near.sum(1, keepdim=True) >= 3, near, start).to(x)
    return best


def extended_chain(theta: Tensor, tau: Tensor, bond: Tensor) -> Tensor:
    """Positions from internal coordinates, [B, N, 3].

    By the natural extension of a reference frame (Parsons et al. 2005).

    Args:
        theta: angle at residue i, degrees [B, N]; the first and the last are not used.
        tau: dihedral of i - 1 .. i + 2, degrees [B, N]; the first and the last two are not used.
        bond: from residue i to the next, [B, N - 1].
    """
    theta, tau = theta * (math.pi / 180), tau * (math.pi / 180)
    x = [theta.new_zeros(len(theta), 3)]
    forward, normal = x[0] + theta.new_tensor([1.0, 0, 0]), x[0] + theta.new_tensor([0, 0, 1.0])
    for i in range(theta.shape[1] - 1):
        if i:  # turn in the plane of the last three residues, then out of it
            back, side = theta[:, i, None], torch.linalg.cross(normal, forward)
            out = tau[:, i - 1, None] if i > 1 else torch.zeros_like(back)
            turned = out.cos() * side + out.sin() * normal
            forward, old = -back.cos() * forward + back.sin() * turned, forward
            normal = F.normalize(torch.linalg.cross(old, forward), dim=-1)
        x.append(x[-1] + bond[:, i, None] * forward)
    return torch.stack(x, 1)


def runs(like: Tensor, least: int) -> Tensor:
    """True where at least `least` in a row are."""
    if like.shape[1] < least:
        return torch.zeros_like(like)
    starts = -F.max_pool1d(-like[:, None].float(), least, stride=1)
    return F.max_pool1d(F.pad(starts, (least - 1, least - 1)), least, stride=1)[:, 0] > 0.5


def _extended(run: Tensor, roughly: Tensor) -> Tensor:
    """Runs longer by one at each end, where it is roughly alike."""
    return run | roughly & (F.max_pool1d(run[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0.5)


def _sums(values: Tensor, run: Tensor) -> Tensor:
    """The sum of `values` over the run that a residue lies in, [B, N]."""
    number = F.pad(run[:, 1:] != run[:, :-1], (1, 0)).cumsum(1)
    return torch.zeros_like(values).scatter_add(1, number, values).gather(1, number)
