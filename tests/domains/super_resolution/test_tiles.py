"""Tiles cover a photograph with weights that sum to one, share their noise, and equal the whole."""

from __future__ import annotations

import pytest
import torch
from helpers import wake
from mutations import Mutation, prove

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import ResShift
from distillkit.students.few_step import FewStepStudent
from domains.super_resolution.codec import Upscale
from domains.super_resolution.enlarge import Enlarger
from domains.super_resolution.network import PatchNet
from domains.super_resolution.tiles import BLOCK, Cuts, blended, how_many, noise

NETWORK = wake(PatchNet((3, 16, 16), width=8, depth=1))


def student(scale: int = 4, times: tuple[float, ...] = (0.99,), network=NETWORK, residual: bool = True):
    denoiser = Denoiser(network, ResShift(), "edm", 0.1)
    made = FewStepStudent(denoiser, times, (3, 16, 16), context=("low",), codec=Upscale(scale, residual))
    return made.requires_grad_(False).eval()


def photograph(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def sides(*more):
    return pytest.mark.parametrize(
        "side, tile, overlap, unit",
        [(1000, 128, 32, 4), (997 * 4, 512, 64, 4), (21, 12, 4, 4), (300, 128, 100, 4), *more],
    )


@sides((16, 16, 4, 4), (5, 16, 8, 4), (513, 512, 0, 1), (130, 128, 64, 2))
def test_weights_sum_to_one(side, tile, overlap, unit):
    cuts, total = Cuts(side, tile, overlap, unit), torch.zeros(side)
    weights = cuts.weights()
    assert weights.shape == (len(cuts.starts), cuts.size) and weights.min() >= 0
    for start, own in zip(cuts.starts, weights, strict=True):
        total[start : start + cuts.size] += own
    torch.testing.assert_close(total, torch.ones(side))


@sides()
def test_tiles_are_of_one_size_and_share_enough(side, tile, overlap, unit):
    cuts = Cuts(side, tile, overlap, unit)
    assert cuts.starts[0] == 0 and cuts.starts[-1] + cuts.size == side
    assert tile - unit < cuts.size <= tile and not any(start % unit for start in cuts.starts)
    shared = [cuts.size - (b - a) for a, b in zip(cuts.starts, cuts.starts[1:], strict=False)]
    assert min(shared) >= overlap
    assert len(cuts.starts) == 1 - (side - cuts.size) // -(
        (cuts.size - overlap) // unit * unit
    )  # no more than it takes


def test_the_ramp_is_linear_and_keeps_off_the_edges():
    left, right = Cuts(192, 128, 64, 1).weights()
    assert left[:80].eq(1).all() and left[112:].eq(0).all()  # 64 are shared, a quarter at each edge is not used
    torch.testing.assert_close(left[80:112], 1 - (torch.arange(32) + 0.5) / 32)
    torch.testing.assert_close(right[16:48], (torch.arange(32) + 0.5) / 32)
    near = Cuts(192, 128, 64, 1, reach=30).weights()[0]
    assert near[93] == 1 > near[94] > near[97] > near[98] == 0  # the whole reach, and a ramp of four


def test_tiles_without_pixels_of_their_own_are_refused():
    with pytest.raises(
        ValueError, match="tiles of 16 pixels that share 8 have fewer than 12 of their own: give a larger --tile"
    ):
        Cuts(48, 16, 8, 12)


@pytest.mark.parametrize("height, width", [(61, 47), (1, 90), (40, 1), (7, 5)])
def test_an_image_is_put_together_from_its_tiles(height, width):
    image, calls = photograph(height, width), []

    def make(corners, size):
        calls.append(len(corners))
        return torch.stack([image[:, y : y + size[0], x : x + size[1]] for y, x in corners])

    bands = [*blended(make, (height, width), 16, 6, 2, batch=3)]
    torch.testing.assert_close(torch.cat(bands, 1), image)
    assert max(calls) <= 3 and sum(calls) == how_many((height, width), 16, 6, 2)
    assert max(band.shape[1] for band in bands) <= 16


def test_noise_is_unit_gaussian_and_shared_by_parts():
    whole = noise(3, 1, 3, (BLOCK - 9, 5), (300, 200))
    assert abs(whole.mean()) < 0.01 and abs(whole.std() - 1) < 0.01
    assert torch.equal(noise(3, 1, 3, (BLOCK + 1, 40), (20, 90)), whole[:, 10:30, 35:125])
    others = [noise(*other, 3, (BLOCK - 9, 5), (300, 200)) for other in ((4, 1), (3, 0))]
    for other in (*others, whole.roll(BLOCK, 1), whole.roll(BLOCK, 2)):
        assert abs((whole * other).mean()) < 0.01
    assert abs((whole[0] * whole[1]).mean()) < 0.01


def tiled(scale, times, height, width, extra=4, overlap=None, residual=True):
    """The largest difference of a photograph in tiles from the whole, and the number of tiles."""
    own, low = student(scale, times, residual=residual), photograph(height, width)
    whole = Enlarger(own, scale, 7, None, None, 0)
    size = (scale * height, scale * width)
    expected = whole.tiles(low, [(0, 0)], size)[0]
    overlap = 2 * whole.reach + extra if overlap is None else overlap
    tile = overlap + 5 * whole.unit
    one = Enlarger(own, scale, 7, None, tile, overlap)
    bands = [*blended(lambda *asked: one.tiles(low, *asked), size, tile, overlap, one.unit, one.reach)]
    return (torch.cat(bands, 1) - expected).abs().max().item(), how_many(size, tile, overlap, one.unit)


@pytest.mark.parametrize(
    "scale, times, height, width",
    [
        (2, (0.99,), 47, 53),
        (3, (0.99,), 41, 31),
        (4, (0.99,), 37, 29),
        (8, (0.99,), 23, 17),
        (4, (0.99, 0.5), 53, 3),
        (4, (0.99,), 1, 43),
    ],
)
def test_tiles_equal_the_whole(scale, times, height, width):
    """Everywhere, at seams and at the photograph's borders, where the overlap holds the reach."""
    difference, num = tiled(scale, times, height, width)
    assert num > 1 and difference < 1e-5


def test_photographs_that_are_diffused_themselves():
    assert tiled(4, (0.99,), 37, 29, residual=False)[0] < 1e-5


def test_a_small_overlap_differs_a_little():
    difference, _ = tiled(4, (0.99,), 37, 29, overlap=16)
    assert 1e-5 < difference < 0.5


def test_each_step_has_noise_of_its_own():
    own, low = student(4, (0.99, 0.5)), photograph(5, 9)
    cond, draws = {"low": low[None]}, [noise(7, i, 3, (0, 0), (20, 36))[None] for i in range(2)]
    with torch.no_grad():
        expected = own.codec.decode(own(draws[0], cond, draws.__getitem__), cond)
    assert torch.equal(Enlarger(own, 4, 7, None, None, 0).tiles(low, [(0, 0)], (20, 36)), expected)


def test_the_reach():
    """A pixel depends on noise, and on an observation, no farther than that, and hardly less."""
    own, low = student(4, (0.99, 0.5)), photograph(3, 40)
    reach = Enlarger(own, 4, 0, None, None, 0).reach
    draws = torch.randn(2, 1, 3, 12, 160, generator=torch.Generator().manual_seed(0))
    made = own(draws[0], {"low": low[None]}, draws.__getitem__)
    far = 80  # from this column on everything is changed
    low, draws = low.clone(), draws.clone()
    low[..., far // 4 :], draws[..., far:] = 0, 0
    changed = (own(draws[0], {"low": low[None]}, draws.__getitem__) != made).any(2).any(1)[0].nonzero().min()
    assert reach - 12 <= far - changed <= reach


def equal():
    assert max(tiled(4, (0.99, 0.5), 61, 37)[0], tiled(2, (0.99,), 47, 53)[0]) < 1e-5


ramp, each = test_the_ramp_is_linear_and_keeps_off_the_edges, test_each_step_has_noise_of_its_own
MUTATIONS = [
    Mutation("the ramp beside the middle", Cuts.weights, "+ self.size) / 2", "+ self.size) / 2 + 8", equal),
    Mutation("all of the overlap as the ramp", Cuts.__init__, "overlap - 2 * reach if", "overlap if", ramp),
    Mutation("noise of the tile's own", noise, "for i in rows", "for i in range(len(rows))", equal),
    Mutation("the reach of one step", Enlarger.__init__, "student.num_steps * reach", "reach", test_the_reach),
    Mutation("tiles that cut patches", Enlarger.__init__, "math.lcm(scale,", "max(scale, 0 *", equal),
    Mutation("one draw", Enlarger.tiles, "self.seed, i,", "self.seed, 0,", each),
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_fault_shows(mutation):
    prove(mutation)
