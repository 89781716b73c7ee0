"""The ray caster against closed forms."""

import math

import pytest
import torch

from distillkit.rendering.cameras import check, look_at, pose, project, rays
from domains.scene.coarse import unprojected
from domains.scene.rooms import ARC, FINE, FRAMES, LIGHT, SOLIDS, SQUARE, Rooms, cast, drawn, render

D = torch.float64


def room(**changes) -> Rooms:
    """An empty room of 4 x 6 x 2 metres with walls of one grey each, which `changes` furnish."""
    grey = torch.arange(1, 7, dtype=D)[:, None, None].expand(6, 2, 3) / 10
    empty = {
        "half": torch.tensor([2.0, 3.0, 1.0], dtype=D),
        "paint": grey,
        "balls": torch.zeros(SOLIDS, 3, dtype=D),
        "radii": torch.zeros(SOLIDS, dtype=D),
        "boxes": torch.zeros(SOLIDS, 3, dtype=D),
        "sides": torch.zeros(SOLIDS, 3, dtype=D),
        "turns": torch.zeros(SOLIDS, dtype=D),
        "colours": torch.eye(6, 3, dtype=D),
    }
    return Rooms(**{name: value[None] for name, value in (empty | changes).items()})


def ray(*direction: float, origin=(0.5, 0.0, 1.0)) -> tuple[torch.Tensor, torch.Tensor]:
    towards = torch.tensor(direction, dtype=D)
    return torch.tensor(origin, dtype=D)[None, None], (towards / towards.norm())[None, None, None]


def only(value: float, i: int = 0) -> torch.Tensor:
    return torch.where(torch.arange(SOLIDS) == i, value, 0.0).to(D)


@pytest.mark.parametrize(
    ("direction", "distance", "face", "normal"),
    [
        ((-1, 0, 0), 2.5, 1, (1, 0, 0)),
        ((1, 0, 0), 1.5, 2, (-1, 0, 0)),
        ((0, -1, 0), 3.0, 3, (0, 1, 0)),
        ((0, 1, 0), 3.0, 4, (0, -1, 0)),
        ((0, 0, -1), 1.0, 5, (0, 0, 1)),
        ((0, 0, 1), 1.0, 6, (0, 0, -1)),
        ((1, 1, 0), 1.5 * 2**0.5, 2, (-1, 0, 0)),
    ],
)
def test_a_ray_hits_the_wall_that_it_goes_to(direction, distance, face, normal):
    colour, found = cast(room(), *ray(*direction))
    lit = 0.7 + 0.3 * sum(n * light for n, light in zip(normal, LIGHT, strict=True))
    assert found.item() == pytest.approx(distance, abs=1e-6)
    assert colour.flatten().tolist() == pytest.approx([face / 10 * lit] * 3, abs=1e-6)


def test_the_floor_is_checkered():
    paint = torch.zeros(6, 2, 3, dtype=D)
    paint[4, 1] = 1
    colours = []
    for x, y in ((0.1, 0.1), (0.1 - SQUARE, 0.1), (0.1, 0.1 + SQUARE), (0.1 + SQUARE, 0.1 + SQUARE)):
        colours.append(cast(room(paint=paint), *ray(0, 0, -1, origin=(x, y, 1.0)))[0].max().item() > 0)
    assert colours == [False, True, True, False]


def test_a_ball_is_hit_where_it_should_be_and_lit_from_its_side():
    things = room(balls=torch.tensor([[-1.0, 0.0, 1.0]] * SOLIDS, dtype=D), radii=only(0.3, 1))
    colour, distance = cast(things, *ray(-1, 0, 0))
    assert distance.item() == pytest.approx(1.5 - 0.3)
    assert colour.flatten().tolist() == pytest.approx([0, 0.7 + 0.3 * LIGHT[0], 0])
    assert cast(things, *ray(1, 0, 0))[1].item() == pytest.approx(1.5)  # behind the camera


def test_a_turned_box_is_hit_at_its_edge():
    things = room(
        boxes=torch.tensor([[-1.0, 0.0, 1.0]] * SOLIDS, dtype=D),
        sides=only(0.2, 2)[:, None] * torch.tensor([1.0, 1.0, 3.0], dtype=D),
        turns=torch.full((SOLIDS,), math.pi / 4, dtype=D),
    )
    distance = cast(things, *ray(-1, 1e-6, 0))[1].item()
    assert distance == pytest.approx(1.5 - 0.2 * 2**0.5, abs=1e-5)
    above = cast(things, *ray(-1, 0, 0, origin=(0.5, 0.0, 1.0 + 0.61)))[1].item()
    assert above == pytest.approx(2.5)
    turned = things._replace(colours=torch.ones(1, 6, 3, dtype=D))
    right, left = (cast(turned, *ray(-1, y, 0))[0].flatten()[0].item() for y in (0.01, -0.01))
    normal = 0.5**0.5
    assert right == pytest.approx(0.7 + 0.3 * normal * (LIGHT[0] + LIGHT[1]))
    assert left == pytest.approx(0.7 + 0.3 * normal * (LIGHT[0] - LIGHT[1]))


def test_a_box_is_turned_to_the_left():
    """From x towards y: the side at b is met at (b + y cos) / sin, y off the middle."""
    turn, y, wide = 0.5, 0.05, torch.tensor([0.3, 0.1, 0.6], dtype=D)
    things = room(
        boxes=torch.zeros(SOLIDS, 3, dtype=D),
        sides=only(1.0)[:, None] * wide,
        turns=torch.full((SOLIDS,), turn, dtype=D),
    )
    distance = cast(things, *ray(-1, 0, 0, origin=(1.5, y, 0.3)))[1].item()
    assert distance == pytest.approx(1.5 - (0.1 + y * math.cos(turn)) / math.sin(turn), abs=1e-6)


def test_the_outline_of_a_ball_has_the_size_of_its_cone():
    """A ball at distance d, seen in the middle, is a disc of the angular radius asin(r / d)."""
    radius, fov, side = 0.4, 0.9, 96
    things = room(balls=torch.tensor([[0.0, 0.0, 1.0]] * SOLIDS, dtype=D), radii=only(radius))
    eye = torch.tensor([[1.8, 0.3, 1.2]], dtype=D)
    camera = look_at(eye, torch.tensor([[0.0, 0.0, 1.0]], dtype=D), fov)
    away = (eye - torch.tensor([0.0, 0.0, 1.0], dtype=D)).norm().item()
    picture, depth = render(things, camera[None], side, side)
    found = (depth < away).double().sum().item()
    tangent = math.tan(math.asin(radius / away)) / math.tan(fov / 2) * side / 2
    assert found == pytest.approx(math.pi * tangent**2, rel=0.02)
    assert depth.min().item() == pytest.approx(away - radius, abs=1e-3)
    assert picture.shape == (1, 3, 1, side, side)


def test_the_depth_of_a_wall_is_the_same_everywhere():
    """Along the camera's axis, not along the ray."""
    camera = look_at(torch.tensor([[0.0, 0.0, 1.0]], dtype=D), torch.tensor([[1.0, 0.0, 1.0]], dtype=D), 0.6)
    _, depth = render(room(half=torch.tensor([2.0, 9.0, 5.0], dtype=D)), camera[None], 8, 8)
    torch.testing.assert_close(depth, torch.full_like(depth, 2.0))


def test_a_pixel_is_the_mean_of_its_rays():
    scenes, cameras = drawn(torch.tensor([5]))
    fine, _ = render(scenes, cameras, 16, 16)
    origin, direction = rays(cameras, 32, 32)
    every = cast(scenes, origin, direction.flatten(2, 3))[0].unflatten(-1, (16, FINE, 16, FINE))
    torch.testing.assert_close(fine, every.mean((-3, -1)) * 2 - 1)


def test_rooms_are_functions_of_their_seeds():
    scenes, cameras = drawn(torch.tensor([3, 7, 3]))
    for value in (*scenes, cameras):
        assert torch.equal(value[0], value[2]) and not torch.equal(value[0], value[1])
    assert torch.equal(drawn(torch.tensor([7]))[1][0], cameras[1])


def test_cameras_go_along_an_arc_inside_the_room_and_outside_of_solids():
    scenes, cameras = drawn(torch.arange(300))
    check(cameras)
    place = pose(cameras)[..., :3, 3]
    assert (place[..., :2].abs() < scenes.half[:, None, :2]).all() and (place[..., 2] > 0.3).all()
    assert (place[..., 2] < 2 * scenes.half[:, None, 2]).all()
    azimuth = torch.atan2(place[..., 1], place[..., 0])
    step = torch.remainder(azimuth.diff(dim=1) + math.pi, 2 * math.pi) - math.pi
    gone = step.sum(1).abs()
    assert step.shape[1] == FRAMES - 1 and ARC[0] - 1e-5 <= gone.min() and gone.max() <= ARC[1] + 1e-5
    assert 0.3 < (step.sum(1) > 0).float().mean() < 0.7  # either way round
    gap = (place[:, :, None, :2] - scenes.balls[:, None, :, :2]).norm(dim=-1) - scenes.radii[:, None]
    wide = scenes.sides[..., :2].norm(dim=-1)
    assert gap.min() > 0.2
    assert ((place[:, :, None, :2] - scenes.boxes[:, None, :, :2]).norm(dim=-1) - wide[:, None]).min() > 0.2
    balls, boxes = (scenes.radii > 0).sum(1), (scenes.sides[..., 0] > 0).sum(1)
    assert balls.min() == boxes.min() == 1 and balls.max() == boxes.max() == 3 and (balls + boxes).min() == 3
    _, depth = render(Rooms(*(value[:20] for value in scenes)), cameras[:20])
    assert depth.isfinite().all() and depth.min() > 0.2


def test_depths_put_pixels_where_every_other_camera_sees_them():
    """What two cameras see of one point is one colour, where nothing is before it."""
    scenes, cameras = drawn(torch.arange(40, 44))
    pictures, depth = render(scenes, cameras, 48, 48)
    points = unprojected(depth[:, :, :1], cameras[:, :1]).flatten(1, 3)
    pixels, away = project(cameras[:, 4], points, 48, 48)
    at = pixels / 24 - 1
    seen = torch.nn.functional.grid_sample(depth[:, :, 4], at[:, None], "nearest", align_corners=False)[:, 0, 0]
    there = (at.abs() < 0.98).all(-1) & ((seen - away).abs() < 0.02 * away)
    assert 0.4 < there.float().mean() < 0.95  # the rest is hidden, or out of the picture
    colours = torch.nn.functional.grid_sample(pictures[:, :, 4], at[:, None], align_corners=False)[:, :, 0]
    apart = (colours - pictures[:, :, 0].flatten(2)).abs().amax(1)[there]
    assert apart.median() < 0.01 and (apart > 0.1).float().mean() < 0.2  # contours and squares' edges
