"""Protein backbones as C-alpha traces: padded sets of residues, in nanometres.

Residues are in the order of the chain.

No sequence, no side chains. A chain has no gap: what follows each other in a sample is bonded. Fold
classes are those of `domains.protein.geometry.CLASSES`.

n: residues of a chain; N: residues of the longest one that fits.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distillkit import checks
from distillkit.data import DistillData, TensorData, split
from distillkit.files import read_npz
from distillkit.sources import listed
from distillkit.spec import Recorded
from domains.protein.designability import Designability
from domains.protein.geometry import CLASSES, centred, fold_class

LOW, HIGH = 0.27, 0.42  # nm from one C-alpha to the next, at least and at most, where they are bonded
UNKNOWN = 9999.0  # angstrom, from which on coordinates stand for none
Said = dict[str, list[str]]  # what was left out or chosen, and of which files or chains


@dataclass
class Traces:
    """Chains.

    Attributes:
        positions: of the C-alpha atoms, float32 [n, 3] each, in nanometres.
        label: fold class of each, int64; None means by its secondary structure.
    """

    positions: list[Tensor]
    label: Tensor | None = None


class Chains(Recorded, ABC):
    """A source of chains.

    Attributes:
        classes: how many fold classes there are, the first so many of `CLASSES`.
    """

    classes: int = len(CLASSES)

    @abstractmethod
    def load(self, shortest: int, longest: int) -> tuple[Traces, Traces, Traces]:
        """Training, validation and test chains of `shortest` to `longest` residues."""


class ProteinData(DistillData):
    """C-alpha traces.

    Batch: `data` float32 [B, N, 3], nanometres, each chain centred; `mask` bool [B, N], true for
    residues (the padding is zero); `label` int64 [B], the fold class.

    In training N is that of the batch's longest chain, and chains of similar length come together,
    because work grows with N^2.

    Args:
        chains: the source.
        longest: N; longer chains are cut into windows.
        shortest: residues that a chain must have.
        batch_size: samples of one micro-batch.
        tm: how chains are compared: `gapless`, residue k on residue k, or `align`, by TM-align
            (tmtools, slower).
    """

    domain = "protein"
    pictured = 24
    context = ("mask",)
    asks = {"mask": "the length of each chain; domains.protein.data.lengths([80, 120]) says 80 and 120 residues"}

    def __init__(
        self,
        chains: Chains,
        longest: int = 64,
        shortest: int = 32,
        batch_size: int = 32,
        tm: Literal["gapless", "align"] = "gapless",
    ):
        super().__init__(batch_size)
        checks.whole(8, shortest=shortest, longest=longest)
        if shortest > longest:
            raise ValueError(f"chains have 8 residues or more: 8 <= shortest <= longest, got {shortest} and {longest}")
        self.chains, self.longest, self.shortest, self.tm = chains, longest, shortest, tm
        self.designability = Designability.from_environment()
        self.event_shape = (longest, 3)
        self.classes, self.names = {"label": chains.classes}, {"label": CLASSES[: chains.classes]}

    def load(self) -> tuple[TensorData, TensorData, TensorData]:
        train, *held_out = (batch(part, self.longest) for part in self.chains.load(self.shortest, self.longest))
        return Trimmed(train), *(TensorData(part) for part in held_out)

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.protein.evaluation import ProteinEvaluator

        return ProteinEvaluator(self.train, held_out, self.tm, self.designability)

    @property
    def media(self) -> ModuleType:
        """`domains.protein.media`."""
        from domains.protein import media

        return media


class Trimmed(TensorData):
    """Training data in batches that end with their longest chain.

    The loader puts chains of similar length together.
    """

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__(tensors)
        self.lengths = self.tensors["mask"].sum(1)

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        longest = int(self.lengths[indices].max()) if len(indices) else 0
        found = super().__getitem__(indices)
        return {name: value if value.ndim == 1 else value[:, :longest] for name, value in found.items()}


def batch(traces: Traces, size: int) -> dict[str, Tensor]:
    """All items of a batch, of all chains padded to `size` residues."""
    length = torch.tensor([len(chain) for chain in traces.positions])
    mask = torch.arange(size) < length[:, None]
    x = torch.zeros(len(mask), size, 3)
    x[mask] = torch.cat(traces.positions)
    x = centred(x, mask)
    label = fold_class(x, mask) if traces.label is None else traces.label
    return {"data": x, "mask": mask, "label": label}


def lengths(residues: Sequence[int], label: Sequence[int] | None = None, size: int | None = None) -> dict[str, Tensor]:
    """The conditions for chains of given lengths.

    Args:
        residues: of each chain.
        label: fold class of each, for a student that has them.
        size: N, to which chains are padded; None means the longest of them.

    Returns:
        `mask` bool [n, N], and `label` int64 [n] if given.
    """
    size = max(residues) if size is None else size
    checks.whole(1, size, residues=list(residues))
    mask = torch.arange(size) < torch.tensor(list(residues))[:, None]
    return {"mask": mask} | ({} if label is None else {"label": torch.as_tensor(label, dtype=torch.long)})


class ChainFile(Chains):
    """Chains in one .npz file.

    Arrays; only the first two are required:

    - `coords`: [residues, 3] or [residues, atoms, 3] in ANGSTROM; of three or more atoms the second
      is C-alpha (N, CA, C, O).
    - `offsets`: [chains + 1], where each chain starts in `coords`.
    - `split`: [chains], train, val or test.
    - `globular`: [chains], bool, false for chains to be left out.

    A chain that is too long is cut into windows, all in the same part of the data. A chain with a
    gap (neighbours that are not 0.27 to 0.42 nm apart) is cut to its longest piece. Residues
    without known coordinates (see `known`) are missing.

    Args:
        path: the file.
        val, test: shares of the chains, in (0, 1), where the file does not say.
        seed: of the split.
    """

    def __init__(self, path: str, val: float = 0.1, test: float = 0.1, seed: int = 0):
        checks.shares(val=val, test=test)
        checks.seed(seed=seed)
        self.path, self.shares, self.seed = path, (val, test), seed

    def load(self, shortest: int, longest: int) -> tuple[Traces, Traces, Traces]:
        chains, names, named, said = self.read()
        pieces = [windows(longest_piece(chain), shortest, longest) for chain in chains]
        kept = [i for i, found in enumerate(pieces) if found]
        if short := list(dict.fromkeys(name for name, found in zip(names, pieces, strict=True) if not found)):
            said = {**said, f"chains shorter than {shortest} residues, left out": short}
        if said:
            facts = "; ".join(f"{what}: {listed(names)}" for what, names in said.items())
            warnings.warn(f"{self.path}: {facts}", stacklevel=2)
        if named is None:
            parts = self._parts([pieces[i] for i in kept], kept)
        else:
            parts = [
                [window for i in kept if named[i] == part for window in pieces[i]] for part in ("train", "val", "test")
            ]
        for name, part in zip(("train", "val", "test"), parts, strict=True):
            if not part:
                raise ValueError(
                    f"{self.path} has no chain of {shortest} residues or more to {name} on ({len(kept)} in all): "
                    f"give more chains or lower data.shortest"
                )
        return tuple(Traces([torch.from_numpy(window) for window in part]) for part in parts)

    def _parts(self, pieces: list[list[np.ndarray]], keys: list[int]) -> list[list[np.ndarray]]:
        val, test = (max(1, round(share * len(pieces))) for share in self.shares)
        order = sorted(range(len(pieces)), key=lambda i: hashlib.blake2b(f"{self.seed}/{keys[i]}".encode()).digest())
        parts = split([0] * len(pieces), min(val, len(pieces)), min(test, len(pieces)), order=order)
        return [[window for i in part.tolist() for window in pieces[i]] for part in parts]

    def read(self) -> tuple[list[np.ndarray], list[str], np.ndarray | None, Said]:
        """All chains in the file.

        Returns:
            The chains in nanometres, float32 [n, 3] each; their names; the part that each belongs
            to, if that is known; what was left out.
        """
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise ValueError(f"{self.path} is not a file of chains; give the path of one that exists")
        arrays = read_npz(path, ("coords", "offsets", "split", "globular"))
        if lacking := {"coords", "offsets"} - arrays.keys():
            raise ValueError(f"{path} must hold coords and offsets; it has no {' and no '.join(sorted(lacking))}")
        coords, offsets, named = arrays["coords"], arrays["offsets"], arrays.get("split")
        if coords.ndim == 3 and coords.shape[1]:
            coords = coords[:, 1] if coords.shape[1] >= 3 else coords[:, 0]
        if coords.ndim != 2 or coords.shape[-1] != 3 or coords.dtype.kind not in "fiu":
            raise ValueError(
                f"{path} must hold numbers in coords [residues, 3] or [residues, atoms, 3], got {coords.dtype} "
                f"{list(coords.shape)}"
            )
        coords = coords.astype(np.float64)
        whole = offsets.ndim == 1 and len(offsets) > 1 and offsets.dtype.kind in "iu"
        if not whole or offsets[0] != 0 or offsets[-1] != len(coords) or (offsets[1:] < offsets[:-1]).any():
            raise ValueError(f"{path} must hold whole offsets that rise from 0 to the {len(coords)} residues of coords")
        count = len(offsets) - 1
        keep = arrays.get("globular", np.ones(count, bool))
        if keep.shape != (count,) or keep.dtype != bool:
            raise ValueError(f"{path} must hold globular as {count} booleans, one for each chain")
        if named is not None and (named.shape != (count,) or not set(named.tolist()) <= {"train", "val", "test"}):
            raise ValueError(f"{path} must hold split as {count} times train, val or test, one for each chain")
        numbers = np.flatnonzero(keep).tolist()
        chains = [coords[offsets[i] : offsets[i + 1]] for i in numbers]
        there = [known(chain) for chain in chains]
        gaps = [f"chain {i}" for i, fine in zip(numbers, there, strict=True) if not fine.all()]
        said = {"residues without known coordinates, taken as missing": gaps} if gaps else {}
        chains = [(chain[fine] / 10).astype(np.float32) for chain, fine in zip(chains, there, strict=True)]
        return chains, [f"chain {i}" for i in numbers], None if named is None else named[keep], said


def known(chain: np.ndarray) -> np.ndarray:
    """Whether C-alpha positions [n, 3] of a chain, in angstrom, are real places, bool [n].

    Programs write unknown places as NaN, as 9999 and beyond, or as (0, 0, 0), which is taken as
    unknown where it has no bonded neighbour.
    """
    there = np.isfinite(chain).all(1)
    there[there] = (np.abs(chain[there]) < UNKNOWN).all(1)
    step = np.linalg.norm(np.diff(np.where(there[:, None], chain, 0), axis=0), axis=-1) / 10
    bonded = (step >= LOW) & (step <= HIGH) & there[1:] & there[:-1]
    near = np.append(bonded, False) | np.append(False, bonded)
    return there & (chain.any(1) | near[: len(chain)])


def longest_piece(chain: np.ndarray, low: float = LOW, high: float = HIGH) -> np.ndarray:
    """The longest stretch of a chain [n, 3] without a gap: neighbours `low` to `high` nm apart."""
    step = np.linalg.norm(np.diff(chain, axis=0), axis=-1)
    ends = [0, *(np.flatnonzero((step < low) | (step > high)) + 1).tolist(), len(chain)]
    start, end = max(zip(ends[:-1], ends[1:], strict=True), key=lambda piece: piece[1] - piece[0])
    return chain[start:end]


def windows(chain: np.ndarray, shortest: int, longest: int) -> list[np.ndarray]:
    """The chain if it fits, else its windows of `longest` residues, one after the other.

    No window is shorter than `shortest`.
    """
    parts = [chain[i : i + longest] for i in range(0, len(chain), longest)]
    return [part for part in parts if len(part) >= shortest]
