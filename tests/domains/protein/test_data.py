"""C-alpha traces: geometry against closed forms and other tools, ideal folds, real chains."""

import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from distillkit.data import StepLoader, alike
from domains.protein import geometry
from domains.protein.data import ChainFile, ProteinData, Traces, batch, lengths, longest_piece, windows
from domains.protein.folds import IdealFolds, folds
from domains.protein.structure_folder import INDEX, StructureFolder
from domains.protein.structures import format_of, read_structure

STORE = Path(os.environ.get("DISTILLKIT_DATA", "none")) / "protein"  # a folder of real data sets, if there is one
real = pytest.mark.skipif(not STORE.is_dir(), reason="the real chains are not here")


def straight(theta: float, tau: float, num: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    """One chain with the same angle and dihedral everywhere, and its mask."""
    full = torch.full((1, num), 1.0, dtype=torch.float64)
    x = geometry.extended_chain(theta * full, tau * full, geometry.BOND * full[:, 1:])
    return x, torch.ones(1, num, dtype=torch.bool)


def data(**kwargs) -> ProteinData:
    made = ProteinData(IdealFolds(train=48, val=6, test=6), batch_size=4, **kwargs)
    made.setup()
    return made


@pytest.mark.parametrize(("theta", "tau"), [(91.0, 50.0), (124.0, -170.0), (100.0, 179.0), (110.0, -60.0)])
def test_internal_coordinates_go_there_and_back(theta, tau):
    x, mask = straight(theta, tau)
    assert torch.allclose(geometry.bonds(x, mask), torch.full((1, 13), 0.38, dtype=torch.float64))
    assert torch.allclose(geometry.angles(x, mask), torch.full((1, 12), theta, dtype=torch.float64))
    assert torch.allclose(geometry.dihedrals(x, mask), torch.full((1, 11), tau, dtype=torch.float64), atol=1e-6)


def test_a_helix_is_right_handed_and_its_mirror_image_is_none():
    x, mask = straight(91.0, 50.0)
    rise = (x[0, 11] - x[0, 1]).norm() / 10
    assert abs(float(rise) - 0.15) < 0.01  # nm a residue, as in every textbook
    sse = geometry.secondary_structure(x, mask)
    assert (sse[0, 1:-2] == geometry.HELIX).all()
    mirrored = geometry.secondary_structure(x * torch.tensor([-1.0, 1, 1]), mask)
    # its distances are those of a helix all the same: P-SEA sees that far and no farther, dihedrals
    # see the rest
    assert torch.allclose(geometry.dihedrals(-x, mask), -geometry.dihedrals(x, mask))
    assert (mirrored == geometry.STRAND).sum() == 0


def test_a_strand_is_a_strand_and_a_coil_neither():
    assert (geometry.secondary_structure(*straight(124.0, -170.0))[0, 1:-3] == geometry.STRAND).all()
    assert (geometry.secondary_structure(*straight(110.0, -60.0)) == geometry.COIL).all()


def test_padding_is_seen_by_nothing():
    x, mask = straight(91.0, 50.0)
    longer = torch.cat([x, torch.full((1, 5, 3), 7.0, dtype=torch.float64)], 1)
    seen = torch.cat([mask, torch.zeros(1, 5, dtype=torch.bool)], 1)
    for measure in (geometry.secondary_structure, geometry.bonds, geometry.angles, geometry.dihedrals):
        alone, padded = measure(x, mask), measure(longer, seen)
        assert torch.allclose(padded[:, : alone.shape[1]].double(), alone.double(), equal_nan=True)
        rest = padded[:, alone.shape[1] :].double()
        assert ((rest == 0) | rest.isnan()).all()
    assert torch.allclose(geometry.gyration(longer, seen), geometry.gyration(x, mask))
    assert (geometry.centred(longer, seen)[~seen] == 0).all()
    assert geometry.centred(longer, seen).sum(1).abs().max() < 1e-9


def test_superposition_undoes_a_rotation_but_no_reflection():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 20, 3, generator=g).double()
    turn = geometry.rotations(3, g).double()
    assert torch.allclose(turn @ turn.mT, torch.eye(3).double(), atol=1e-6) and torch.allclose(
        torch.linalg.det(turn), torch.ones(3).double()
    )
    y, weight = x @ turn + 2.0, torch.ones(3, 20).double()
    assert (geometry.superposed(x, y, weight) - y).abs().max() < 1e-6
    mask = torch.ones(3, 20, dtype=torch.bool)
    assert torch.allclose(geometry.gapless_tm(x, y, mask, mask), torch.ones(3).double())
    assert (geometry.gapless_tm(x, -y, mask, mask) < 0.6).all()


def test_tm_score_of_known_displacements():
    """Half of the residues in place, half far away: TM is one half, however long the chain."""
    x = torch.randn(1, 60, 3, generator=torch.Generator().manual_seed(1)).double()
    y = x.clone()
    y[:, 30:] += torch.tensor([300.0, 0, 0])
    mask = torch.ones(1, 60, dtype=torch.bool)
    assert abs(float(geometry.gapless_tm(x, y, mask, mask)) - 0.5) < 1e-3
    longer = torch.cat([x, torch.randn(1, 60, 3).double()], 1)
    both = torch.ones(1, 120, dtype=torch.bool)
    padded, own = torch.cat([x, torch.zeros(1, 60, 3)], 1), torch.cat([mask, ~mask], 1)
    assert abs(float(geometry.gapless_tm(padded, longer, own, both)) - 0.5) < 1e-6  # over the longer one's length


# ---- ideal folds


def test_ideal_folds_are_physical():
    made = folds(60, 32, 64, torch.Generator().manual_seed(0))
    b = batch(made, 64)
    x, mask = b["data"], b["mask"]
    bond, angle = geometry.bonds(x, mask), geometry.angles(x, mask)
    assert (bond[bond.isfinite()] - 0.38).abs().max() < 0.02 and 0.002 < bond[bond.isfinite()].std() < 0.004
    assert angle[angle.isfinite()].min() > 80 and angle[angle.isfinite()].max() < 150
    gaps = geometry.distances(x, mask)[:, geometry.separated(64, 3)]
    assert gaps[gaps.isfinite()].min() >= 0.4 - 1e-6
    assert torch.equal(geometry.fold_class(x, mask), b["label"]) and torch.equal(b["label"], torch.arange(60) % 3)
    assert (geometry.gyration(x, mask) <= 1.25 + 1e-5).all()
    assert mask.sum(1).min() >= 32 and mask.sum(1).max() <= 64
    assert x.sum(1).abs().max() < 1e-4 and (x[~mask] == 0).all()


def test_strands_lie_side_by_side():
    """In a meander most residues of a strand have one of another at 0.4 to 0.6 nm."""
    b = batch(folds(60, 32, 64, torch.Generator().manual_seed(1)), 64)
    sheet = b["label"] == 1
    x, mask = b["data"][sheet], b["mask"][sheet]
    near = geometry.distances(x, mask).masked_fill(
        ~(geometry.separated(64, 4) | geometry.separated(64, 4).T), torch.inf
    )
    nearest = near.nan_to_num(torch.inf).amin(-1)[geometry.secondary_structure(x, mask) == geometry.STRAND]
    assert ((nearest > 0.4) & (nearest < 0.62)).float().mean() > 0.9


def test_ideal_folds_are_a_function_of_the_seed():
    first, again, other = (IdealFolds(9, 3, 3, seed=seed).load(32, 64) for seed in (0, 0, 1))
    assert all(
        torch.equal(a, b)
        for p, q in zip(first, again, strict=True)
        for a, b in zip(p.positions, q.positions, strict=True)
    )
    assert not torch.equal(first[0].positions[0], other[0].positions[0])
    assert torch.equal(IdealFolds(12, 3, 3).load(32, 64)[1].positions[0], first[1].positions[0])
    with pytest.raises(ValueError, match="32 to 64 are a good choice"):
        folds(3, 8, 9, torch.Generator())
    with pytest.raises(ValueError, match="train must be at least 1, got 0"):
        IdealFolds(0)


def test_no_direction_in_space_is_preferred():
    b = batch(folds(600, 32, 64, torch.Generator().manual_seed(2)), 64)
    spread = b["data"][b["mask"]]
    covariance = spread.T @ spread / len(spread)
    assert (covariance / covariance.trace() * 3 - torch.eye(3)).abs().max() < 0.15


# ---- batches


def test_batches_of_training_are_cut_to_their_longest_and_alike_in_length():
    own = data()
    full = own.train.tensors
    for found in StepLoader(own.train, 4):
        lengths = found["mask"].sum(1)
        assert found["data"].shape == (4, int(lengths.max()), 3)
    filled = torch.cat([b["mask"].flatten() for b in StepLoader(own.train, 4)]).float().mean()
    assert filled > 0.9 > full["mask"].float().mean()
    assert own.val[torch.arange(2)]["data"].shape == (2, 64, 3)
    assert own.conditions(7)["mask"].shape == (7, 64)


def test_samples_of_similar_length_come_together_and_none_is_lost():
    g = torch.Generator().manual_seed(3)
    lengths, order = torch.randint(1, 100, (103,), generator=g), torch.randperm(103, generator=g)
    mixed = alike(order, lengths, 4, g, stretch=8)
    assert torch.equal(mixed.sort().values, torch.arange(103)) and not torch.equal(mixed, order)
    ranges = [int(lengths[part].max() - lengths[part].min()) for part in mixed.split(4)]
    plain = [int(lengths[part].max() - lengths[part].min()) for part in order.split(4)]
    assert sum(ranges) < sum(plain) / 3


def test_alike_batches_resume_and_are_shared_out_like_any():
    own = data().train

    def lengths(loader: StepLoader) -> list[list[int]]:
        return [found["mask"].sum(1).tolist() for found in loader]

    alone = StepLoader(own, 4, seed=7)
    whole, second = lengths(alone), lengths(alone)
    assert whole != second and sorted(sum(whole, [])) == sorted(sum(second, []))
    resumed = StepLoader(own, 4, seed=7)
    resumed.load_state_dict({"position": 5})
    assert lengths(resumed) == whole[5:]
    ranks = [lengths(StepLoader(own, 4, seed=7, rank=rank, world=2)) for rank in range(2)]
    assert [b for pair in zip(*ranks, strict=True) for b in pair] == whole


def test_lengths_and_classes_are_asked_for():
    cond = lengths([40, 64], [0, 2])
    assert (
        cond["mask"].sum(1).tolist() == [40, 64] and cond["label"].tolist() == [0, 2] and cond["mask"].shape == (2, 64)
    )
    assert lengths([8, 9], size=64)["mask"].shape == (2, 64) and lengths([8]).keys() == {"mask"}
    with pytest.raises(ValueError, match="residues must be at most 64, got"):
        lengths([40, 65], size=64)
    with pytest.raises(ValueError, match="longest must be at least 8, got 5"):
        ProteinData(IdealFolds(3, 3, 3), longest=5)


# ---- files


def test_gaps_and_windows():
    x, _ = straight(124.0, -170.0, 30)
    chain = x[0].numpy()
    broken = np.concatenate([chain[:8], chain[10:]])
    assert np.array_equal(longest_piece(broken), chain[10:]) and np.array_equal(longest_piece(chain), chain)
    assert [len(part) for part in windows(chain, 8, 12)] == [12, 12] and [len(p) for p in windows(chain, 4, 12)] == [
        12,
        12,
        6,
    ]
    assert windows(chain[:7], 8, 12) == []


def write_chains(path: Path, num: int = 12, **arrays) -> Path:
    found = folds(num, 32, 64, torch.Generator().manual_seed(4)).positions
    coords = torch.cat(found).numpy() * 10
    np.savez(path, coords=coords, offsets=np.cumsum([0, *map(len, found)]), **arrays)
    return path


def test_a_file_of_chains(tmp_path):
    part = np.array(["train"] * 8 + ["val"] * 2 + ["test"] * 2)
    keep = np.ones(12, bool)
    keep[0] = False
    named = ChainFile(str(write_chains(tmp_path / "a.npz", split=part, globular=keep))).load(32, 64)
    assert [len(p.positions) for p in named] == [7, 2, 2]
    drawn = ChainFile(str(write_chains(tmp_path / "b.npz"))).load(32, 64)
    assert [len(p.positions) for p in drawn] == [10, 1, 1]
    again = ChainFile(str(tmp_path / "b.npz")).load(32, 64)
    assert all(torch.equal(a, b) for a, b in zip(drawn[0].positions, again[0].positions, strict=True))
    made = ProteinData(ChainFile(str(tmp_path / "b.npz")), batch_size=2)
    made.setup()
    assert made.classes == {"label": 4} and made.train[torch.arange(2)]["data"].abs().max() < 6  # nanometres
    with (
        pytest.warns(UserWarning, match="shorter than 50 residues"),
        pytest.raises(ValueError, match=r"lower data.shortest"),
    ):
        ChainFile(str(tmp_path / "b.npz")).load(50, 64)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"coords": np.zeros((4, 2)), "offsets": [0, 4]}, r"numbers in coords \[residues, 3\]"),
        ({"coords": np.zeros((4, 3)), "offsets": [0, 4], "split": ["train", "val"]}, "split as 1 times"),
        ({"coords": np.zeros((4, 3)), "offsets": [0, 4], "split": ["training"]}, "split as 1 times"),
        ({"coords": np.zeros((4, 3)), "offsets": [0, 4], "globular": [True, True]}, "globular as 1 booleans"),
        ({"coords": np.zeros((4, 3)), "offsets": [0.0, 4.0]}, "offsets that rise"),
        ({"coords": np.zeros((4, 3)), "offsets": [0, 3]}, "offsets that rise"),
        ({"coords": np.zeros((4, 3))}, "it has no offsets"),
    ],
)
def test_files_that_are_none_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        ChainFile(str(tmp_path / "bad.npz")).load(32, 64)
    with pytest.raises(ValueError, match="is not a file of chains"):
        ChainFile(str(tmp_path / "none.npz")).load(32, 64)


def pdb_line(
    serial: int, x, name: str = "CA", alt: str = " ", residue: str = "ALA", number: int = 1, occ: float = 1, ins=" "
):
    return (
        f"ATOM  {serial:5d}  {name:<3}{alt}{residue} A{number:4d}{ins}   "
        f"{x[0]:8.3f}{x[1]:8.3f}{x[2]:8.3f}{occ:6.2f}{0:6.2f}          {'C':>2}  "
    )


def structure(path: Path, num: int = 40, models: int = 1, gap: int = 0) -> np.ndarray:
    """A helix as a PDB file (angstrom), its third residue at two places.

    After ten residues `gap` are missing.
    """
    chain = straight(91.0, 50.0, num)[0][0].numpy() * 10
    lines = []
    for model in range(models):
        lines += [f"MODEL     {model + 1:4d}"] if models > 1 else []
        for i, place in enumerate(chain + model):
            if 10 <= i < 10 + gap:
                continue
            if i == 2:
                lines += [
                    pdb_line(i, place + 9, alt="A", number=i + 1, occ=0.3),
                    pdb_line(i, place, alt="B", number=i + 1, occ=0.7),
                ]
            else:
                lines.append(pdb_line(i, place, number=i + 1, residue="MSE" if i == 5 else "ALA"))
        lines += ["TER", *(["ENDMDL"] if models > 1 else [])]
    path.write_text("\n".join([*lines, "END", ""]))
    return chain


def test_structures_are_read_with_what_they_leave_open(tmp_path):
    pytest.importorskip("gemmi")
    chain = structure(tmp_path / "a.pdb", models=2)
    said = set()
    (found,) = read_structure(tmp_path / "a.pdb", said)
    assert np.abs(found * 10 - chain).max() < 1e-3 and found.dtype == np.float32
    assert said == {
        "several models, the first taken",
        "residues at several places, the conformer taken that is more occupied along them",
    }
    (tmp_path / "b.pdb").write_text("nothing")
    with pytest.raises(ValueError, match="it holds no atoms"):
        read_structure(tmp_path / "b.pdb")


def test_a_folder_of_structures_is_read_once(tmp_path, monkeypatch):
    pytest.importorskip("gemmi")
    (tmp_path / "more").mkdir()
    for i in range(5):
        structure(tmp_path / "more" / f"{i}.pdb", gap=3 * (i == 0))
    structure(tmp_path / "short.ent", num=12)
    source = StructureFolder(str(tmp_path))
    with pytest.warns(
        UserWarning,
        match="missing residues, the longest piece taken: more/0.pdb; .*shorter than 20 residues, left out: short.ent",
    ):
        first = source.load(20, 64)
    assert [len(part.positions) for part in first] in ([3, 1, 1], [4, 1, 1])
    assert sorted(len(chain) for part in first for chain in part.positions) == [27, 40, 40, 40, 40]
    monkeypatch.setattr("domains.protein.structure_folder.read_structure", lambda *_: pytest.fail("read again"))
    with pytest.warns(UserWarning, match="chains with missing residues"):
        again = StructureFolder(str(tmp_path)).load(20, 64)
    assert all(torch.equal(a, b) for a, b in zip(first[0].positions, again[0].positions, strict=True))
    monkeypatch.undo()
    (tmp_path / INDEX).write_bytes(b"damaged")
    structure(tmp_path / "new.pdb", num=25)
    with pytest.warns(UserWarning):
        assert sum(len(part.positions) for part in StructureFolder(str(tmp_path)).load(20, 64)) == 6


def test_folders_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        StructureFolder(str(tmp_path / "none")).load(32, 64)
    with pytest.raises(ValueError, match="holds no protein chain"):
        StructureFolder(str(tmp_path)).load(32, 64)


# ---- real chains, where they are


@real
def test_real_files_give_the_chains_that_are_in_them():
    pytest.importorskip("gemmi")
    raw = STORE / "raw"
    lengths = {p.name: [len(c) for c in read_structure(p)] for p in raw.iterdir() if format_of(p)}
    assert lengths["1A8O.pdb"] == lengths["1A8O.cif"] == [70] and lengths["1aki.pdb"] == lengths["1aki.cif"] == [129]
    assert lengths["1k6p.cif"] == [99, 99] and lengths["2BEG.pdb"] == [26] * 5 and lengths["1orc.pdb"] == [64]
    assert lengths["1ahsA.pdb.gz"] == [126] and lengths["1CRN.cif"] == [46] and lengths["1qys.pdb"] == [92]
    assert np.abs(read_structure(raw / "1aki.pdb")[0] - read_structure(raw / "1aki.cif")[0]).max() < 1e-4
    (broken,) = read_structure(raw / "6WQA.cif")
    assert len(broken) == 391 and len(longest_piece(broken)) < 391


@real
def test_real_chains_have_the_numbers_of_nature():
    with np.load(STORE / "backbones.npz") as file:
        offsets, ca, sse, globular = file["offsets"], file["coords"][:, 1] / 10, file["sse"], file["globular"]
    size = int(np.diff(offsets).max())
    made = batch(Traces([torch.from_numpy(ca[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]), size)
    x, mask = made["data"], made["mask"]
    bond = geometry.bonds(x, mask)[torch.from_numpy(globular)]
    bond = bond[bond.isfinite()]
    assert abs(float(bond.mean()) - 0.3804) < 5e-4 and float(((bond - 0.38).abs() <= 0.02).float().mean()) > 0.99
    assert abs(float(geometry.gyration(x, mask)[torch.from_numpy(globular)].median()) - 1.01) < 0.02
    assert (geometry.secondary_structure(x, mask)[mask].numpy() == sse).mean() >= 0.98  # another implementation's
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = ChainFile(str(STORE / "backbones.npz")).load(32, 64)
    assert all(len(part.positions) > 30 for part in parts) and max(map(len, parts[0].positions)) == 64


def test_random_rotations_are_uniform():
    turn = geometry.rotations(4000, torch.Generator().manual_seed(5))
    assert turn.mean(0).abs().max() < 0.03
    # of a uniform rotation the trace is 1 + 2 cos w with density (1 - cos w) / pi: mean 0, second
    # moment 1
    trace = turn.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert abs(float(trace.mean())) < 0.06 and abs(float(trace.square().mean()) - 1) < 0.08
    assert math.isclose(float(torch.linalg.det(turn).min()), 1, abs_tol=1e-4)
