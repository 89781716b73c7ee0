"""Folders of structures from the Protein Data Bank and others of its formats as a source of chains."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from distillkit.errors import optional
from distillkit.files import write_atomic
from domains.protein.data import ChainFile, longest_piece

SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")  # each also with .gz behind it
INDEX = ".distillkit-chains.npz"
FORMAT = 1  # of the index
STANDARD = "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL"
RESIDUES = {*STANDARD.split(" "), "MSE"}  # MSE is methionine with selenium, put in for crystallography


class StructureFolder(ChainFile):
    """Chains of all .pdb, .ent and .cif files in a folder and its sub-folders, also gzipped. Needs gemmi.

    Of each file the first model, of each residue the C-alpha atom's most occupied place; residues of the 20 kinds and
    selenomethionine. A chain ends where one follows that is not bonded to it (missing residues): the longest piece is
    taken. What was left out or cut is said in one warning. Windows of one file all go to the same part of the data.

    What was read is kept in the folder (`.distillkit-chains.npz`), if that can be written, until a file changes.

    Args:
        path: the folder.
        val, test: shares of the files, in (0, 1).
        seed: of the split.
    """

    def read(self) -> tuple[list[np.ndarray], np.ndarray, dict[str, int]]:
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise ValueError(f"{self.path} is not a folder of structures; give the path of one that exists")
        paths = [path for path in sorted(root.rglob("*")) if path.is_file() and format_of(path)]
        if not paths:
            raise ValueError(f"{root} holds no structures: give a folder with {', '.join(SUFFIXES)} files")
        facts = [(path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        key = hashlib.sha256(f"{FORMAT} {facts}".encode()).hexdigest()
        chains, homes, said = _known(root / INDEX, key) or self._index(root, paths, key)
        if not chains:
            raise ValueError(f"{root} holds no protein chain in its {len(paths)} files ({said})")
        parts = self._parts_of_files(sorted(set(homes)))
        return chains, np.array([parts[home] for home in homes]), said

    def _index(self, root: Path, paths: list[Path], key: str) -> tuple[list[np.ndarray], list[str], dict[str, int]]:
        chains, homes, said = [], [], Counter()
        for path in paths:
            try:
                found = read_structure(path, said)
            except ValueError:
                said["files could not be read"] += 1
                continue
            chains += found
            homes += [path.relative_to(root).as_posix()] * len(found)
        arrays = {
            "key": np.array(key),
            "coords": np.concatenate([*chains, np.zeros((0, 3), np.float32)]),
            "offsets": np.cumsum([0, *map(len, chains)]),
            "homes": np.array(homes, dtype=str),
            "said": np.array(list(said), dtype=str),
            "counts": np.array(list(said.values()), dtype=np.int64),
        }

        def write(file: Path) -> None:
            with file.open("wb") as handle:
                np.savez_compressed(handle, **arrays)

        with contextlib.suppress(OSError):  # a folder that is not ours to write to
            write_atomic(root / INDEX, write)
        return chains, homes, dict(said)

    def _parts_of_files(self, homes: list[str]) -> dict[str, str]:
        """Which part of the data each file goes to: at least one to each, by a hash of its name."""
        order = sorted(homes, key=lambda home: hashlib.blake2b(f"{self.seed}/{home}".encode()).digest())
        val, test = (max(1, round(share * len(homes))) for share in self.shares)
        if len(homes) - val - test < 1:
            raise ValueError(f"{self.path} has chains in {len(homes)} files, too few to train, validate and test on")
        return {home: "test" if i < test else "val" if i < test + val else "train" for i, home in enumerate(order)}


def read_structure(path: Path, said: Counter[str] | None = None) -> list[np.ndarray]:
    """The chains of the first model of a file: C-alpha positions [n, 3], float32, nanometres, all that were observed.

    Args:
        path: the file.
        said: counts of what was left out or chosen, which is added to.

    Raises:
        ValueError: it cannot be read.
    """
    gemmi, said = import_gemmi(), Counter() if said is None else said
    try:
        structure = gemmi.read_structure(str(path), format=getattr(gemmi.CoorFormat, format_of(path)))
        structure.setup_entities()
    except Exception as error:  # its parsers fail in several ways
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:100]})"
        ) from None
    said["files of several models, the first taken"] += len(structure) > 1
    chains = []
    for chain in structure[0] if len(structure) else ():
        places, last = [], None
        for residue in chain.get_polymer():
            atoms = [atom for atom in residue if atom.name == "CA" and atom.element.name == "C"]
            if residue.name not in RESIDUES or not atoms:
                kind = gemmi.find_tabulated_residue(residue.name)
                said["residues of other kinds or without C-alpha, left out"] += bool(atoms) or kind.is_amino_acid()
                continue
            if residue.seqid == last:  # another residue in the same place: the first one was taken
                continue
            last = residue.seqid
            said["residues at several places, the most occupied taken"] += len(atoms) > 1
            best = max(atoms, key=lambda atom: atom.occ).pos
            places.append([best.x, best.y, best.z])
        if not places:
            continue
        trace = np.array(places, np.float32) / 10
        said["chains with missing residues, the longest piece taken"] += len(longest_piece(trace)) < len(trace)
        chains.append(trace)
    for what in [what for what, count in said.items() if not count]:
        del said[what]
    return chains


def format_of(path: Path) -> str | None:
    """`Pdb` or `Mmcif` by the file's name, gzipped or not; None for others."""
    name = path.name.lower().removesuffix(".gz")
    if path.name.startswith(".") or not name.endswith(SUFFIXES):
        return None
    return "Pdb" if name.endswith((".pdb", ".ent")) else "Mmcif"


def import_gemmi() -> Any:
    """`gemmi`, or how to get it."""
    return optional("gemmi", "protein", "structures are read with")


def _known(index: Path, key: str) -> tuple[list[np.ndarray], list[str], dict[str, int]] | None:
    """What an index holds, unless it is missing, damaged or of other files."""
    try:
        with np.load(index, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            chains = np.split(file["coords"], file["offsets"][1:-1])
            said = dict(zip(file["said"].tolist(), file["counts"].tolist(), strict=True))
            return chains, file["homes"].tolist(), said
    except Exception:  # damaged in one of many ways: read the structures again
        return None
