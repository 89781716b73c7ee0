"""The preferences of domains: one number for each sample, and what is better has more of it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from distillkit.data import DistillData
from distillkit.evaluation.extractor import load_extractor
from distillkit.evaluation.preference import win_rate
from domains.image.data import Digits
from domains.image.features import SHIPPED, Classifier, accuracy
from domains.super_resolution.data import Photos
from domains.toy.data import ToyData
from domains.toy.teacher import Circle, Gaussian
from tests.battery.conftest import composed, loaded


def first(data, num: int) -> dict[str, Tensor]:
    data.setup()
    return data.test[torch.arange(num)]


def test_on_the_plane_the_first_number_counts():
    samples = torch.tensor([[1.0, 5.0], [-2.0, 3.0]])
    assert ToyData(Gaussian()).reward(samples, {}).tolist() == [1, -2]


def test_on_the_plane_with_classes_the_class_counts():
    """Halfway between two of three modes, whose weights are 1, 2 and 3."""
    data = ToyData(Circle(3, labelled=True))
    middle = data.teacher.mixture.means[:2].mean(0).float()
    found = data.reward(middle.expand(2, 2), {"label": torch.tensor([0, 1])})
    assert found.exp().tolist() == pytest.approx([1 / 3, 2 / 3], abs=1e-4)


def test_of_photographs_it_is_the_nearness_to_the_photograph():
    """PSNR in [-1, 1], of each square alone."""
    data = Photos(crop=48, held_out=4)
    batch = first(data, 3)
    shifts = torch.tensor([0.0, 0.02, 0.2])
    found = data.reward(batch["data"] + shifts[:, None, None, None], batch)
    assert found.tolist() == pytest.approx([100.0, 40.0, 20.0], abs=1e-3)  # 20 log10(2 / shift)


def test_of_digits_it_is_how_likely_their_label_is():
    data = Digits()
    batch = first(data, 250)
    right = data.reward(batch["data"], batch)
    wrong = data.reward(batch["data"], batch | {"label": (batch["label"] + 1) % 10})
    assert right.shape == (250,) and (right <= 0).all() and (right > wrong).float().mean() > 0.95
    every = torch.stack([data.reward(batch["data"], {"label": torch.full((250,), k)}) for k in range(10)])
    torch.testing.assert_close(every.exp().sum(0), torch.ones(250))


def test_the_classifier_of_the_reward_is_not_that_of_the_evaluation():
    data = Digits()
    data.setup()
    judge, measure = (net.state_dict() for net in (data._judge, load_extractor(Classifier, SHIPPED)))
    assert judge.keys() == measure.keys() and not any(torch.equal(judge[key], measure[key]) for key in judge)
    assert accuracy(data._judge, data.test) > 0.98


@pytest.mark.parametrize("words", [["domain=toy"], ["domain=toy", "teacher=labelled"], ["domain=image"]], ids=str)
def test_rewards_that_say_so_have_a_gradient_that_climbs(words):
    """Along it a small step raises the reward of samples that are not the best yet."""
    data = loaded(json.dumps(json.loads(composed(*words, "method=dmd"))["data"]))
    batch = first(data, 20)
    x = (batch["data"] + batch["data"].roll(1, 0)) / 2
    x.requires_grad_()
    before = data.reward(x, batch)
    (slope,) = torch.autograd.grad(before.sum(), x)
    step = 1e-3 * slope / slope.flatten(1).norm(dim=1).clamp_min(1e-9).reshape(-1, *[1] * (x.ndim - 1))
    assert "reward_gradient" in data.provides and slope.isfinite().all()
    assert (data.reward(x + step, batch) > before).float().mean() > 0.5
    assert not (data.reward(x + step, batch) < before - 1e-5).any()


@pytest.mark.parametrize("domain", ["toy", "image", "super_resolution"])
def test_rewards_are_numbers_of_the_samples_device(domain):
    data = loaded(json.dumps(json.loads(composed(f"domain={domain}", "method=dmd"))["data"]))
    batch = first(data, 5)
    found = data.reward(batch["data"], batch)
    assert "reward" in data.provides and found.shape == (5,) and found.dtype == torch.float32
    assert found.isfinite().all() and not found.requires_grad and found.device == batch["data"].device


class Shifted:
    """A student that makes its seed's noise, shifted to the right."""

    def __init__(self, shift: float):
        self.shift = shift

    def condition(self, batch):
        return {}

    def sample(self, num, cond, seed):
        noise = torch.randn(num, 2, generator=torch.Generator().manual_seed(seed))
        return noise + self.shift


def test_who_wins_is_decided_noise_by_noise():
    """However small the shift; a draw counts as half."""
    data = ToyData(Gaussian(), num_samples=10)
    for one, other, share in ((1e-3, 0.0, 1.0), (0.0, 1e-3, 0.0), (0.0, 0.0, 0.5)):
        assert win_rate(data, Shifted(one), Shifted(other), 6000) == share  # more than are held out


def test_nobody_wins_without_a_reward():
    data = SimpleNamespace(provides=DistillData.provides)
    with pytest.raises(ValueError, match="^SimpleNamespace has no reward, by which samples could win: give data"):
        win_rate(data, Shifted(0), Shifted(1))
