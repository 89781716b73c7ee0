"""Ideal folds, a toy: helices and strands of textbook geometry, joined by turns.

Bond lengths, angles and dihedrals, distances within and between the elements are those of proteins,
and no two residues clash. The rest is not realistic: no sequence is known to fold like this, loops
are of few kinds, and sheets are meanders only.

n: chains; N: residues of the longest one that fits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distillkit import checks
from domains.protein.data import Chains, Traces
from domains.protein.geometry import (
    BOND,
    centred,
    distances,
    extended_chain,
    fold_class,
    gyration,
    rotations,
    separated,
)

# Angle and dihedral of each residue, degrees.
HELIX = (91.0, 50.0)
STRAND = (126.0, 170.0)
# Turns, found by search: after HAIRPIN a strand comes back at 0.5 nm beside an odd one; after one
# of HELIX_TURNS a helix comes back at 0.95 nm; after one of COVERS a helix lies on the sheet, at 1
# nm.
HAIRPIN = ((94.0, 45.0), (92.0, -86.0), (124.0, 86.0))
HELIX_TURNS = (
    ((113.0, 32.0), (124.0, -133.0), (124.0, -23.0), (123.0, 16.0)),
    ((113.0, -53.0), (123.0, 137.0), (122.0, -114.0), (102.0, -108.0)),
    ((92.0, -112.0), (118.0, 69.0), (114.0, 118.0), (124.0, 114.0)),
    ((119.0, -111.0), (118.0, 121.0), (97.0, -40.0), (119.0, -152.0)),
)
COVERS = (
    ((90.0, 65.0), (96.0, 84.0), (113.0, -66.0), (121.0, -109.0)),
    ((128.0, 119.0), (91.0, 15.0), (105.0, 178.0), (129.0, 96.0)),
    ((123.0, 81.0), (123.0, -1.0), (119.0, 82.0), (129.0, -163.0)),
)
SPREAD = (1.0, 2.0)  # standard deviation of angles and dihedrals, degrees
BOND_SPREAD = 0.003  # of bond lengths, nm
NEAREST = 0.4  # nm that residues three or more apart keep from each other
LOOSEST = 1.25  # radius of gyration, in units of a natural chain's of the length
TRIES = 100  # rounds of candidates before the lengths asked for count as impossible
CANDIDATES = 256  # of one round

Pairs = list[tuple[float, float]]
Draw = Callable[[int, int], int]  # an integer from low to high, both included


class IdealFolds(Chains):
    """Helix bundles, sheets, and helices on sheets, in turn.

    The classes are `mainly alpha`, `mainly beta` and `alpha beta`.

    Every chain is made from random numbers (how many elements, how long, which turns, small
    deviations of all angles) and kept if it has the length asked for, does not clash, is compact
    and has the secondary structure of its class. It is turned at random. Everything is a function
    of the seed.

    Args:
        train, val, test: number of chains.
        seed: of their random numbers.
    """

    classes = 3

    def __init__(self, train: int = 2000, val: int = 200, test: int = 200, seed: int = 0):
        checks.whole(1, train=train, val=val, test=test)
        checks.seed(seed=seed)
        self.sizes, self.seed = (train, val, test), seed

    def load(self, shortest: int, longest: int) -> tuple[Traces, Traces, Traces]:
        """Three parts, each from its own generator: the size of one does not change another."""
        generators = [torch.Generator().manual_seed(3 * self.seed + part) for part in range(3)]
        return tuple(folds(num, shortest, longest, g) for num, g in zip(self.sizes, generators, strict=True))


def folds(num: int, shortest: int, longest: int, generator: torch.Generator) -> Traces:
    """`num` random folds of `shortest` to `longest` residues, the classes in turn.

    Raises:
        ValueError: there are none, or hardly any, of such lengths.
    """
    label = torch.arange(num) % len(PLANS)
    found = []
    for kind in range(len(PLANS)):
        chains: list[Tensor] = []
        for _ in range(TRIES * (1 + num // CANDIDATES)):
            if len(chains) >= (label == kind).sum():
                break
            chains += candidates(kind, shortest, longest, generator)
        else:
            raise ValueError(
                f"there are hardly any ideal folds of {shortest} to {longest} residues: 32 to 64 are a good choice"
            )
        found.append(iter(chains))
    return Traces([next(found[kind]) for kind in label.tolist()], label)


def candidates(kind: int, shortest: int, longest: int, generator: torch.Generator) -> list[Tensor]:
    """The chains kept of one round of random ones, [n, 3] each."""
    numbers = iter(torch.rand(64 * CANDIDATES, generator=generator).tolist())

    def draw(low: int, high: int) -> int:
        return low + int(next(numbers) * (high - low + 1))

    plans = [PLANS[kind](draw) for _ in range(CANDIDATES)]
    plans = [plan for plan in plans if shortest <= len(plan) <= longest]
    if not plans:
        return []
    length = torch.tensor([len(plan) for plan in plans])
    wanted = pad_sequence([torch.tensor(plan) for plan in plans], batch_first=True)
    theta, tau = (wanted + torch.randn(wanted.shape, generator=generator) * torch.tensor(SPREAD)).unbind(-1)
    bond = BOND + BOND_SPREAD * torch.randn(len(plans), wanted.shape[1] - 1, generator=generator)
    mask = torch.arange(wanted.shape[1]) < length[:, None]
    x = centred(extended_chain(theta, tau, bond), mask) @ rotations(len(plans), generator)
    far = separated(x.shape[1], 3)
    good = torch.where(far, distances(x, mask).nan_to_num(torch.inf), torch.inf).amin((1, 2)) >= NEAREST
    good &= (gyration(x, mask) <= LOOSEST) & (fold_class(x, mask) == kind)
    return [x[i, : length[i]].clone() for i in good.nonzero()[:, 0].tolist()]


def bundle(draw: Draw) -> Pairs:
    """Two to four helices, one beside the other."""
    parts = draw(2, 4)
    plan = helix(draw, parts)
    for _ in range(parts - 1):
        plan += [*HELIX_TURNS[draw(0, len(HELIX_TURNS) - 1)], *helix(draw, parts)]
    return plan


def helix(draw: Draw, parts: int) -> Pairs:
    """A helix of a bundle with `parts` helices: the more there are, the shorter it is."""
    return [HELIX] * draw(20 // parts + 2, 50 // parts + 3)


def sheet(draw: Draw) -> Pairs:
    """A meander of four to six strands."""
    return meander(draw, draw(4, 6))


def covered(draw: Draw) -> Pairs:
    """A meander of two or three strands, and a helix on it."""
    return [*meander(draw, draw(2, 3)), *COVERS[draw(0, len(COVERS) - 1)], *[HELIX] * draw(9, 24)]


def meander(draw: Draw, parts: int) -> Pairs:
    """Strands of 5 or 7 residues: odd, for then all turns are on the same side of the sheet."""
    plan = [STRAND] * (5 + 2 * draw(0, 1))
    for _ in range(parts - 1):
        plan += [*HAIRPIN, *[STRAND] * (5 + 2 * draw(0, 1))]
    return plan


PLANS = (bundle, sheet, covered)  # by fold class
