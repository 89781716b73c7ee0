"""Slow waves of the level: nearly the same denoiser, a tame derivative, kept in folders."""

import copy
import math

import pytest
import torch
from helpers import neural, wake

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.networks.blocks import Embedding, sinusoids
from distillkit.networks.mlp import MLP
from distillkit.spec import from_spec, to_spec
from distillkit.students.makers import Copy, Lora, Routed
from distillkit.teachers.exact import ExactTeacher, Mixture

WIDTH, ENDS = 32, (-1.5, 1.1)
TIMES = torch.linspace(*ENDS, 200)


def seen(embed: Embedding) -> torch.Tensor:
    """What the first layer makes of the times, [200, WIDTH]."""
    return embed.time[0](sinusoids(TIMES, WIDTH, embed.fastest)).detach()


def of_one_wave(column: int) -> Embedding:
    """An embedding whose first layer sees one of the sines alone, and a bias."""
    embed = Embedding(WIDTH, {})
    with torch.no_grad():
        embed.time[0].weight.zero_()
        embed.time[0].weight[:, column] = 1
        embed.time[0].bias.fill_(0.3)
    return embed


def test_the_slowest_wave_and_the_bias_stay():
    embed = of_one_wave(0)
    before = seen(embed)
    embed.slow(4.0, ENDS)
    torch.testing.assert_close(seen(embed), before, atol=2e-3, rtol=0)
    torch.testing.assert_close(before[:, 0], (TIMES * 0.25 * math.pi / 2).sin() + 0.3)


def test_the_fastest_wave_is_gone():
    """What is left of it is its mean and the little of it that slow waves can follow."""
    embed = of_one_wave(WIDTH // 2 - 1)
    assert seen(embed).std(0).min() > 0.65
    embed.slow(4.0, ENDS)
    assert seen(embed).std(0).max() < 0.1


@pytest.mark.parametrize("fastest", [2.0, 4.0, 8.0])
def test_no_wave_is_faster_than_said(fastest):
    """The slope in time of a sine of unit amplitude is at most its frequency."""
    times = torch.linspace(*ENDS, 4001, dtype=torch.float64)
    slope = sinusoids(times, WIDTH, fastest).diff(dim=0).abs().max() / (times[1] - times[0])
    assert slope.item() == pytest.approx(fastest * math.pi / 2, rel=2e-2)


def test_a_network_of_slow_waves_is_nearly_the_same_with_slower_ones():
    """Its waves up to 2 are seen in waves up to 4 as well, and so is what it makes of them."""
    denoiser = Denoiser(wake(MLP([2], WIDTH, 2)), VarianceExploding(), sigma_data=1.0)
    denoiser.slow(2.0)
    x, t = torch.randn(64, 2, generator=torch.Generator().manual_seed(1)), torch.logspace(-2, 1.9, 64)
    x = x * t[:, None]
    before = denoiser(x, t)
    denoiser.slow(4.0)
    assert denoiser.fastest == denoiser.network.embed.fastest == 4.0
    error = (denoiser(x, t) - before).square().mean().sqrt() / before.std()
    assert error < 0.05, error  # of a fit whose weights stay small


@pytest.mark.parametrize("kind", ["network", "correction"])
def test_it_is_kept_with_the_denoiser(kind):
    network = wake(MLP([2], WIDTH, 2))
    denoiser = Denoiser(network, VarianceExploding())
    if kind == "correction":  # of an exact teacher
        denoiser = ExactTeacher(Mixture([[1.0, 0.0]], [[[0.5, 0.0], [0.0, 2.0]]]), VarianceExploding()).new_denoiser(
            network
        )
    assert "fastest" not in denoiser.recorded()
    denoiser.slow(4.0)
    read = from_spec(to_spec(denoiser))
    read.load_state_dict(denoiser.state_dict())
    x, t = torch.randn(8, 2), torch.full((8,), 3.0)
    assert read.fastest == 4.0 and torch.equal(read(x, t), denoiser(x, t))
    assert copy.deepcopy(read).with_network(MLP([2], WIDTH, 2)).network.embed.fastest == 4.0


def test_parts_of_a_routed_network_are_slowed_each():
    teacher = neural()
    made = Routed(2, by="label").make(teacher)
    made.slow(4.0)
    assert [part.embed.fastest for part in made.network.parts] == [4.0, 4.0]


@pytest.mark.parametrize("maker", [Copy(), Lora(2)])
def test_the_teacher_stays_as_it_is(maker):
    """Adapters see the level as the frozen network does, whose weights they share."""
    teacher = neural()
    before = {name: value.clone() for name, value in teacher.denoiser.state_dict().items()}
    made = maker.make(teacher)
    made.slow(4.0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.denoiser.state_dict().items())
    assert made.fastest == (4.0 if isinstance(maker, Copy) else None)
    assert teacher.denoiser.network.embed.fastest == 64.0


@pytest.mark.parametrize("fastest", [0.0, -1.0, 65.0, math.inf, "4", True])
def test_a_frequency_without_sense_is_refused(fastest):
    with pytest.raises(ValueError, match="fastest must"):
        Denoiser(MLP([2], 8, 1), VarianceExploding(), fastest=fastest)
