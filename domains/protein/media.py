"""Pictures of backbones, and files of them that molecular viewers read.

n: chains; N: residues of the longest one; S: pixels along a side.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from distillkit.evaluation.pictures import labelled
from distillkit.files import write_text
from distillkit.report.viewer import Item, page

CELL = 96  # pixels along each side of a chain's picture, and of its map of distances
SUPER = 3  # pixels drawn for each shown, along each side
REACH = 3.4  # nm that a picture spans at least
FAR = 2.5  # nm, the distance that is black in a map
BACKGROUND = (255, 255, 255)
BEADS, BEAD = 8, 0.09  # on the page to turn them on: spheres along a bond, and their radius in nm


def traces(samples: Tensor, cond: dict[str, Tensor] | None = None) -> list[np.ndarray]:
    """The chains without their padding, float64 [n, 3] each, nanometres.

    Without a mask all residues are one chain's.
    """
    x = samples.detach().double().cpu().nan_to_num(0.0, 0.0, 0.0).numpy()  # a diverging model is shown, as nothing
    mask = cond["mask"].cpu().numpy() if cond and "mask" in cond else np.ones(x.shape[:2], bool)
    return [chain[own] for chain, own in zip(x, mask, strict=True)]


def picture(samples: Tensor, cond: dict[str, Tensor] | None = None, columns: int = 8) -> Image.Image:
    """The trace of every sample, and under it the distances of all pairs.

    A trace is blue where the chain starts and red where it ends.
    """
    if len(samples) == 0:
        raise ValueError("a picture needs at least one sample")
    cells = [np.concatenate([draw(chain), distance_map(chain)]) for chain in traces(samples, cond)]
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * CELL, rows * 2 * CELL), BACKGROUND)
    for i, cell in enumerate(cells):
        sheet.paste(Image.fromarray(cell), (i % columns * CELL, i // columns * 2 * CELL))
    return sheet


def compare(rows: dict[str, Tensor], cond: dict[str, Tensor] | None = None, columns: int = 10) -> Image.Image:
    """One labelled row for each set of samples, such as teacher and student from the same noise.

    Shows the first `columns` samples of each.
    """
    first = {name: value[:columns] for name, value in (cond or {}).items()}
    return labelled({name: picture(samples[:columns], first, columns) for name, samples in rows.items()})


def draw(chain: np.ndarray, size: int = CELL) -> np.ndarray:
    """A trace [n, 3] seen along its thinnest direction, from the front, uint8 [S, S, 3]."""
    x = chain - chain.mean(0)
    axes = np.linalg.svd(x, full_matrices=False)[2] if len(x) >= 3 else np.eye(3)
    axes[2] *= np.sign(np.linalg.det(axes)) or 1  # a turned view, never a mirror image
    right, up, front = axes @ x.T
    scale = size * SUPER / max(REACH, 1.05 * 2 * np.abs([right, up]).max())
    points = np.stack([size * SUPER / 2 + scale * right, size * SUPER / 2 - scale * up], -1)
    colours = along(len(x)).astype(int)
    image = Image.new("RGB", (size * SUPER,) * 2, BACKGROUND)
    pen = ImageDraw.Draw(image)
    for i in np.argsort(front[:-1] + front[1:]):
        ends = [tuple(points[i]), tuple(points[i + 1])]
        pen.line(ends, (255, 255, 255), 6 * SUPER)  # what is in front is set apart from what is behind
        pen.line(ends, tuple(colours[i]), 3 * SUPER)
        for x, y in ends:
            pen.ellipse([x - 1.5 * SUPER, y - 1.5 * SUPER, x + 1.5 * SUPER, y + 1.5 * SUPER], tuple(colours[i]))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def along(num: int) -> np.ndarray:
    """Colours uint8 [num, 3] from blue to red."""
    return (matplotlib.colormaps["turbo"](np.linspace(0.08, 0.92, num))[:, :3] * 255).round().astype(np.uint8)


def distance_map(chain: np.ndarray, size: int = CELL) -> np.ndarray:
    """Distances of all pairs of residues, near is bright, uint8 [S, S, 3] with a white margin."""
    apart = np.linalg.norm(chain[:, None] - chain[None], axis=-1)
    shown = matplotlib.colormaps["magma"](1 - (apart / FAR).clip(0, 1))[..., :3]
    inner = Image.fromarray((shown * 255).round().astype(np.uint8)).resize((size - 16,) * 2, Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (size, size), BACKGROUND)
    sheet.paste(inner, (8, 4))
    return np.asarray(sheet)


def save(samples: Tensor, cond: dict[str, Tensor] | None, folder: str | Path) -> list[Path]:
    """A .pdb and a .cif file (mmCIF) for every sample, and the page backbones.html.

    All samples can be turned on the page. The positions of a diverged model can be too large for a
    .pdb file; then there is the .cif file alone.
    """
    chains = traces(samples, cond)
    note = "C-alpha traces, blue where a chain starts and red where it ends."
    items = [beads(chain, f"chain {i}, {len(chain)} residues") for i, chain in enumerate(chains) if len(chain)]
    paths = [write_text(Path(folder) / "backbones.html", page(items, "Protein backbones", note))]
    for i, chain in enumerate(chains):
        stem = Path(folder) / f"backbone_{i}"
        if fits_pdb(chain):
            paths.append(write_text(stem.with_suffix(".pdb"), pdb(chain)))
        paths.append(write_text(stem.with_suffix(".cif"), mmcif(chain, stem.name)))
    return paths


def beads(chain: np.ndarray, caption: str) -> Item:
    """A trace [n, 3], moved to the origin, as spheres so close that they make a tube."""
    last = len(chain) - 1
    places = np.linspace(0, last, BEADS * last + 1)
    tube = np.stack([np.interp(places, np.arange(last + 1), axis) for axis in (chain - chain.mean(0)).T], -1)
    return Item(caption, tube, along(len(tube)), radius=BEAD)


def fits_pdb(chain: np.ndarray) -> bool:
    """Whether the columns of a PDB file are wide enough for a trace [n, 3] in nanometres."""
    return len(chain) <= 9999 and bool((np.abs(chain) < 99.9).all())


def pdb(chain: np.ndarray) -> str:
    """A trace [n, 3] in nanometres as a PDB file (format 3.3).

    It has C-alpha atoms of alanines of chain A, in angstrom.

    Raises:
        ValueError: a position does not fit the columns (999.999 angstrom and more), or there are
            more than 9,999 residues.
    """
    if not fits_pdb(chain):
        raise ValueError("a PDB file holds up to 9,999 residues within 99.9 nm of the origin: write mmCIF instead")
    lines = [
        f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}{1:6.2f}{0:6.2f}          {'C':>2}  "
        for i, (x, y, z) in enumerate(10 * chain, start=1)
    ]
    last = f"TER   {len(chain) + 1:5d}      ALA A{len(chain):4d}"
    return "\n".join([*lines, f"{last:<80}", f"{'END':<80}"]) + "\n"


def mmcif(chain: np.ndarray, name: str = "backbone") -> str:
    """A trace [n, 3] in nanometres as mmCIF: C-alpha atoms of alanines, chain A, angstrom."""
    columns = (
        "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id "
    )
    columns += (
        "pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_asym_id pdbx_PDB_model_num"
    )
    head = [f"data_{name}", "#", "_entry.id " + name, "#", "loop_", *(f"_atom_site.{key}" for key in columns.split())]
    rows = [
        f"ATOM {i} C CA . ALA A 1 {i} ? {x:.3f} {y:.3f} {z:.3f} 1.00 0.00 {i} A 1"
        for i, (x, y, z) in enumerate(10 * chain, start=1)
    ]
    return "\n".join([*head, *rows, "#"]) + "\n"
