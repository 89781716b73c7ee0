"""Random numbers as a function of their place, and draws by inverse distribution functions."""

import pytest
import torch
from helpers import f64

from distillkit.discrete.noise import Noise, draw, fresh, split_mix

LAST = 1 - 2.0**-53  # the largest number below 1
either = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def drawn(shares, place, here=-1, dtype=torch.float64):
    """The states reached from `here` by a position that leaves, for each place."""
    shares, place = torch.as_tensor(shares, dtype=dtype), torch.as_tensor(place, dtype=torch.float64)
    x = torch.full(place.shape, here % len(shares))
    leaving = Noise(torch.full_like(place, LAST), place)
    return draw(shares.expand(*place.shape, -1), x, leaving)


def test_the_generator_is_split_mix():
    """The published outputs for the seed 1234567."""
    words = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    states = [(1234567 + k * 0x9E3779B97F4A7C15) % 2**64 for k in range(5)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    assert [word % 2**64 for word in split_mix(signed).tolist()] == words


def test_the_noise_is_uniform_and_its_numbers_do_not_go_together():
    noise, other = fresh(0, 400, 250)(0), fresh(1, 400, 250)(0)
    for u in (noise.move, noise.place):
        assert u.dtype == torch.float64 and u.min() >= 0 and u.max() < 1 and (u < 2.0**-12).any()
        cells = (u * 100).long().flatten().bincount(minlength=100)
        assert ((cells - 1000) ** 2 / 1000).sum() < 99 + 5 * 198**0.5
    u = noise.move - 0.5
    partners = [u.roll(1, 0), u.roll(1, 1), noise.place - 0.5, fresh(0, 400, 250)(1).move - 0.5, other.move - 0.5]
    for partner in partners:  # another sequence, position, purpose, call, seed
        assert abs(float((12 * u * partner).mean())) < 4.5 / 100_000**0.5


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, 2**64 - 1])
def test_the_noise_of_a_sequence_is_the_same_in_every_batch(seed):
    whole, part = fresh(seed, 40, 3)(2), fresh(seed, 7, 3, first=13)(2)
    assert torch.equal(whole.place[13:20], part.place) and torch.equal(whole.move[13:20], part.move)
    longer = fresh(seed, 40, 5)(2)
    assert torch.equal(longer.move[:, :3], whole.move)


@either
@pytest.mark.parametrize("size", [2, 3, 7, 16, 17, 502])
def test_every_state_has_its_share_of_the_places(dtype, size):
    """Places on an even grid: no state is off by more than the ends of its interval."""
    generator = torch.Generator().manual_seed(size)
    shares = torch.rand(size, generator=generator, dtype=dtype) ** 4
    shares[torch.rand(size, generator=generator) < 0.3] = 0
    here = size // 2
    shares[0 if here else 1] = 0.5
    grid = (torch.arange(20_000) + 0.5) / 20_000
    found = drawn(shares, grid.double(), here, dtype).bincount(minlength=size)
    others = shares.double().index_fill(0, torch.tensor(here), 0)
    expected = 20_000 * others / others.sum()
    assert (found - expected).abs().max() <= 1 and (found[others == 0] == 0).all()


@either
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-30])
def test_no_rounding_leads_to_an_impossible_state_or_to_the_own_one(dtype, scale):
    """Zeros and the current state at both ends; places at the ends and around every boundary."""
    shares = torch.zeros(40, dtype=torch.float64)
    shares[3:37] = torch.rand(34, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale
    shares[[7, 8, 20]] = f64(0, 0, 1e-12 * scale)
    for here in (0, 3, 20, 36, 39):
        others = shares.to(dtype).double().index_fill(0, torch.tensor(here), 0)
        ends = others.cumsum(0) / others.sum()
        places = torch.cat([f64(0, 5e-324, 2.0**-53, LAST), *(ends + k * 2.0**-53 for k in range(-3, 4))])
        for mine in (shares, shares.index_fill(0, torch.tensor(here), 0.5)):  # whatever the own entry is
            reached = drawn(mine, places.clamp(0, LAST), here, dtype)
            assert (others[reached] > 0).all()


def test_a_state_of_a_millionth_of_a_millionth_has_its_interval():
    shares = torch.full((300,), 1e-12, dtype=torch.float64)
    shares[[0, 150]] = 0.5
    middle = (f64(0) + (torch.arange(298) + 0.5)) * 1e-12
    first, second = torch.arange(1, 150), torch.arange(151, 299)
    total = float(shares[:299].sum())
    assert torch.equal(drawn(shares, (0.5 + middle[:149]) / total), first)
    assert torch.equal(drawn(shares, (1.0 + middle[149:297]) / total), second)


def test_where_nothing_else_is_possible_the_position_stays():
    assert drawn([0.0, 0.9999999, 0.0], f64(0, 0.5, LAST), here=1).tolist() == [1, 1, 1]
    assert drawn([0.0, 0.0, 5e-324, 0.0], f64(0, 0.5, LAST), here=0).tolist() == [2, 2, 2]  # the smallest number


def test_a_running_sum_that_does_not_rise_evenly_leads_to_no_impossible_state(monkeypatch):
    """Sums in parallel round each entry by itself, as graphics cards do."""
    plain = torch.Tensor.cumsum
    jitter = 4e-16 * f64(0, 1, -1, 2, 0, 1).repeat(7)
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, dim: plain(self, dim) + jitter[: self.shape[dim]])
    shares = f64(0, 0.25, 0, 0, 0.25, 0, 0.5, 0, 0)
    places = torch.cat([share + 1e-16 * torch.arange(-9, 10) for share in f64(0, 0.25, 0.5, 1)]).clamp(0, LAST)
    assert (shares[drawn(shares, places)] > 0).all()
