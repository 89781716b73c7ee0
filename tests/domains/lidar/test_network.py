"""The network of point sets: neither order nor company matters, nor how far the grid reaches."""

import pytest
import torch

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.guidance import guided
from distillkit.diffusion.process import DiscreteVarianceExploding
from distillkit.diffusion.start import Start
from distillkit.teachers.base import Teacher
from domains.lidar.codec import Completion
from domains.lidar.network import NOWHERE, PillarNet

SMALL = {"cell": 0.8, "extent": 6.4, "bins": 4, "channels": 8, "multipliers": (1, 1), "width": 16, "answer": 4}


def net(**more) -> PillarNet:
    """A small network whose output is not zero."""
    torch.manual_seed(0)
    made = PillarNet((24, 3), **(SMALL | more))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Points within the grid."""
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed)) * 5.6 - 2.8


def called(network: PillarNet, x: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(x, torch.full((len(x),), 0.3), {"part": part})


X, PART = drawn(2, 24), drawn(2, 5, seed=1)


def test_a_new_network_predicts_no_noise():
    assert not called(PillarNet((24, 3), **SMALL), X, PART).any()


def test_the_order_of_points_means_nothing():
    network, order = net(), torch.randperm(24, generator=torch.Generator().manual_seed(0))
    out = called(network, X, PART)
    assert out.std() > 0.1
    torch.testing.assert_close(called(network, X[:, order], PART), out[:, order], rtol=0, atol=1e-4)
    torch.testing.assert_close(called(network, X, PART.flip(1)), out, rtol=0, atol=1e-4)


def test_two_in_a_batch_are_as_two_alone():
    network = net()
    alone = torch.cat([called(network, X[i : i + 1], PART[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(called(network, X, PART), alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("levels", [1, 2])
def test_a_shift_by_whole_cells_of_the_coarsest_level_commutes(levels):
    """The grid's border is far: zeros beyond it are as cells without points, away from its edge."""
    network, by = net(extent=64.0, multipliers=(1,) * levels), torch.tensor([1.6, -0.8, 0.0]) * levels
    torch.testing.assert_close(called(network, X + by, PART + by), called(network, X, PART), rtol=0, atol=1e-3)


def test_a_point_that_is_lost_harms_its_own_set_alone():
    """A step whose loss is NaN is skipped; an index that is none would end the run."""
    lost = X.clone()
    lost[0, 0] = torch.nan
    made = called(net(), lost, PART)
    assert made[0, 0].isnan().all()
    torch.testing.assert_close(made[1], called(net(), X, PART)[1])


def test_half_precision_keeps_places_and_counts():
    """256 points of a cell are counted one by one, and places are read as they are."""
    cells, many = net().cells, torch.ones(1, 400, 1, dtype=torch.bfloat16)
    found = cells.gathered(many, torch.zeros(1, 400, dtype=torch.long))
    assert found.dtype == torch.bfloat16 and found[0, 0, 0, 0] == 1
    assert float(found[0, 1, 0, 0].float()) == pytest.approx(float(torch.tensor(401.0).log()), rel=2**-8)
    ramp = torch.arange(cells.side).expand(1, 1, cells.bins, cells.side, cells.side).bfloat16()
    read = cells.read(ramp, torch.tensor([[[4.0, 5.03, 1.5], [4.0, 5.04, 1.5]]]))[0, :, 0]
    assert read.tolist() == pytest.approx([4.53, 4.54], abs=1e-5)


def test_a_grid_that_covers_more_gives_the_same_within():
    network = net(extent=32.0)
    wider = network.covering(64.0)
    assert wider.ground is network.ground and network.cells.side == 40 and wider.cells.side == 80
    torch.testing.assert_close(called(wider, X, PART), called(network, X, PART), rtol=0, atol=1e-3)


def test_each_scan_matters_and_none_is_one_without_points():
    network = net()
    out, null = called(network, X, PART), network.null({"part": PART})["part"]
    assert null.shape == PART.shape and null.min() == NOWHERE
    without = called(network, X, null)
    assert (without - out).abs().max() > 1e-2
    torch.testing.assert_close(called(network, X, null[:, :1]), without, rtol=0, atol=1e-5)


def test_points_out_of_the_grid_count_for_its_border():
    far = X.clone()
    far[:, 0] = torch.tensor([50.0, 0.0, 9.0])
    assert called(net(), far, PART).isfinite().all()
    assert called(net(), X, torch.cat([PART, far[:, :1]], 1)).isfinite().all()


def test_a_point_reads_the_cell_it_lies_in():
    """A value of one cell is found in its middle, halved between two middles, gone further."""
    cells = net().cells
    volume = torch.zeros(1, 1, cells.bins, cells.side, cells.side)
    volume[0, 0, 1, 5, 2] = 1.0  # (z, x, y)
    units = torch.tensor([[[5.5, 2.5, 1.5], [6.0, 2.5, 1.5], [5.5, 3.0, 1.5], [5.5, 2.5, 2.0], [2.5, 5.5, 1.5]]])
    assert cells.read(volume, units)[0, :, 0].tolist() == pytest.approx([1, 0.5, 0.5, 0.5, 0])


def test_values_are_gathered_into_the_cell_they_lie_in():
    cells = net().cells
    points = torch.tensor([[[0.1, 0.1, 0.5], [0.3, 0.3, 0.6], [-2.9, 2.9, 3.9]]])
    place, within = cells.places(cells.units(points))
    assert within.abs().max() <= 0.5 and place[0, 0] == place[0, 1]
    found = cells.gathered(torch.tensor([[[1.0], [3.0], [7.0]]]), place).reshape(1, 4, 2, 8, 8)
    assert found[0, 2, :, 4, 4].tolist() == pytest.approx([2.0, float(torch.tensor(3.0).log())])
    assert found[0, 3, :, 0, 7].tolist() == pytest.approx([7.0, float(torch.tensor(2.0).log())])
    assert found.count_nonzero() == 4


@pytest.mark.parametrize("part", [torch.zeros(2, 5, 2), torch.zeros(2, 0, 3), torch.zeros(2, 5, 3).long()])
def test_what_is_no_scan_is_refused(part):
    with pytest.raises(ValueError, match=r"cond\['part'\] must hold scans"):
        net().check_context({"part": part})


@pytest.mark.parametrize("value", [float("nan"), 1e5])
def test_coordinates_that_are_no_metres_are_refused(value):
    with pytest.raises(ValueError, match="metres"):
        net().check_context({"part": torch.full((1, 2, 3), value)})


def teacher() -> Teacher:
    denoiser = Denoiser(net(), DiscreteVarianceExploding(), "eps")
    return Teacher(denoiser, (24, 3), context=("part",), codec=Completion(4), start=Start("part"))


def test_samples_have_as_many_points_as_their_scan_asks_for():
    assert teacher().generate(2, {"part": drawn(2, 6)}, 0, "ddim", torch.tensor([999.0, 500.0])).shape == (2, 24, 3)
    assert teacher().generate(3, {"part": drawn(3, 7)}, 0, "ddim", torch.tensor([999.0])).shape == (3, 28, 3)


def test_guidance_is_away_from_what_is_known_without_the_scan():
    own, cond = teacher(), {"part": PART}
    assert own.guidable and "classes" in own.facts()["provides"]
    t, null = torch.tensor(500.0), own.null_condition(cond)
    with_scan, without = (own.denoiser(X, t, known) for known in (cond, null))
    expected = without + 3.5 * (with_scan - without)
    torch.testing.assert_close(guided(own.denoiser, X, t, cond, null, 3.5), expected, rtol=1e-4, atol=1e-4)
    assert own.fingerprint() != Teacher(own.denoiser, (24, 3), context=("part",), codec=Completion(4)).fingerprint()
