"""Range images for training and evaluation, the rays that are given of them, and the codec."""

import pytest
import torch
from mutations import Mutation, prove

from domains.lidar import range_data
from domains.lidar.projection import image, levels, scan_image
from domains.lidar.range_data import HeldOut, StreetRanges, Sweeps, Turned
from domains.lidar.rays import BetweenRays, between_beams, given, is_given, nearest_beam

FARTHEST = 50.0


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def plane(elevations: torch.Tensor, width: int, height: float = 2.0) -> torch.Tensor:
    """The image of the ground below the sensor, with one reflectance for each beam."""
    ranges = (height / torch.deg2rad(-elevations).sin())[:, None].expand(-1, width)
    return image(ranges, torch.linspace(0.2, 0.6, len(elevations))[:, None].expand(-1, width), FARTHEST)


# Rays


def test_one_beam_in_so_many_is_given():
    x = drawn(2, 2, 8, 5)
    rays = given(x, 4, torch.tensor([0, 3]))
    assert is_given(rays).all(-1).nonzero().tolist() == [[0, 0], [0, 4], [1, 3], [1, 7]]
    assert torch.equal(rays[0, :2, [0, 4]], x[0, :, [0, 4]]) and torch.equal(rays[1, :2, 7], x[1, :, 7])
    hidden = ~is_given(rays)[:, None].expand_as(rays)
    assert set(rays[hidden].tolist()) == {-1.0} and set(rays[:, 2].unique().tolist()) == {-1.0, 1.0}


def test_the_nearest_beam():
    x = torch.arange(8.0)[:, None].expand(1, 2, 8, 3) / 10
    near = nearest_beam(given(x, 4, torch.tensor([1])))[0, 0, :, 0]
    torch.testing.assert_close(near, torch.tensor([0.1, 0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5]))


def test_planes_are_exact_between_beams():
    """Up to the sine's curvature: the ground from 2 m, of beams half a degree apart."""
    elevations = torch.linspace(-8, -16, 17)
    x = plane(elevations, 6)[None]
    made = between_beams(given(x, 4, torch.tensor([0])), FARTHEST)
    torch.testing.assert_close(made[0, 1], x[0, 1])
    assert (made[0, 0] - x[0, 0]).abs().max() < 2e-4 < (nearest_beam(given(x, 4, torch.tensor([0]))) - x).abs().max()


def test_what_is_not_between_two_returns_is_the_nearest_beam():
    x = plane(torch.linspace(-8, -16, 9), 4)[None].clone()
    x[0, :, 0, 1] = -1  # nothing returns from the first beam there
    rays = given(x, 4, torch.tensor([0]))
    made, near = between_beams(rays, FARTHEST), nearest_beam(rays)
    assert torch.equal(made[0, :, :5, 1], near[0, :, :5, 1])
    assert not torch.equal(made[0, :, :5, 0], near[0, :, :5, 0])
    late = given(x, 4, torch.tensor([2]))  # beams 0, 1, 7 and 8 lie beyond 2 and 6
    assert torch.equal(between_beams(late, FARTHEST)[0, :, [0, 1, 7, 8]], nearest_beam(late)[0, :, [0, 1, 7, 8]])


def test_the_codec_returns_the_data_and_keeps_given_rays():
    data = torch.cat([plane(torch.linspace(-4, -12, 8), 6)[None], drawn(1, 2, 8, 6)])
    batch, codec = {"data": data, "rays": given(data, 4, torch.tensor([0, 2]))}, BetweenRays(FARTHEST)
    x, kept = codec.encode(batch), is_given(batch["rays"])[:, None].expand_as(data)
    torch.testing.assert_close(codec.decode(x, batch), data)
    assert x[kept].abs().max() < 1e-3
    moved = codec.decode(x + 0.3, batch) - data
    assert not moved[kept].any() and (moved[~kept] > 0).all()


def test_small_differences_are_widened():
    """To the square root of their size: 0.01 is kept as 0.1, -0.25 as -0.5."""
    data = torch.zeros(1, 2, 4, 1)
    data[0, 1, :, 0] = torch.tensor([0.0, 0.01, -0.25, 0.0])
    batch = {"data": data, "rays": given(data, 3, torch.tensor([0]))}
    torch.testing.assert_close(BetweenRays(FARTHEST).encode(batch)[0, 1, :, 0], torch.tensor([0.0, 0.1, -0.5, 0.0]))


FAULTS = [
    Mutation(
        "linear in range",
        between_beams,
        "1 / torch.lerp(1 / near, 1 / far, share)",
        "torch.lerp(near, far, share)",
        test_planes_are_exact_between_beams,
    ),
    Mutation("weights swapped", between_beams, "(row - above)", "(below - row)", test_planes_are_exact_between_beams),
    Mutation(
        "a lone return is extended",
        between_beams,
        "ranges > NEAR",
        "made[:, :1] < 9",
        test_what_is_not_between_two_returns_is_the_nearest_beam,
    ),
    Mutation("the farther beam", nearest_beam, "<=", ">=", test_the_nearest_beam),
    Mutation(
        "given rays are sampled",
        BetweenRays.decode,
        "is_given(rays)",
        "is_given(-rays)",
        test_the_codec_returns_the_data_and_keeps_given_rays,
    ),
    Mutation("no phase", given, "- first[:, None]", "- 0 * first[:, None]", test_one_beam_in_so_many_is_given),
]


@pytest.mark.parametrize("mutation", FAULTS, ids=str)
def test_faults_are_noticed(mutation):
    prove(mutation)


# Data sets


def test_training_images_are_turned_and_mirrored_whole():
    """Every sample is an image of the data, rolled by some fine columns, perhaps mirrored."""
    images = drawn(3, 2, 4, 16)
    data = Turned(images, 8, 2, seed=0)
    batch = data[torch.arange(40)]
    assert batch["data"].shape == (40, 2, 4, 8) and batch["rays"].shape == (40, 3, 4, 8)
    known = [x.roll(turn, -1)[..., ::2] for x in images for turn in range(16)]
    known = torch.stack(known + [x.flip(-1) for x in known])
    found = (batch["data"][:, None] == known).flatten(2).all(2)
    assert (found.sum(1) == 1).all()
    which = found.int().argmax(1)
    assert len(which.unique()) > 20 and (which < 48).any() and (which >= 48).any()
    first = is_given(batch["rays"])[:, :, 0].int().argmax(1)
    assert set(first.tolist()) == {0, 1}


def test_a_sample_follows_from_its_index():
    data = Turned(drawn(3, 2, 4, 16), 8, 2, seed=0)
    one, other = data[torch.tensor([7, 3])], data[torch.tensor([3, 9])]
    assert all(torch.equal(one[name][1], other[name][0]) for name in one)
    assert not torch.equal(Turned(data.images, 8, 2, seed=1)[torch.tensor([7, 3])]["data"], one["data"])


def test_held_out_images_come_with_every_first_beam():
    images = drawn(3, 2, 4, 8)
    data = HeldOut(images, 2, images + 1)
    batch = data[torch.arange(len(data))]
    assert len(data) == 6 and torch.equal(batch["data"], torch.cat([images, images]))
    assert is_given(batch["rays"])[:, 0, 0].tolist() == [True] * 3 + [False] * 3
    again = data.again(torch.arange(6))
    assert torch.equal(again["data"], batch["data"] + 1) and torch.equal(again["rays"], batch["rays"])


@pytest.fixture(scope="module")
def data():
    made = StreetRanges()
    made.setup()
    return made


def test_the_embedded_streets(data):
    assert data.event_shape == (2, 32, 256) and len(data.test) == 48 == len(data.val)
    assert data.train.images.shape == (72, 2, 32, 512)
    assert len(data.elevations) == 32 and (data.elevations.diff() < 0).all()
    hits = (data.test[torch.arange(12)]["data"][:, 0] > -1).float().mean()
    assert 0.6 < hits < 0.95
    again = data.test.again(torch.arange(12))["data"] - data.test[torch.arange(12)]["data"]
    assert 0 < again[:, 0].abs().median() < 0.01  # some centimetres


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"every": 1}, "every must be at least 2"),
        ({"every": 40}, "every must be at most 32"),
        ({"farthest": 1.0}, "farthest must lie in"),
        ({"height": 0}, "height must be at least 2"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        StreetRanges(**settings)


def test_sizes_that_the_sensor_does_not_have_are_refused(monkeypatch):
    monkeypatch.setattr(StreetRanges, "sweeps", lambda *_: Sweeps(drawn(2, 2, 64, 512), torch.arange(64.0)))
    with pytest.raises(ValueError, match="images of 48 x 256 pixels cannot be taken from 64 x 512"):
        StreetRanges(height=48).setup()


def test_images_of_panoramas_are_those_of_their_scans():
    """The pixels of the shipped images are the cells into which their points fall."""
    shot = range_data.streets.panoramas("test")[0]
    made = scan_image(shot.scan, shot.elevations, 512, FARTHEST)
    assert torch.equal(made[0] > -1, levels(shot.ranges, FARTHEST) > -1)
    torch.testing.assert_close(made, image(shot.ranges, shot.reflectance, FARTHEST), rtol=0, atol=1e-4)
