"""Perception and distortion of photographs, and which photograph a sample is compared with."""

import json
from types import SimpleNamespace

import pytest
import torch
from mutations import Mutation, prove
from torch import nn
from torch.nn import functional as F

from distillkit.data import TensorData
from distillkit.evaluation.samples import Diverged, eight_bits
from domains.super_resolution import evaluation, features, measures
from domains.super_resolution.data import Photos
from domains.super_resolution.evaluation import SuperResolutionEvaluator
from domains.super_resolution.resize import enlarged, shrunk

NUM = 48


@pytest.fixture(scope="module")
def held_out():
    data = Photos(held_out=NUM)
    data.setup()
    return data.test


@pytest.fixture(scope="module")
def batch(held_out):
    return held_out[torch.arange(NUM)]


@pytest.fixture(scope="module")
def evaluator(held_out):
    return SuperResolutionEvaluator([held_out], 4)


@pytest.fixture(scope="module")
def real(evaluator, batch):
    return evaluator(batch["data"], batch)


@pytest.fixture(scope="module")
def bicubic(evaluator, batch):
    return evaluator(evaluator.baselines(batch)["bicubic"], batch)


def test_photographs_are_perfect_beside_themselves(real):
    assert list(real)[:3] == ["frechet", "psnr_y", "ssim_y"]  # the order of the table
    assert real["frechet"] < 1e-9 and real["distance"] < 1e-9 and real["gmsd"] == real["outside"] == 0
    assert real["psnr_y"] == real["consistency"] == 100 and real["ssim_y"] == pytest.approx(1)
    assert real["hf_ratio"] == pytest.approx(1)


def test_the_floor_is_that_of_photographs(evaluator, real):
    floor = evaluator.floor(2 * NUM)  # more than there are: they are repeated
    assert set(real) - set(floor) == {"psnr_y", "ssim_y"}
    assert floor == pytest.approx({name: real[name] for name in floor}, abs=1e-6)
    json.dumps(floor, allow_nan=False)


# Perception and distortion


def blurred(x, pixels):
    place = torch.arange(-8.0, 9.0)
    line = torch.exp(-0.5 * (place / pixels).square())
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, -1, -1)
    return F.conv2d(F.pad(x, (8,) * 4, mode="reflect"), window, groups=3)


def bent(x, by):
    """Photographs bent by about `by` pixels: everything is sharp, at another place."""
    generator = torch.Generator().manual_seed(1)
    field = torch.randn(len(x), 2, 6, 6, generator=generator)
    line = torch.linspace(-1, 1, x.shape[-1])
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    moved = F.interpolate(field, size=x.shape[-2:], mode="bicubic", align_corners=False)
    return F.grid_sample(x, grid + (by / 24 * moved).movedim(1, -1), "bicubic", "reflection", align_corners=True)


@pytest.fixture(scope="module")
def alike(batch):
    """Images as far from their photographs as bicubic ones are: the same mean squared error."""
    x, generator = batch["data"], torch.Generator().manual_seed(0)
    aim = float((enlarged(batch["low"], x.shape[-2:]) - x).square().mean())
    noise = torch.randn(x.shape, generator=generator)

    def reach(make, most):
        low, high = 0.0, most
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if float((make(middle) - x).square().mean()) < aim else (low, middle)
        return make(high)

    return {
        "blurred": reach(lambda by: blurred(x, by + 0.1), 4.0),
        "noisy": reach(lambda by: x + by * noise, 1.0),
        "bent": reach(lambda by: bent(x, by), 4.0),
    }


def test_no_blurred_student_wins(evaluator, batch, bicubic, alike):
    """At one error the sharp ones are good, and nothing else is better than bicubic by far."""
    up = enlarged(batch["low"], batch["data"].shape[-2:])
    made = alike | {"sharpened": up + 1.5 * (up - blurred(up, 1.0))}
    found = {name: evaluator(x, batch) for name, x in made.items()} | {"bicubic": bicubic}
    assert found["bent"]["psnr_y"] == pytest.approx(bicubic["psnr_y"], abs=1.5)
    sharp = found.pop("bent")
    for name, lost in found.items():
        assert lost["frechet"] > 20 * sharp["frechet"], name
        assert lost["distance"] > 1.5 * sharp["distance"], name
    assert min(found[name]["frechet"] for name in ("noisy", "sharpened")) > bicubic["frechet"]
    assert bicubic["hf_ratio"] < 0.05 and found["blurred"]["hf_ratio"] < 0.1 and found["noisy"]["hf_ratio"] > 1.2
    assert 0.5 < sharp["hf_ratio"] < 1.1
    assert bicubic["consistency"] > 45 > found["noisy"]["consistency"]


def test_other_noise_of_the_same_photograph_counts_as_good(evaluator, batch, bicubic):
    """Fine detail of another place: as far from the photograph as bicubic, and plausible."""
    x = batch["data"]
    detail = x - blurred(x, 1.2)
    found = evaluator(x - detail + torch.roll(detail, (3, 5), (2, 3)), batch)
    assert found["psnr_y"] < bicubic["psnr_y"] and found["frechet"] < bicubic["frechet"] / 20


def test_numbers_are_those_of_the_measures(evaluator, batch):
    x = 1.2 * batch["data"]
    found, paired = evaluator(x, batch), evaluator.paired(x, batch["data"], batch)
    y, real_y = measures.luma(x, 4), measures.luma(batch["data"], 4)
    assert found["psnr_y"] == pytest.approx(float(measures.psnr_y(y, real_y).mean()))
    assert found["ssim_y"] == pytest.approx(float(measures.ssim_y(y, real_y).mean()))
    energies = (float(measures.fine_energy(each).sum()) for each in (y, real_y))
    assert found["hf_ratio"] == pytest.approx(next(energies) / next(energies))
    again = (shrunk(eight_bits(x), 4) - batch["low"]).double().square().mean((1, 2, 3))
    assert found["consistency"] == pytest.approx(float((10 * torch.log10(4 / again)).clamp_max(100).mean()))
    assert found["outside"] == pytest.approx(float((x.abs() > 1.1).double().mean())) and found["outside"] > 0
    assert paired == {"teacher_psnr_y": pytest.approx(found["psnr_y"])}
    assert {*found, *paired} == set(evaluator.better)


def test_chunks_make_no_difference(evaluator, batch, bicubic, monkeypatch):
    monkeypatch.setattr(evaluation, "PIXELS", 5 * 48 * 48)
    found = evaluator(evaluator.baselines(batch)["bicubic"], batch)
    assert found == pytest.approx(bicubic, rel=1e-4)


# The photograph behind a sample


def made(num: int = 3, side: int = 16, scale: int = 2, seed: int = 0) -> TensorData:
    x = torch.randint(0, 256, (num, 3, side, side), generator=torch.Generator().manual_seed(seed)) / 127.5 - 1
    return TensorData({"data": x, "low": shrunk(x, scale)})


def test_photographs_are_known_by_their_observations():
    """In any order and in either data set; rounding on the way does not matter."""
    one, other = made(seed=0), made(seed=1)
    evaluator = SuperResolutionEvaluator([one, other], 2)
    x = torch.cat([one.tensors["data"], other.tensors["data"]])
    low = torch.cat([one.tensors["low"], other.tensors["low"]])
    order = torch.tensor([4, 0, 2, 5, 5, 1])
    assert evaluator(x[order], {"low": low[order] + 1e-4})["psnr_y"] == 100


def test_photographs_of_one_observation_take_turns():
    data = made()
    data.tensors["low"][2] = data.tensors["low"][0]
    evaluator = SuperResolutionEvaluator([data], 2)
    rows = torch.tensor([0, 1, 2, 0])
    assert evaluator(data.tensors["data"][rows], {"low": data.tensors["low"][rows]})["psnr_y"] == 100


def test_what_is_refused(evaluator, batch):
    x, cond = batch["data"][:2], {"low": batch["low"][:2]}
    with pytest.raises(ValueError, match="there is none for sample 1: evaluate with the data that it was made for"):
        evaluator(x, {"low": torch.stack([cond["low"][0], -cond["low"][1]])})
    with pytest.raises(Diverged, match="1 of 2 samples hold NaN"):
        evaluator(torch.stack([x[0], x[1] * torch.nan]), cond)
    with pytest.raises(ValueError, match=r"samples have shape \[3, 24, 48\]"):
        evaluator(x[:, :, :24], cond)
    with pytest.raises(ValueError, match=r"16 pixels a side are too small to be measured at scale 8.*data.crop"):
        SuperResolutionEvaluator([made(scale=8)], 8)


# Networks of others


class Judge(nn.Module):
    """A distance of its own, and where it was asked."""

    name, backbone = "judge", SimpleNamespace(sha256="abc")

    def __init__(self, path):
        super().__init__()

    def forward(self, x, y):
        return (x - y).abs().mean((1, 2, 3))


class Alone:
    def __init__(self, names):
        self.names, self.better = list(names), {}

    def __call__(self, x):
        self.better = dict.fromkeys(self.names, "higher")
        return {name: x.mean((1, 2, 3)) for name in self.names}


def test_networks_of_others_judge_once_for_each_model(held_out, batch, monkeypatch):
    assert SuperResolutionEvaluator([held_out], 4).thorough(batch["data"], batch) == {}
    for name, stand_in in (("Lpips", Judge), ("Dists", Judge), ("NoReference", Alone)):
        monkeypatch.setattr(evaluation, name, stand_in)
    evaluator = SuperResolutionEvaluator([held_out], 4, lpips="a", dists="b", no_reference=["musiq"])
    x = (batch["data"] + 0.1).clamp(-1, 1)
    found = evaluator.thorough(x, batch)
    gap = float((eight_bits(x) - batch["data"]).abs().mean())
    assert found == pytest.approx({"lpips": gap, "dists": gap, "musiq": float(eight_bits(x).mean())}, rel=1e-5)
    assert {name: evaluator.better[name] for name in found} == {"lpips": "lower", "dists": "lower", "musiq": "higher"}
    floor = evaluator.floor(NUM)
    assert floor["lpips"] == 0 and floor["musiq"] == pytest.approx(float(batch["data"].mean()), rel=1e-5)
    described = evaluator.describe()
    assert described["lpips"] == {"name": "judge", "sha256": "abc"} and described["no_reference"] == ["musiq"]
    assert json.loads(json.dumps(described)) == described
    assert not {"lpips", "musiq"} & set(evaluator(x, batch))


def test_the_data_hand_on_what_the_user_has(monkeypatch):
    monkeypatch.setattr(evaluation, "SuperResolutionEvaluator", lambda *given: SimpleNamespace(given=given))
    data = Photos(held_out=2, lpips="alex.pth", dists="vgg.pth", no_reference=["niqe"], scale=2)
    assert data.evaluator("test").given == ([data.test], 2, "alex.pth", "vgg.pth", ("niqe",))


# Features


def test_the_shipped_network_tells_damages_and_is_small(held_out, evaluator):
    assert features.accuracy(evaluator.critic, held_out, batches=4) > 0.6
    assert features.SHIPPED.stat().st_size < 300_000


def test_features_are_local_and_of_any_size(evaluator, batch):
    x = F.interpolate(batch["data"][:1], size=(64, 75), mode="bicubic")
    maps, moved = evaluator.critic.maps(x), evaluator.critic.maps(x[..., 4:, 8:])
    assert [tuple(each.shape[2:]) for each in maps] == [(64, 75), (32, 38), (32, 38), (16, 19), (16, 19)]
    torch.testing.assert_close(maps[-1][..., 1 + 4 :, 2 + 4 :][..., :8, :8], moved[-1][..., 4:12, 4:12])


def check_distance() -> None:
    """Directions count and lengths do not; it is the mean of the layers."""
    right, up = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])

    def maps(*vectors):
        return [vector[None, :, None, None].expand(2, 2, 3, 5) for vector in vectors]

    found = features.distance(maps(right, right), maps(3 * right, 2 * up))
    torch.testing.assert_close(found, torch.tensor([0.4, 0.4]))


def test_distance_of_features():
    check_distance()


DISTANCES = [
    ("lengths count", "(_unit(a) - _unit(b))", "(a - b)"),
    ("not squared", ".square().sum(1)", ".abs().sum(1)"),
    ("the sum of layers", ".mean(0)", ".sum(0)"),
]


@pytest.mark.parametrize(("says", "old", "new"), DISTANCES)
def test_faults_of_the_distance_are_noticed(says, old, new):
    prove(Mutation(says, features.distance, old, new, check_distance))


@pytest.mark.parametrize("damage", features.DAMAGES)
def test_damages(batch, damage):
    """All but none change an image, each image alone, within its range and without its border."""
    kind = list(features.DAMAGES).index(damage)
    torch.manual_seed(0)
    found = features.damaged(batch["data"][:2], [kind, 0], [0.4, 0.7])
    whole = batch["data"][:2, :, 4:-4, 4:-4]
    assert found.shape == whole.shape and found.abs().max() <= 1
    torch.testing.assert_close(found[1], whole[1])
    assert (damage == "none") == torch.allclose(found[0], whole[0], atol=1e-6)
