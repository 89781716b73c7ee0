"""The twenty kinds of residues and their atoms, and where RFD4-Proteina's vocabulary has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# the places of atoms, as models of the family of AlphaFold 2 number them
PLACES = (
    "N CA C CB O CG CG1 CG2 OG OG1 SG CD CD1 CD2 ND1 ND2 OD1 OD2 SD CE CE1 CE2 CE3 NE NE1 NE2 OE1 OE2 CH2 NH1 NH2 OH "
    "CZ CZ2 CZ3 NZ OXT"
)
ATOMS = PLACES.split()
BACKBONE = "N CA C O"
SIDES = {
    "ALA": "CB",
    "ARG": "CB CG CD NE CZ NH1 NH2",
    "ASN": "CB CG OD1 ND2",
    "ASP": "CB CG OD1 OD2",
    "CYS": "CB SG",
    "GLN": "CB CG CD OE1 NE2",
    "GLU": "CB CG CD OE1 OE2",
    "GLY": "",
    "HIS": "CB CG ND1 CD2 CE1 NE2",
    "ILE": "CB CG1 CG2 CD1",
    "LEU": "CB CG CD1 CD2",
    "LYS": "CB CG CD CE NZ",
    "MET": "CB CG SD CE",
    "PHE": "CB CG CD1 CD2 CE1 CE2 CZ",
    "PRO": "CB CG CD",
    "SER": "CB OG",
    "THR": "CB OG1 CG2",
    "TRP": "CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2",
    "TYR": "CB CG CD1 CD2 CE1 CE2 CZ OH",
    "VAL": "CB CG1 CG2",
}
KINDS = (*SIDES, "UNK")
UNKNOWN_KIND = len(SIDES)
PROTEIN = 0  # the type of a residue's token


def kinds_of(config: Mapping[str, Any]) -> list[int]:
    """For each class of an autoencoder's vocabulary, the number of its kind in `KINDS`.

    The configuration names no residues, but says which atoms each class has: these tell the twenty
    kinds apart. Classes that a protein's residue cannot have, and those with other atoms, are
    unknown.
    """
    places = {name: frozenset(f"{BACKBONE} {side}".split()) for name, side in SIDES.items()}
    numbers = {atoms: KINDS.index(name) for name, atoms in places.items()}
    return [
        numbers.get(
            frozenset(name for name, has in zip(ATOMS, row, strict=True) if has and name != "OXT"), UNKNOWN_KIND
        )
        if allowed
        else UNKNOWN_KIND
        for row, allowed in zip(config["atom37_mask"], config["allowed_residue_types"][PROTEIN], strict=True)
    ]
