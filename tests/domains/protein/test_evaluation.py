"""The metrics of backbones against closed forms and known faults; files against other tools."""

import html
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import trainer
from PIL import Image

from distillkit.evaluation.samples import Diverged
from distillkit.report.page import write_report
from domains.protein import evaluation, geometry, media
from domains.protein.data import ProteinData, lengths
from domains.protein.evaluation import ProteinEvaluator, descriptors, jensen_shannon, shares, tm_scores
from domains.protein.folds import IdealFolds
from domains.protein.teacher import WEIGHTS, Folds
from tests.battery.conftest import FEWER, Case, build, by_family, few, goes

trained = pytest.mark.skipif(not (WEIGHTS / "folds").is_dir(), reason="the embedded teacher is not here")
STORE = Path(os.environ.get("DISTILLKIT_DATA", "none")) / "protein"  # a folder of real data sets, if there is one
SMALL = ["data.chains.train=48", "data.chains.val=9", "data.chains.test=9", "data.batch_size=4"]


@pytest.fixture(scope="module")
def data() -> ProteinData:
    made = ProteinData(IdealFolds(train=240, val=30, test=30))
    made.setup()
    return made


@pytest.fixture(scope="module")
def real(data) -> dict[str, torch.Tensor]:
    return data.train[torch.arange(60)]


@pytest.fixture(scope="module")
def floor(data) -> dict[str, float]:
    return data.evaluator().floor(60)


def noisy(real, sigma: float) -> torch.Tensor:
    noise = sigma * torch.randn(real["data"].shape, generator=torch.Generator().manual_seed(0))
    return real["data"] + noise * real["mask"][..., None]


def test_divergence_of_known_laws():
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert jensen_shannon(p, p) == 0 and jensen_shannon(p, q) == pytest.approx(1)
    half = torch.tensor([0.5, 0.5])  # JS = H((3/4, 1/4)) - H(1/2, 1/2) / 2
    assert jensen_shannon(p, half) == pytest.approx(0.811278124459 - 0.5)


def test_shares_leave_out_what_is_not_there():
    values = torch.tensor([[0.0, 1.5, 2.5, torch.nan], [torch.nan] * 4])
    found = shares(values, torch.tensor([1.0, 2.0]))
    assert found.tolist() == [[pytest.approx(1 / 3)] * 3, [0, 0, 0]]


def test_real_chains_get_the_floor_and_noise_shows(data, real, floor):
    evaluator = data.evaluator()
    assert (
        floor["bond_valid"] == 1 and floor["clash"] == 0 and floor["left_helix"] == 0 and floor["class_agreement"] == 1
    )
    assert floor["frechet"] < 0.05 and floor["angle_js"] < 0.01 and floor["dihedral_js"] < 0.02
    assert set(floor) == set(evaluator.better)
    rising = [evaluator(noisy(real, sigma), real)["frechet"] for sigma in (0.0, 0.01, 0.03, 0.1)]
    assert all(10 * a < 9 * b for a, b in zip(rising, rising[1:], strict=False)), rising


def test_clashes_and_left_handed_turns_are_counted():
    x = torch.zeros(1, 12, 3)
    x[0, :, 0] = 0.38 * torch.arange(12)
    x[0, 9] = torch.tensor([0.0, 0.29, 0.0])  # beside the first residue, and 0.48 from the second
    mask = torch.arange(14) < 12
    padded = torch.nn.functional.pad(x, (0, 0, 0, 2))
    assert evaluation.clashes(padded, mask[None]).item() == pytest.approx(1 / 12)
    full, both = torch.ones(1, 12), torch.ones(1, 12, dtype=torch.bool)
    for tau, expected in ((-50.0, 9 / 12), (50.0, 0.0), (-80.0, 0.0)):
        turn = geometry.extended_chain(91 * full, tau * full, 0.38 * full[:, 1:])
        assert evaluation.left_helix(turn, both).item() == pytest.approx(expected)


@pytest.mark.parametrize("fault", ["bonds", "clashes", "mirror", "size", "one class", "collapse"])
def test_the_headline_sees_every_fault(data, real, floor, fault):
    evaluator, x, cond = data.evaluator(), real["data"], real
    if fault == "bonds":
        x = 1.03 * x
    elif fault == "clashes":  # the second half on the first
        x = torch.cat([x[:, :20], x[:, :20] + 0.05, x[:, 40:]], 1) * real["mask"][..., None]
    elif fault == "mirror":
        x = x * torch.tensor([1.0, 1.0, -1.0])
    elif fault == "size":
        x = 0.5 * x
    else:
        rows = (real["label"] == 0).nonzero()[:, 0] if fault == "one class" else torch.zeros(20, dtype=torch.long)
        cond = {name: value[rows] for name, value in real.items()}
        x = cond["data"]
    found = evaluator(x, cond)
    assert found["frechet"] > 3 * floor["frechet"]
    if fault == "mirror":
        assert found["left_helix"] > 0.1 and found["dihedral_js"] > 0.2 and found["bond_valid"] == 1
    if fault == "collapse":
        assert found["gapless_diversity_tm"] == pytest.approx(1, abs=1e-4) and found["gapless_clusters"] == 1 / 20
        assert found["gapless_novelty_tm"] == pytest.approx(1, abs=1e-4)  # and what it repeats was seen in training


def test_bond_lengths_under_noise_in_closed_form(real, data):
    """The squared length of a bond with noise s per axis is b^2 + 6 s^2 on average."""
    sigma = 0.02
    bond = geometry.bonds(noisy(real, sigma), real["mask"])
    square = bond[bond.isfinite()].square().mean().item()
    assert square == pytest.approx(0.38**2 + 0.003**2 + 6 * sigma**2, rel=0.01)
    assert data.evaluator()(noisy(real, sigma), real)["bond_valid"] == pytest.approx(
        0.52, abs=0.05
    )  # as nature's chains


def test_neither_place_nor_turn_nor_padding_counts(real):
    turn = geometry.rotations(len(real["data"]), torch.Generator().manual_seed(3))
    moved = real["data"] @ turn + 1.0
    expected = descriptors(real["data"], real["mask"])
    found = descriptors(moved, real["mask"])
    assert (found - expected).abs().mean() < 2e-3  # a value on the edge of a bin may fall to either side
    wider = torch.nn.functional.pad(real["data"], (0, 0, 0, 7), value=9.0)
    assert torch.allclose(descriptors(wider, torch.nn.functional.pad(real["mask"], (0, 7))), expected, atol=1e-6)


def test_tm_scores_of_all_pairs(real):
    x, mask = real["data"][:6], real["mask"][:6]
    full = tm_scores(x, mask, x, mask, "gapless")
    assert torch.allclose(full.diagonal(), torch.ones(6), atol=1e-4) and (full <= 1 + 1e-5).all()
    half = tm_scores(x, mask, x, mask, "gapless", twice=False)
    assert torch.equal(half, full.triu(1))
    shorter = tm_scores(x[:, :40], mask[:, :40], x, mask, "gapless")
    assert shorter.shape == (6, 6)


def test_alignment_finds_what_superposition_misses(real):
    pytest.importorskip("tmtools")
    x, mask = real["data"][:4], real["mask"][:4]
    gapless, aligned = (tm_scores(x, mask, x, mask, kind) for kind in ("gapless", "align"))
    assert (aligned >= gapless - 0.02).all() and torch.allclose(aligned.diagonal(), torch.ones(4), atol=1e-3)
    mirror = tm_scores(x * torch.tensor([1.0, 1, -1]), mask, x, mask, "align").diagonal()
    assert (mirror < 0.9).all()


def test_what_compares_whole_chains_says_how(data):
    pytest.importorskip("tmtools")
    aligned = ProteinEvaluator(data.train, [data.val, data.test], tm="align")
    assert "diversity_tm" in aligned.better and "gapless_diversity_tm" in data.evaluator().better
    assert aligned.describe()["tm"] == "align" and data.evaluator().describe()["tm"] == "gapless"
    assert json.loads(json.dumps(aligned.describe())) == aligned.describe()
    with pytest.raises(ValueError, match="gapless or align"):
        ProteinEvaluator(data.train, [data.val], tm="fast")


def test_samples_that_are_none_are_refused(data, real):
    with pytest.raises(ValueError, match="their mask asks for"):
        data.evaluator()(real["data"][:, :10], real)
    with pytest.raises(Diverged, match="1 of 60 samples hold NaN"):
        data.evaluator()(real["data"].index_fill(0, torch.tensor([3]), torch.nan), real)


@pytest.mark.skipif(not STORE.is_dir(), reason="the real chains are not here")
def test_noise_on_real_chains_has_the_known_effect():
    """80 natural chains: 0.02 nm per axis leaves 0.52 of the bonds, 0.05 nm hardly a helix."""
    with np.load(STORE / "backbones.npz") as file:
        ca, offsets = torch.from_numpy(file["coords"][:, 1] / 10), file["offsets"]
    g, valid, helix = torch.Generator().manual_seed(0), [], []
    for a, b in zip(offsets[:80], offsets[1:81], strict=True):
        mask = torch.ones(1, int(b - a), dtype=torch.bool)
        by = [ca[None, a:b] + sigma * torch.randn(1, int(b - a), 3, generator=g) for sigma in (0.02, 0.05)]
        valid.append(((geometry.bonds(by[0], mask) - 0.38).abs() <= 0.02).float().mean())
        helix.append(geometry.contents(geometry.secondary_structure(by[1], mask), mask)[0])
    assert float(torch.stack(valid).mean()) == pytest.approx(0.52, abs=0.03)
    assert float(torch.cat(helix).mean()) < 0.1


# ---- pictures and files


def test_pictures_have_a_place_for_every_chain(real):
    cond = {"mask": real["mask"][:5]}
    picture = media.picture(real["data"][:5], cond, columns=3)
    assert picture.size == (3 * media.CELL, 2 * 2 * media.CELL)
    pixels = np.asarray(picture)
    assert (pixels[: media.CELL, : media.CELL] < 200).any() and (
        pixels[2 * media.CELL :, 2 * media.CELL :] == 255
    ).all()
    assert media.picture(torch.full((2, 64, 3), torch.nan)).size == (2 * media.CELL, 2 * media.CELL)
    rows = media.compare({"student": real["data"][:5], "teacher": real["data"][:5]}, cond)
    assert isinstance(rows, Image.Image) and rows.height == 4 * media.CELL
    with pytest.raises(ValueError, match="at least one"):
        media.picture(real["data"][:0], {"mask": real["mask"][:0]})


def test_a_map_shows_who_is_near():
    x = torch.tensor([[0.0, 0, 0], [0.38, 0, 0], [5.0, 0, 0], [5.38, 0, 0]]).double().numpy()
    shown = media.distance_map(x).astype(int).sum(-1)
    assert shown[14, 18] > 3 * shown[14, 78] and shown[74, 78] > 3 * shown[14, 78]


def test_other_tools_read_the_files(real, tmp_path):
    gemmi = pytest.importorskip("gemmi")
    cond = {"mask": real["mask"][:2]}
    page, *paths = media.save(real["data"][:2], cond, tmp_path)
    assert page.name == "backbones.html"
    assert sorted(path.name for path in paths) == [
        "backbone_0.cif",
        "backbone_0.pdb",
        "backbone_1.cif",
        "backbone_1.pdb",
    ]
    for path in paths:
        chain = media.traces(real["data"], real)[int(path.stem[-1])] * 10
        (found,) = gemmi.read_structure(str(path))[0]
        places = np.array([[*residue["CA"][0].pos] for residue in found])
        assert found.name == "A" and [r.seqid.num for r in found] == list(range(1, len(chain) + 1))
        assert np.abs(places - chain).max() <= 5.1e-4 and {r.name for r in found} == {"ALA"}
        assert found[0]["CA"][0].element.name == "C"
    lines = paths[0].read_text().splitlines()
    assert {len(line) for line in lines} == {80}


def test_a_chain_that_no_pdb_file_holds_is_written_as_mmcif_alone(real, tmp_path):
    far = 200 * real["data"][:2]
    far[1] = real["data"][1]
    _, *paths = media.save(far, {"mask": real["mask"][:2]}, tmp_path)
    assert [path.name for path in paths] == ["backbone_0.cif", "backbone_1.pdb", "backbone_1.cif"]
    with pytest.raises(ValueError, match="write mmCIF instead"):
        media.pdb(media.traces(far, {"mask": real["mask"][:2]})[0])


def test_biotite_reads_them_too(real, tmp_path):
    pytest.importorskip("biotite")
    from biotite.structure import annotate_sse
    from biotite.structure.io import pdb, pdbx

    _, *paths = media.save(real["data"][:2], {"mask": real["mask"][:2]}, tmp_path)
    atoms = pdb.PDBFile.read(paths[0]).get_structure(model=1)
    chain = media.traces(real["data"], real)[0]
    assert np.abs(atoms.coord - 10 * chain).max() < 1e-3
    again = pdbx.get_structure(pdbx.CIFFile.read(paths[1]), model=1)
    assert np.abs(again.coord - atoms.coord).max() < 1e-3
    ours = geometry.secondary_structure(real["data"][:1], real["mask"][:1])[0, : len(chain)].tolist()
    assert ["cab"[kind] for kind in ours] == annotate_sse(atoms).tolist()


def test_a_chain_to_turn_is_a_tube_through_its_residues():
    chain = np.random.default_rng(0).normal(size=(12, 3))
    tube = media.beads(chain, "chain")
    assert np.abs(tube.vertices[:: media.BEADS] - (chain - chain.mean(0))).max() < 1e-12
    gaps = np.linalg.norm(np.diff(tube.vertices, axis=0), axis=1)
    bonds = np.linalg.norm(np.diff(chain, axis=0), axis=1)
    assert np.abs(gaps - np.repeat(bonds / media.BEADS, media.BEADS)).max() < 1e-12
    assert np.array_equal(tube.colours[[0, -1]], media.along(2)) and len(media.beads(chain[:1], "one").vertices) == 1


def test_the_report_shows_the_chains_to_turn(real, tmp_path):
    media.save(real["data"][:2], {"mask": real["mask"][:2]}, tmp_path / "samples")
    (tmp_path / "config.yaml").write_text("seed_everything: 0")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert text.count("<iframe") == 1 and "<script" not in text and "&lt;script&gt;" in text and "http" not in text
    assert html.escape((tmp_path / "samples" / "backbones.html").read_text()[:200]) in text.replace("&#34;", "&quot;")


def test_what_does_not_fit_the_columns_is_refused():
    with pytest.raises(ValueError, match="mmCIF instead"):
        media.pdb(np.full((3, 3), 100.0))
    assert "1000.000" in media.mmcif(np.full((3, 3), 100.0))


# ---- from the words of the command line to steps of training


@pytest.mark.slow  # the battery has one method of each family at home
@trained
@pytest.mark.parametrize("method", by_family())
def test_every_method_takes_steps(method):
    if not goes("protein", method):
        pytest.skip("the battery proves that it is refused")
    own = build("domain=protein", f"method={method}", "network.width=16", *SMALL, *few(Case(method, "protein"), FEWER))
    own.model.require(own.data)
    own.data.setup()
    own.model.check(own.data)
    run = trainer(max_steps=3)
    run.fit(own.model, own.data)
    assert run.global_step == 3 and not own.model.bad_steps.any()
    cond = own.data.conditions(4)
    samples = own.model.sample(cond, 4, 0)
    assert samples.shape == (4, 64, 3) and samples.isfinite().all() and (samples[~cond["mask"]] == 0).all()
    assert samples.sum(1).abs().max() < 1e-3


@trained
def test_the_embedded_teacher_is_small_and_makes_chains_of_the_lengths_asked_for():
    teacher, file = Folds(), WEIGHTS / "folds" / "model.safetensors"
    assert file.stat().st_size < 2.5e6 and "domain=protein method=pretrain" in (file.parent / "README.md").read_text()
    assert teacher.event_shape == (64, 3) and teacher.classes == {"label": 3} and teacher.context == ("mask",)
    cond = lengths([33, 50], [0, 2], size=64)
    samples = teacher.generate(2, cond, 0, times=teacher.grid(2))
    assert samples.shape == (2, 64, 3) and (samples[~cond["mask"]] == 0).all()
