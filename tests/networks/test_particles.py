"""Learned samples that noise chooses among."""

import math

import pytest
import torch

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.networks.particles import Particles, chosen


@pytest.mark.parametrize("spread", [0.01, 80.0])
def test_noise_chooses_each_one_as_often(spread):
    noise = spread * torch.randn(30_000, 3, 2, generator=torch.Generator().manual_seed(0))
    counts = chosen(noise, 5).bincount(minlength=5)
    assert len(counts) == 5 and (counts - 6000).abs().max() < 4 * math.sqrt(30_000 * 0.2 * 0.8)


def test_the_choice_is_the_direction_of_the_first_two_numbers():
    angles = torch.tensor([0.05, 0.3, 0.55, 0.8]) * 2 * math.pi
    x = torch.stack([angles.cos(), angles.sin()], 1)
    assert chosen(x, 4).tolist() == [0, 1, 2, 3] and chosen(7 * x, 4).tolist() == [0, 1, 2, 3]
    assert chosen(x, 1).tolist() == [0] * 4


def test_a_sample_is_the_particle_of_its_class():
    network = Particles((2,), 3, {"label": 2, "kind": 2})
    denoiser, x = Denoiser(network, VarianceExploding(), "x0"), torch.randn(8, 2)
    cond = {"label": torch.tensor([0, 0, 1, 1] * 2), "kind": torch.tensor([0, 1] * 4)}
    made = denoiser(x, torch.tensor(80.0), cond)
    assert torch.equal(made, network.points[2 * cond["label"] + cond["kind"], chosen(x, 3)])
    made.sum().backward()
    assert network.points.grad.sum() == 16


def test_a_prediction_of_noise_is_refused_for_what_does_not_see_it():
    with pytest.raises(ValueError, match="does not see the noise"):
        Denoiser(Particles((2,)), VarianceExploding(), "eps")
