"""Pictures of designed structures, and files with all their atoms.

N: tokens of the largest design.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from distillkit.files import write_text
from distillkit.report.viewer import page
from domains.protein import media
from domains.protein.pipelines.codec import CA
from domains.protein.pipelines.residues import ATOMS, KINDS, UNKNOWN_KIND
from domains.protein.structures import import_gemmi

NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of chains
FAR = 99.9  # nm, from where on positions do not fit a .pdb file


def picture(samples: Tensor, cond: dict[str, Tensor], columns: int = 8) -> Image.Image:
    """The C-alpha traces of structures [n, N, 37, 5], see `domains.protein.media.picture`."""
    return media.picture(samples[..., CA, :3], cond, columns)


def compare(rows: dict[str, Tensor], cond: dict[str, Tensor], columns: int = 10) -> Image.Image:
    """One labelled row for each set of samples."""
    return media.compare({name: samples[..., CA, :3] for name, samples in rows.items()}, cond, columns)


def save(samples: Tensor, cond: dict[str, Tensor], folder: str | Path) -> list[Path]:
    """A .pdb and a .cif file (mmCIF) with all atoms of every design, and a page of the traces.

    What was given (a target, a ligand) is not in them. Each molecule is a chain. A residue of
    another kind than the twenty has its C-alpha atom alone. Where positions or residues are too
    many or too large for a .pdb file there is the .cif file alone.
    """
    chains = media.traces(samples[..., CA, :3], cond)
    note = "C-alpha traces, blue where a chain starts and red where it ends."
    items = [media.beads(chain, f"design {i}, {len(chain)} residues") for i, chain in enumerate(chains)]
    paths = [write_text(Path(folder) / "designs.html", page(items, "Designs", note))]
    atoms, mask, molecule = (
        value.detach().cpu().numpy() for value in (samples.double().nan_to_num(0.0), cond["mask"], cond["molecule_iid"])
    )
    for i, own in enumerate(mask):
        here = atoms[i][own]
        made = structure(here, molecule[i][own], f"design_{i}")
        stem = Path(folder) / made.name
        if media.fits_pdb(chains[i]) and np.abs(here[..., :3]).max() < FAR and len(made[0]) <= len(NAMES):
            paths.append(write_text(stem.with_suffix(".pdb"), made.make_pdb_string()))
        paths.append(write_text(stem.with_suffix(".cif"), made.make_mmcif_document().as_string()))
    return paths


def structure(atoms: np.ndarray, molecule: np.ndarray, name: str) -> Any:
    """A structure of gemmi, from one design.

    Args:
        atoms: of its residues, [residues, 37, 5].
        molecule: the molecule that each belongs to, [residues].
        name: of the structure.
    """
    gemmi = import_gemmi()
    made, model = gemmi.Structure(), gemmi.Model(1)
    made.name = name
    for k, number in enumerate(dict.fromkeys(molecule.tolist())):
        chain = gemmi.Chain(NAMES[k % len(NAMES)] * (k // len(NAMES) + 1))
        for i, own in enumerate(atoms[molecule == number], start=1):
            chain.add_residue(_residue(gemmi, own, i))
        model.add_chain(chain)
    made.add_model(model)
    made.setup_entities()
    return made


def _residue(gemmi: Any, atoms: np.ndarray, number: int) -> Any:
    kind, residue = int(atoms[CA, 4]), gemmi.Residue()
    residue.name, residue.seqid, residue.entity_type = KINDS[kind], gemmi.SeqId(str(number)), gemmi.EntityType.Polymer
    for place in [CA] if kind == UNKNOWN_KIND else np.flatnonzero(atoms[:, 3] > 0.5):
        atom = gemmi.Atom()
        atom.name, atom.element = ATOMS[place], gemmi.Element(ATOMS[place][0])
        atom.pos = gemmi.Position(*(10 * atoms[place, :3]))
        residue.add_atom(atom)
    return residue
