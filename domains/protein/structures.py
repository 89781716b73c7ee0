"""Chains from the Protein Data Bank's formats, as experiments and programs write them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from distillkit.errors import one_line, optional
from domains.protein.data import HIGH, LOW, known, longest_piece

SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")  # each also with .gz behind it
# protonation states and bridges as force fields name them; gemmi knows modifications by the names
# of the PDB
OTHERS = """
    HSD HSE HSP HID HIE HIP HISD HISE HISH HISP HISA HISB HIS1 HIS2 HISN HIZ CYX CYM CYZ CYN CYS1 CYS2 CYSH CYSX
    ASH ASPH ASPP ASPN AS4 GLH GLUH GLUP GL4 LYN LYSH LYSN LSN ARN ARGN TYM TYRN SERN
"""
ALONE = 4  # residues of hetero atoms that a chain of nothing else must have: fewer are ligands


@dataclass
class Place:
    """A place in a chain, and the residues that may stand there.

    Attributes:
        number: of the residue.
        part: key that all residues of one chain share, as far as the file says.
        options: conformer, occupancy and C-alpha position [3] in angstrom, in the order of the
            file.
        hetero: whether it is given as hetero atoms.
    """

    number: int
    part: tuple[str, str]
    options: list[tuple[str, float, np.ndarray]]
    hetero: bool


def read_structure(path: Path, said: set[str] | None = None) -> list[np.ndarray]:
    """The chains of the first model of a file: C-alpha positions [n, 3], float32, nanometres.

    All observed residues are taken. A chain ends with its name, at TER, and where a residue that is
    not bonded to the one before has a smaller number or another segment. Residues are the 20 kinds,
    modified ones and other names for them included. Atoms count as missing at (0, 0, 0) without a
    bonded neighbour, from 9999 angstrom on, and at no number at all.

    In a run of places with several conformers, the conformer whose occupancies add up highest along
    that run is taken, the first of equal ones. A place that lacks it has its most occupied one.

    Args:
        path: the file.
        said: set to which what was left out or chosen is added.

    Raises:
        ValueError: it cannot be read, or holds no atoms.
    """
    said = set() if said is None else said
    structure = _parsed(path)
    if len(structure) == 0 or not any(len(residue) for chain in structure[0] for residue in chain):
        raise ValueError("it holds no atoms")
    if len(structure) > 1:
        said.add("several models, the first taken")
    traces = []
    for chain in structure[0]:
        places = list(_places(chain, said))
        positions = one_conformer([place.options for place in places])
        there = known(positions)
        if not there.all():
            said.add("residues without known coordinates, taken as missing")
        places, positions = [place for place, fine in zip(places, there, strict=True) if fine], positions[there]
        for start, end in _chains(places, positions):
            if end - start < ALONE and all(place.hetero for place in places[start:end]):
                continue
            trace = (positions[start:end] / 10).astype(np.float32)
            if len(longest_piece(trace)) < len(trace):
                said.add("chains with missing residues, the longest piece taken")
            traces.append(trace)
    return traces


def one_conformer(options: list[list[tuple[str, float, np.ndarray]]]) -> np.ndarray:
    """One position for each place, float64 [n, 3].

    Neighbours that have several options agree on the conformer.
    """
    found, run = [], []
    for option in [*options, []]:
        if len(option) > 1:
            run.append(option)
            continue
        total: dict[str, float] = {}
        for place in run:
            for conformer, occupancy, _ in place:
                total[conformer] = total.get(conformer, 0) + occupancy
        best = max(total, key=lambda conformer: round(total[conformer], 4), default="")
        found += [max(place, key=lambda one: (one[0] == best, one[1]))[2] for place in run]
        found += [place[2] for place in option]
        run = []
    return np.array(found, np.float64).reshape(-1, 3)


@cache
def is_residue(name: str) -> bool:
    """Whether a name is that of one of the 20 kinds of residues, modified or not."""
    kind = import_gemmi().find_tabulated_residue(name)
    plain = kind.kind == import_gemmi().ResidueKind.AA and kind.one_letter_code.upper() not in (" ", "X")
    ends = len(name) == 4 and name[0] in "NC" and is_residue(name[1:])  # of a chain, as Amber names them
    return plain or name in OTHERS.split() or ends


def format_of(path: Path) -> str | None:
    """`Pdb` or `Mmcif` by the file's name, gzipped or not; None for others."""
    name = path.name.lower().removesuffix(".gz")
    if path.name.startswith(".") or not name.endswith(SUFFIXES):
        return None
    return "Pdb" if name.endswith((".pdb", ".ent")) else "Mmcif"


def import_gemmi() -> Any:
    """The package `gemmi`, or an error that says how to get it."""
    return optional("gemmi", "protein", "structures are read with")


def _parsed(path: Path) -> Any:
    gemmi = import_gemmi()
    try:
        data = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
        if format_of(path) == "Pdb":
            return gemmi.read_pdb_string(data, split_chain_on_ter=True)
        return gemmi.make_structure_from_block(gemmi.cif.read_string(data)[0])
    except Exception as error:  # its parsers fail in several ways
        raise ValueError(f"cannot be read: {one_line(error, 100)}") from None


def _places(chain: Any, said: set[str]) -> Iterator[Place]:
    """The places of a chain that have a C-alpha atom, in order."""
    gemmi = import_gemmi()
    others = (gemmi.EntityType.NonPolymer, gemmi.EntityType.Branched, gemmi.EntityType.Water)
    found: dict[Any, Place] = {}
    for residue in chain:
        if residue.entity_type in others:
            continue
        ours = is_residue(residue.name)  # whose atoms cannot be calcium, however its name is aligned
        atoms = [atom for atom in residue if atom.name == "CA" and (ours or atom.element.name == "C")]
        if not ours or not atoms:
            if atoms or gemmi.find_tabulated_residue(residue.name).is_amino_acid():
                said.add("residues of other kinds or without C-alpha, left out")
            continue
        part = (residue.segment, residue.subchain)
        for copy, options in _copies(atoms).items():
            key = (copy, *part, residue.label_seq or str(residue.seqid))
            if key in found and _same_place(found[key].options, options):
                found[key].options += options
            else:
                key = (*key, len(found)) if key in found else key
                found[key] = Place(residue.seqid.num, part, options, residue.het_flag == "H")
    if any(len(place.options) > 1 for place in found.values()):
        said.add("residues at several places, the conformer taken that is more occupied along them")
    yield from (found[key] for key in sorted(found, key=lambda key: key[0]))


def _copies(atoms: list[Any]) -> dict[int, list[tuple[str, float, np.ndarray]]]:
    """The options that C-alpha atoms of one residue are, by the copy of the chain.

    gemmi puts copies of one numbering together.

    Without conformers' letters, atoms that are farther apart than bonded ones are of different
    copies.
    """
    found: dict[int, list[tuple[str, float, np.ndarray]]] = {}
    for i, atom in enumerate(atoms):
        place = np.array(atom.pos.tolist())
        letter = atom.altloc.strip("\0 ")
        far = not letter and i and np.linalg.norm(place - found[0][0][2]) >= 10 * LOW
        found.setdefault(i if far else 0, []).append((letter or f"#{i}", atom.occ, place))
    return found


def _same_place(one: list[tuple[str, float, np.ndarray]], other: list[tuple[str, float, np.ndarray]]) -> bool:
    """Whether residues of one number are alternatives.

    They are if they have conformers' letters, or are nearer than bonded ones.
    """
    lettered = all(not conformer.startswith("#") for conformer, _, _ in [*one, *other])
    return lettered or bool(np.linalg.norm(one[0][2] - other[0][2]) < 10 * LOW)


def _chains(places: list[Place], positions: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where chains start and end among the places."""
    if not places:
        return
    start = 0
    step = np.linalg.norm(np.diff(positions, axis=0), axis=-1) / 10
    for i, (before, after) in enumerate(zip(places[:-1], places[1:], strict=True)):
        if not LOW <= step[i] <= HIGH and (after.number < before.number or after.part != before.part):
            yield start, i + 1
            start = i + 1
    yield start, len(places)
