"""Metrics of shapes: sets against closed forms, each stage's evaluator, and its refusals."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from distillkit.evaluation.extractor import load_extractor, packed
from distillkit.evaluation.samples import Diverged
from domains.threed import evaluation, features, ship
from domains.threed.data import FeaturesData, StructureData
from domains.threed.evaluation import CELLS, Surfaces, chamfer, compare_sets
from domains.threed.lattice import lattice_points
from domains.threed.meshes import Mesh, marching_cubes
from domains.threed.solids import Solids


def ball(radius, centre=(0, 0, 0), side=16) -> Mesh:
    return marching_cubes(((lattice_points(side) - torch.tensor(centre)).norm(dim=-1) - radius).numpy())


def test_sets_on_a_line():
    """Ours at 0, 1, 10, the reference at 0.4, 20, 21: the nearest of ours is always 0.4."""
    ours, theirs = torch.tensor([0.0, 1, 10]), torch.tensor([0.4, 20, 21])
    found = compare_sets(*((a[:, None] - b).abs() for a, b in ((ours, theirs), (ours, ours), (theirs, theirs))))
    assert found["coverage"] == pytest.approx(1 / 3)
    assert found["mmd"] == pytest.approx((0.4 + 10 + 11) / 3)
    # 0 -> 0.4 (other), 1 -> 0.4 (other), 10 -> 1 (own); 0.4 -> 0 (other), 20 -> 21 (own), 21 -> 20
    # (own)
    assert found["nearest_accuracy"] == pytest.approx(3 / 6)


def test_sets_of_one_law_of_another_and_collapsed():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 300, 2, generator=generator)

    def compared(x):
        return compare_sets(torch.cdist(x, b), torch.cdist(x, x), torch.cdist(b, b))

    same, shifted, collapsed = compared(a), compared(a + 6), compared(a[:1] + 0.001 * a)
    assert same["nearest_accuracy"] == pytest.approx(0.5, abs=0.06) and same["coverage"] > 0.5
    assert shifted["nearest_accuracy"] > 0.98 and shifted["mmd"] > 5 * same["mmd"]
    assert collapsed["nearest_accuracy"] > 0.9 and collapsed["coverage"] < 0.05


def test_all_pairs_at_once_are_each_pair():
    meshes = [ball(0.3), ball(0.2), ball(0.3, (0.1, 0, -0.05))]
    a, b = Surfaces(meshes[:2]), Surfaces(meshes[1:])
    found = chamfer(a, b)
    ours, theirs = ([torch.nonzero(s.view([CELLS] * 3)).numpy() / CELLS for s in x.share] for x in (a, b))
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x, y = ours[i], theirs[j]
        expected = (cKDTree(y).query(x)[0].mean() + cKDTree(x).query(y)[0].mean()) / 2
        assert float(found[i, j]) == pytest.approx(expected, abs=1e-6)
    assert found[1, 0] < 0.01 and torch.allclose(chamfer(a, b).T, chamfer(b, a))
    assert not chamfer(a, a).diagonal().any()


def test_concentric_balls_are_the_difference_of_their_radii_apart():
    found = chamfer(Surfaces([ball(0.4)]), Surfaces([ball(0.2)])).item()
    assert found == pytest.approx(0.2, abs=0.5 / CELLS)


@pytest.fixture(scope="module")
def stages():
    solids = Solids(train=60, val=100, test=100)
    data = StructureData(solids), FeaturesData(solids)
    for one in data:
        one.setup()
    return {"structure": data[0], "features": data[1]}


@pytest.mark.parametrize("stage", ["structure", "features"])
def test_the_shipped_classifier_is_used_and_told_of(stages, stage):
    described = stages[stage].evaluator().describe()
    assert described["features"]["name"] == "solids classifier" and described["stage"] == stage
    assert described["features"]["held_out_accuracy"] > 0.9 and len(described["features"]["sha256"]) == 64
    assert (features.SHIPPED / f"{stage}.safetensors").stat().st_size < 1e6


@pytest.mark.parametrize("stage", ["structure", "features"])
def test_every_metric_has_a_direction_and_real_data_do_well(stages, stage):
    data = stages[stage]
    evaluator = data.evaluator()
    real = data.test[torch.arange(30)]
    floor = evaluator.floor(30)
    paired = evaluator.paired(real["data"], real["data"], real)
    assert set(evaluator.better) == set(floor) | set(paired)
    assert floor["watertight"] == 1 and floor["class_agreement"] > 0.9
    assert paired["chamfer"] == 0 and paired["f_score"] == 1
    assert all(math.isfinite(value) for value in (floor | paired).values())


def test_bad_structures_are_seen(stages):
    evaluator, batch = stages["structure"].evaluator(), stages["structure"].train[torch.arange(30)]
    good = evaluator(batch["data"], batch)
    assert good["nearest_train"] == pytest.approx(0, abs=1e-6) and good["connected"] == 1
    assert evaluator.floor(30)["nearest_train"] > 0.1

    turned = torch.rand(batch["data"].shape, generator=torch.Generator().manual_seed(0)) < 0.01
    rough = torch.where(turned, -batch["data"], batch["data"])
    assert evaluator(rough, batch)["frechet"] > 1.5 * good["frechet"]
    floating = batch["data"].clone()
    floating[:15, 0, 0, 0, 0] = 1
    assert evaluator(floating, batch)["connected"] == 0.5
    one = batch["data"][:1].expand(30, -1, -1, -1, -1)
    collapsed = evaluator(one, batch)
    assert collapsed["coverage"] < good["coverage"] and collapsed["nearest_accuracy"] > 0.8
    assert collapsed["class_agreement"] < 0.5
    empty = evaluator(-torch.ones(30, 1, 16, 16, 16), batch)
    assert empty["watertight"] == 0 and empty["connected"] == 0 and empty["volume"] == 0


def test_bad_features_are_seen(stages):
    evaluator, batch = stages["features"].evaluator(), stages["features"].test[torch.arange(100)]
    good = evaluator(batch["data"], batch)
    assert good["seams"] == pytest.approx(0, abs=1e-6)
    noisy = batch["data"] + 0.5 * torch.randn(batch["data"].shape, generator=torch.Generator().manual_seed(0))
    bad, apart = evaluator(noisy, batch), evaluator.paired(noisy, batch["data"], batch)
    assert bad["frechet"] > 1.1 * good["frechet"] and bad["seams"] > 0.3
    assert apart["distance"] == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=0.02) == apart["colour"]
    assert apart["chamfer"] > 0.01 and apart["f_score"] < 1
    assert evaluator(0.8 * batch["data"], batch)["frechet"] > 1.5 * good["frechet"]
    # a plain offset of the distances moves the surface by as much
    shifted = batch["data"].clone()
    shifted[..., :8] -= 0.5
    assert evaluator(shifted, batch)["volume"] > 1.2 * good["volume"]


@pytest.mark.parametrize("stage", ["structure", "features"])
def test_what_is_no_sample_is_refused(stages, stage):
    evaluator, batch = stages[stage].evaluator(), stages[stage].test[torch.arange(4)]
    with pytest.raises(Diverged, match="2 of 4 samples hold NaN"):
        broken = batch["data"].clone()
        broken[:2].view(2, -1)[:, 0] = torch.nan
        evaluator(broken, batch)
    with pytest.raises(ValueError, match="give samples in data space"):
        evaluator(torch.zeros(4, 3, 8), batch)


def test_the_reference_of_features_holds_no_twin(stages):
    """Samples are made for test shapes, so they are compared with validation shapes."""
    data = stages["features"]
    evaluator = data.evaluator()
    assert torch.equal(evaluator.reference()["coords"], data.val[torch.arange(100)]["coords"])
    assert torch.equal(evaluator.real(120)["coords"], data.conditions(120)["coords"])


def test_without_classes_the_grid_is_compared():
    solids = Solids(train=12, val=6, test=6)
    data = StructureData(solids)
    data.setup()
    evaluator = evaluation.Structure(data.train, [data.val, data.test], {})
    floor = evaluator.floor(12)
    assert "class_agreement" not in floor and set(floor) < set(evaluator.better)
    assert evaluator.describe()["features"] == {"name": "averages over parts of the grid"}


def test_a_classifier_is_fitted_where_the_shipped_one_cannot_read(stages, monkeypatch):
    monkeypatch.setattr(features, "STEPS", 3)
    train, val = stages["structure"].train, stages["structure"].val
    evaluator = evaluation.Structure(train, [val], {"label": 6})
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        facts = evaluator.describe()["features"]
    assert "fitted to the training data" in facts["name"]
    assert torch.equal(before, torch.random.get_rng_state())


def test_weights_come_back(tmp_path):
    net = features.Classifier(1, 5)
    (tmp_path / "c.safetensors").write_bytes(packed(net))
    again = load_extractor(features.Classifier, tmp_path / "c.safetensors")
    x = torch.randn(2, 1, 16, 16, 16)
    torch.testing.assert_close(again.logits(again.features(x)), again(x))
    assert torch.equal(again(x), net.eval()(x)) and not any(p.requires_grad for p in again.parameters())
    (tmp_path / "c.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="no classifier"):
        load_extractor(features.Classifier, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="train it by"):
        load_extractor(features.Classifier, tmp_path / "none.safetensors")


def test_the_command_trains_both(tmp_path, monkeypatch):
    monkeypatch.setattr("domains.threed.solids.Solids.__init__", _few(Solids.__init__))
    ship.main(["--out", str(tmp_path), "--steps", "2"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "features.safetensors",
        "structure.safetensors",
    ]
    assert f"python -m domains.threed.ship --out {tmp_path} --steps 2 --seed 0" in (tmp_path / "README.md").read_text()


def _few(original):
    return lambda self: original(self, train=10, val=5, test=5)


def test_evaluation_is_deterministic(stages):
    evaluator, batch = stages["features"].evaluator(), stages["features"].test[torch.arange(10)]
    first, again = evaluator(batch["data"], batch), evaluator(batch["data"], batch)
    assert first == again
    assert np.isfinite(list(first.values())).all()
