"""Folders of structures, in the formats of the Protein Data Bank, as a source of chains."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np

from distillkit.files import write_atomic
from distillkit.sources import Source, drawn, listed
from domains.protein.data import ChainFile, Said
from domains.protein.structures import SUFFIXES, import_gemmi, read_structure

INDEX = ".distillkit-chains.npz"
FORMAT = 2  # of the index
Contents = tuple[list[np.ndarray], list[str], Said, dict[str, str]]  # chains, their files, what is said, files' faults


class StructureFolder(ChainFile):
    """Chains of all .pdb, .ent, .cif and .mmcif files in a folder and its sub-folders.

    Files may be gzipped. Needs gemmi. A file gives the chains of its first model, see
    `structures.read_structure`; a chain with missing residues gives its longest piece. What was
    left out or chosen is said by the files' names. Windows of one file all go to the same part of
    the data.

    What was read is kept in the folder (`.distillkit-chains.npz`), if it can be written, until a
    file changes.

    Args:
        path: the folder.
        val, test: shares of the files, in (0, 1).
        seed: of the split.
    """

    def read(self) -> tuple[list[np.ndarray], list[str], np.ndarray, Said]:
        source = Source(self.path, (*SUFFIXES, *(f"{suffix}.gz" for suffix in SUFFIXES)), "protein chain")
        facts = [(source.name(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
        key = hashlib.sha256(f"{FORMAT} {facts}".encode(errors="surrogateescape")).hexdigest()
        index = source.root / INDEX
        chains, homes, said, faults = _known(index, key) or self._read(source, index, key)
        source.without({source.root / name: reason for name, reason in faults.items()})
        parts = self._parts_of_files(sorted(set(homes)))
        return chains, homes, np.array([parts[home] for home in homes]), said

    def _read(self, source: Source, index: Path, key: str) -> Contents:
        import_gemmi()
        chains, homes, said, faults = [], [], {}, {}
        for path in source.files:
            name, facts = source.name(path), set()
            try:
                found = read_structure(path, facts)
            except ValueError as error:
                faults[name] = str(error)
                continue
            if not found:
                faults[name] = "it holds no protein chain"
            chains += found
            homes += [name] * len(found)
            for fact in sorted(facts):
                said.setdefault(fact, []).append(name)
        arrays = {
            "key": np.array(key),
            "coords": np.concatenate([*chains, np.zeros((0, 3), np.float32)]),
            "offsets": np.cumsum([0, *map(len, chains)]),
            "homes": np.array(homes, dtype=str),
            "said": np.array([(what, name) for what, names in said.items() for name in names], dtype=str).reshape(
                -1, 2
            ),
            "faults": np.array(list(faults.items()), dtype=str).reshape(-1, 2),
        }

        def write(file: Path) -> None:
            with file.open("wb") as handle:
                np.savez_compressed(handle, **arrays)

        with contextlib.suppress(OSError):  # a folder that is not ours to write to
            write_atomic(index, write)
        return chains, homes, said, faults

    def _parts_of_files(self, homes: list[str]) -> dict[str, str]:
        """Which part of the data each file goes to: at least one to each, by a hash of its name."""
        order = [homes[i] for i in drawn(homes, self.seed)]
        val, test = (max(1, round(share * len(homes))) for share in self.shares)
        if len(homes) - val - test < 1:
            raise ValueError(
                f"{self.path} has chains in {len(homes)} files, too few to train, validate and test on: {listed(homes)}"
            )
        return {home: "test" if i < test else "val" if i < test + val else "train" for i, home in enumerate(order)}


def _known(index: Path, key: str) -> Contents | None:
    """The contents of an index, or None where it is missing, damaged or of other files."""
    try:
        with np.load(index, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            chains = np.split(file["coords"], file["offsets"][1:-1]) if len(file["homes"]) else []
            said: Said = {}
            for what, name in file["said"].tolist():
                said.setdefault(what, []).append(name)
            return chains, file["homes"].tolist(), said, dict(file["faults"].tolist())
    except Exception:  # damaged in one of many ways: read the structures again
        return None
