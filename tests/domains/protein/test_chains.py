"""Structures as people have them: parted by TER, with other names, unknown places, damage."""

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest

from distillkit.cli.front import main
from domains.protein.data import ChainFile, known, longest_piece
from domains.protein.structure_folder import StructureFolder
from domains.protein.structures import read_structure

gemmi = pytest.importorskip("gemmi")

OTHER_NAMES = "MSE SEP TPO PTR CSO HYP MLY KCX SEC HSD HSE HSP HID HIE HIP CYX CYM ASH GLH LYN"
BASE = np.stack([[2.3 * np.cos(t), 2.3 * np.sin(t), 0.9549 * t] for t in np.arange(200) * np.deg2rad(100)])  # a helix


def atom(x, number, residue="ALA", chain="A", alt=" ", occ=1.0, ins=" ", kind="ATOM", segment=""):
    place = x if isinstance(x, str) else f"{x[0]:8.3f}{x[1]:8.3f}{x[2]:8.3f}"
    return f"{kind:<6}{1:5d}  CA {alt}{residue:<3} {chain}{number:4d}{ins}   {place}{occ:6.2f}{0:6.2f}      {segment:<4}{'C':>2}"


def helix(num=40, first=1, start=0, **facts):
    return [atom(BASE[start + i], first + i, **facts) for i in range(num)]


def read(tmp_path, lines, name="a.pdb"):
    said = set()
    (tmp_path / name).write_text("\n".join([*lines, "END", ""]))
    return read_structure(tmp_path / name, said), said


def lengths(chains):
    return [len(chain) for chain in chains]


# ---- which residues are one chain


@pytest.mark.parametrize("chain", [" ", "A"])
@pytest.mark.parametrize("first", [1, 41, -5])
def test_ter_parts_chains(tmp_path, chain, first):
    """Chains without names, as in simulations, and copies of one name, as in assemblies."""
    far = [atom(x + [30, 0, 0], first + i, chain=chain) for i, x in enumerate(BASE[:35])]
    found, said = read(tmp_path, [*helix(40, chain=chain), "TER", *far, "TER"])
    assert lengths(found) == [40, 35] and not said
    assert np.abs(found[1] * 10 - BASE[:35] - [30, 0, 0]).max() < 1e-3


def test_chains_without_ter_are_parted_where_numbers_or_segments_begin_anew(tmp_path):
    for residue in ("ALA", "GLY"):
        far = [atom(x + [30, 0, 0], 1 + i, residue=residue) for i, x in enumerate(BASE[:35])]
        assert lengths(read(tmp_path, [*helix(40), *far])[0]) == [40, 35]
    far = [atom(x + [30, 0, 0], 41 + i, segment="PROB") for i, x in enumerate(BASE[:35])]
    assert lengths(read(tmp_path, [*helix(40, segment="PROA"), *far])[0]) == [40, 35]


def test_a_gap_does_not_part_a_chain(tmp_path):
    found, said = read(tmp_path, [*helix(20), *helix(15, first=26, start=25)])
    assert lengths(found) == [35] and said == {"chains with missing residues, the longest piece taken"}


def test_ligands_and_water_behind_ter_are_no_chains(tmp_path):
    ligands = [atom(BASE[90], 200, "GLY", kind="HETATM"), atom(BASE[95], 201, "HOH", kind="HETATM")]
    assert lengths(read(tmp_path, [*helix(), "TER", *ligands])[0]) == [40]


def test_insertions_and_numbers_below_zero(tmp_path):
    lines = helix(10, first=-4)
    lines += [atom(BASE[10 + i], 5, ins=letter) for i, letter in enumerate("ABC")] + helix(20, first=6, start=13)
    found, said = read(tmp_path, lines)
    assert np.abs(found[0] * 10 - BASE[:33]).max() < 1e-3 and not said


def test_mmcif_and_pdb_give_the_same(tmp_path):
    lines = [*helix(40), "TER", *helix(33, chain="B", start=100), "TER"]
    expected, _ = read(tmp_path, lines)
    document = gemmi.read_pdb_string("\n".join(lines))
    document.setup_entities()
    document.make_mmcif_document().write_file(str(tmp_path / "b.cif"))
    found = read_structure(tmp_path / "b.cif")
    assert lengths(found) == [40, 33] and all(np.abs(a - b).max() < 1e-4 for a, b in zip(found, expected, strict=True))


def test_mmcif_with_labels_alone(tmp_path):
    """As programs write that know neither authors' names nor entities."""
    columns = "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_seq_id"
    columns += " Cartn_x Cartn_y Cartn_z"
    rows = [
        f"ATOM {i} C CA . ALA {c} {i + 1} {x[0]:.3f} {x[1]:.3f} {x[2]:.3f}"
        for c in "AB"
        for i, x in enumerate(BASE[:34])
    ]
    rows[5] = rows[5].rsplit(" ", 3)[0] + " ? ? ?"
    head = ["data_x", "loop_", *(f"_atom_site.{name}" for name in columns.split())]
    (tmp_path / "a.cif").write_text("\n".join([*head, *rows, ""]))
    said = set()
    assert lengths(read_structure(tmp_path / "a.cif", said)) == [33, 34]
    assert "residues without known coordinates, taken as missing" in said


# ---- what is a residue


@pytest.mark.parametrize("name", OTHER_NAMES.split())
def test_residues_under_other_names(tmp_path, name):
    lines = helix()
    lines[10] = atom(BASE[10], 11, name, kind="HETATM")
    found, said = read(tmp_path, lines)
    assert lengths(found) == [40] and not said


@pytest.mark.parametrize("name", ["UNK", "DAL", "HEM", "CA"])
def test_other_kinds_are_missing(tmp_path, name):
    lines = helix()
    lines[10] = atom(BASE[10], 11, name)
    found, said = read(tmp_path, lines)
    assert lengths(found) == [39] and "residues of other kinds or without C-alpha, left out" in said


def test_names_of_atoms_may_stand_to_the_left(tmp_path):
    """Where elements are not said, ` CA ` is carbon and `CA  ` calcium; residues hold none."""
    assert lengths(read(tmp_path, [line.replace("  CA ", " CA  ")[:66] for line in helix()])[0]) == [40]


# ---- where they are


@pytest.mark.parametrize(
    "place",
    [
        "9999.0009999.0009999.000",
        "9999.9999999.9999999.999",
        "   0.000   0.000   0.000",
        "     nan     nan     nan",
        " " * 24,
    ],
)
def test_unknown_coordinates_are_missing(tmp_path, place):
    lines = helix()
    lines[10] = atom(place, 11)
    lines[11] = atom(place, 12)
    found, said = read(tmp_path, lines)
    assert lengths(found) == [38] and lengths([longest_piece(found[0])]) == [28]
    assert "residues without known coordinates, taken as missing" in said


def test_an_atom_at_the_origin_that_is_bonded_is_known():
    assert known(BASE[:20] - BASE[7]).all() and known(BASE[:20] - BASE[0]).all()
    far = BASE[:20] + 50
    far[7] = 0
    assert known(far).tolist() == [i != 7 for i in range(20)]
    far[8] = 0
    assert not known(far)[7:9].any()


@pytest.mark.parametrize("order", [("SER", "THR"), ("THR", "SER")])
@pytest.mark.parametrize("letters", ["AB", "  "])
def test_of_two_residues_at_one_place_the_more_occupied_one_is_taken(tmp_path, order, letters):
    lines = helix()
    places = {"SER": (BASE[10] + [2.5, 0, 0], 0.3), "THR": (BASE[10], 0.7)}
    lines[10:11] = [
        atom(places[name][0], 11, name, alt=alt, occ=places[name][1]) for name, alt in zip(order, letters, strict=True)
    ]
    found, said = read(tmp_path, lines)
    assert np.abs(found[0] * 10 - BASE[:40]).max() < 1e-3
    assert said == {"residues at several places, the conformer taken that is more occupied along them"}


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("better", "AB")
def test_one_conformer_all_along(tmp_path, better, blocks):
    """Two conformers with alternating occupancies, one ahead in the sum; two orders of atoms."""
    shift = {"A": np.array([2.0, 0, 0]), "B": np.array([-2.0, 0, 0])}

    def flipped(i, letter):
        occupancy = 0.51 if (i % 2 == 0) == (letter == "A") else 0.49
        return atom(BASE[i] + shift[letter], i + 1, alt=letter, occ=occupancy + 0.01 * (letter == better))

    places = range(10, 16)
    if blocks:
        middle = [flipped(i, letter) for letter in "AB" for i in places]
    else:
        middle = [flipped(i, letter) for i in places for letter in "AB"]
    found, _ = read(tmp_path, [*helix(10), *middle, *helix(20, first=17, start=16)])
    expected = BASE[:36].copy()
    expected[10:16] += shift[better]
    assert lengths(found) == [36] and np.abs(found[0] * 10 - expected).max() < 1e-3


def test_runs_of_conformers_are_judged_one_by_one(tmp_path):
    lines = helix()
    for i, ahead in ((30, 0.6), (10, 0.3)):  # of the first run B, of the second A
        lines[i : i + 1] = [
            atom(BASE[i] + (0 if (ahead > 0.5) == (letter == "A") else 1), i + 1, alt=letter, occ=occ)
            for letter, occ in (("A", ahead), ("B", 1 - ahead))
        ]
    assert np.abs(read(tmp_path, lines)[0][0] * 10 - BASE[:40]).max() < 1e-3


# ---- folders and files


def put(folder, num=4):
    for i in range(num):
        (folder / f"ok{i}.pdb").write_text("\n".join([*helix(36 + i), "END", ""]))


def test_what_cannot_be_used_is_named_with_its_reason(tmp_path):
    put(tmp_path)
    (tmp_path / "cut.pdb.gz").write_bytes(gzip.compress("\n".join(helix()).encode())[:200])
    (tmp_path / "page.pdb").write_text("<html>404 not found</html>")
    (tmp_path / "words.cif").write_text("garbage")
    (tmp_path / "empty.ent").write_text("")
    (tmp_path / "water.pdb").write_text(atom(BASE[0], 1, "HOH", kind="HETATM") + "\n")
    (tmp_path / "short.PDB").write_text("\n".join(helix(12)))
    (tmp_path / "gap.pdb").write_text("\n".join([*helix(35), *helix(5, first=46, start=45)]))
    (tmp_path / "notes.txt").write_text("what these are")
    (tmp_path / "._ok1.pdb").write_text("debris")
    source = StructureFolder(str(tmp_path))
    for _ in range(2):  # the second time from the index
        with pytest.warns(UserWarning) as said:
            parts = source.load(32, 64)
        text = " ".join(str(warning.message) for warning in said)
        assert sum(len(part.positions) for part in parts) == 5
        for named in (
            "cut.pdb.gz (cannot be read: Compressed file ended",
            "page.pdb (it holds no atoms)",
            "words.cif (cannot be read: ",
            "empty.ent (it holds no atoms)",
            "water.pdb (it holds no protein chain)",
            "longest piece taken: gap.pdb",
            "shorter than 32 residues, left out: short.PDB",
            "1 .txt (notes.txt)",
        ):
            assert named in text, named
        assert "._ok1" not in text


def test_a_folder_without_a_chain_says_why(tmp_path):
    (tmp_path / "page.pdb").write_text("<html>404 not found</html>")
    with pytest.raises(ValueError, match=r"holds no protein chain.*page.pdb \(it holds no atoms\)"):
        StructureFolder(str(tmp_path)).load(32, 64)


def chain_file(path: Path, chains, **arrays) -> Path:
    np.savez(path, coords=np.concatenate(chains), offsets=np.cumsum([0, *map(len, chains)]), **arrays)
    return path


def test_a_file_of_chains_with_unknown_coordinates(tmp_path):
    chains = [BASE[:40].copy() for _ in range(4)]
    chains[1][3], chains[2][4], chains[3] = np.nan, 9999, BASE[:8]
    with pytest.warns(UserWarning, match="known coordinates.*: chain 1, chain 2; chains shorter than 32.*: chain 3"):
        parts = ChainFile(str(chain_file(tmp_path / "a.npz", chains))).load(32, 64)
    assert sorted(len(x) for part in parts for x in part.positions) == [35, 36, 40]


@pytest.mark.parametrize("kind", ["cut", "words", "empty", "array", "pickle"])
def test_a_file_of_chains_that_is_damaged_is_refused_by_name(tmp_path, kind):
    path = chain_file(tmp_path / "a.npz", [BASE[:40]] * 4)
    whole = path.read_bytes()
    if kind == "array":
        np.save(tmp_path / "b.npy", BASE)
        path.write_bytes((tmp_path / "b.npy").read_bytes())
    elif kind == "pickle":
        np.savez(path, coords=np.array([{}], object), offsets=[0, 1])
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "words": b"garbage", "empty": b""}[kind])
    with pytest.raises(ValueError, match=r"a\.npz cannot be read as an \.npz file"):
        ChainFile(str(path)).load(32, 64)


def test_a_whole_folder_says_nothing(tmp_path):
    put(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StructureFolder(str(tmp_path)).load(32, 64)


@pytest.mark.slow
def test_a_folder_from_the_command_line(tmp_path, capsys):
    put(tmp_path, 8)
    (tmp_path / "page.pdb").write_text("<html>404 not found</html>")
    words = ["fit", "domain=protein", "method=pretrain", "data=structure_folder", f"data.chains.path={tmp_path}"]
    words += [
        "data.batch_size=2",
        "vars.callbacks.finish.num_samples=0",
        "--trainer.max_steps=2",
        "--out",
        f"{tmp_path}/run",
    ]
    assert main(words) == 0
    assert "warning: " in (said := capsys.readouterr().err) and "page.pdb" in said
