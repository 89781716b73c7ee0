"""Cameras against each other, and against the projection of OpenCV written out."""

import math

import pytest
import torch

from distillkit.rendering.cameras import (
    angles,
    camera_of,
    check,
    from_opencv,
    inside,
    intrinsics,
    look_at,
    orbit,
    pose,
    project,
    rays,
    to_opencv,
)


@pytest.fixture
def cameras():
    draw = torch.Generator().manual_seed(0)
    azimuth, elevation, distance, fovy = torch.rand(4, 7, generator=draw, dtype=torch.float64)
    return orbit(azimuth * 6 - 3, elevation * 2.4 - 1.2, distance + 1.5, fovy + 0.4)


def test_orbit_in_closed_form():
    """In front, x is towards the camera, y to the right and z up; on y, -x is to the right."""
    front, side, tilted = orbit(torch.tensor([0, math.pi / 2, 0]), torch.tensor([0, 0, math.pi / 4]), 2.0, math.pi / 2)
    close = dict(rtol=0, atol=1e-6)
    expected = torch.tensor([[0.0, 0, 1, 2], [1, 0, 0, 0], [0, 1, 0, 0]])
    torch.testing.assert_close(front, torch.cat([expected.flatten(), torch.ones(1)]), **close)
    expected = torch.tensor([[-1.0, 0, 0, 0], [0, 0, 1, 2], [0, 1, 0, 0]])
    torch.testing.assert_close(side[:12].view(3, 4), expected, **close)
    h = 0.5**0.5
    torch.testing.assert_close(
        tilted[:12].view(3, 4), torch.tensor([[0.0, -h, h, 2 * h], [1, 0, 0, 0], [0, h, h, 2 * h]]), **close
    )


def test_orbits_look_at_the_origin(cameras):
    check(cameras)
    pixels, depth = project(cameras, torch.zeros(7, 1, 3, dtype=cameras.dtype), 30, 50)
    torch.testing.assert_close(pixels, torch.tensor([25.0, 15.0]).double().expand(7, 1, 2))
    torch.testing.assert_close(depth[:, 0], angles(cameras)[2])
    torch.testing.assert_close(
        cameras, look_at(pose(cameras)[:, :3, 3], torch.zeros(7, 3).double(), 2 * cameras[:, 12].atan())
    )


def test_angles_turn_orbits_round():
    given = torch.tensor([-2.0, 0.3, 3.0]), torch.tensor([-1.0, 0.2, 1.4]), torch.tensor([1.5, 2.0, 3.0])
    for found, value in zip(angles(orbit(*given, 0.8)), given, strict=True):
        torch.testing.assert_close(found, value)


def test_conventions_there_and_back(cameras):
    c2w = pose(cameras)
    assert torch.equal(from_opencv(to_opencv(c2w)), c2w) and torch.equal(to_opencv(from_opencv(c2w)), c2w)
    cv = to_opencv(c2w)
    assert torch.equal(cv[..., 3], c2w[..., 3]) and torch.equal(cv[..., 0], c2w[..., 0])
    assert torch.equal(cv[..., :3, 1], -c2w[..., :3, 1]) and torch.equal(cv[..., :3, 2], -c2w[..., :3, 2])
    assert torch.equal(camera_of(c2w, cameras[:, 12]), cameras) and torch.equal(
        c2w[:, 3], c2w.new_tensor([[0, 0, 0, 1]]).expand(7, 4)
    )


def test_points_on_rays_are_seen_in_their_pixels(cameras):
    height, width = 6, 9
    origins, towards = rays(cameras, height, width)
    torch.testing.assert_close(towards.norm(dim=-1), torch.ones(7, height, width).double())
    points = origins[:, None, None] + towards * torch.linspace(0.5, 3, height * width).view(height, width, 1)
    pixels, depth = project(cameras, points.flatten(1, 2), height, width)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    expected = torch.stack([column + 0.5, row + 0.5], -1).flatten(0, 1).double()
    assert (pixels - expected).abs().max() < 1e-4 and (depth > 0).all()
    single, _ = project(*(x.float() for x in (cameras, points.flatten(1, 2))), height, width)
    assert (single - expected).abs().max() < 1e-4


def test_the_first_ray_goes_to_the_upper_left():
    """By hand: an image of 2 x 4 pixels, a field of view of 90 degrees, seen from the front."""
    _, towards = rays(orbit(0.0, 0.0, 2.0, math.pi / 2), 2, 4)
    expected = torch.tensor([-1.0, -1.5, 0.5])  # ahead is -x, the left is -y
    torch.testing.assert_close(towards[0, 0, 0], expected / expected.norm())


def test_projection_is_that_of_opencv(cameras):
    draw = torch.Generator().manual_seed(1)
    points = torch.rand(7, 20, 3, generator=draw, dtype=torch.float64) - 0.5
    pixels, depth = project(cameras, points, 48, 64)
    w2c, matrix = torch.linalg.inv(to_opencv(pose(cameras))), intrinsics(cameras, 48, 64)
    seen = points @ w2c[:, :3, :3].mT + w2c[:, None, :3, 3]
    on_screen = seen @ matrix.mT
    torch.testing.assert_close(depth, seen[..., 2])
    assert (pixels - on_screen[..., :2] / on_screen[..., 2:]).abs().max() < 1e-4


def test_many_views_of_many_scenes_at_once(cameras):
    views = torch.stack([cameras, cameras.flip(0)], 1)
    origins, towards = rays(views, 3, 4)
    assert origins.shape == (7, 2, 3) and torch.equal(towards[:, 0], rays(cameras, 3, 4)[1])
    check(views)


def test_straight_down():
    eye = torch.tensor([[0.0, 0, 3]])
    camera = look_at(eye, torch.zeros(1, 3), 0.7)
    check(camera)
    torch.testing.assert_close(camera, orbit(0.0, math.pi / 2, 3.0, 0.7), rtol=0, atol=1e-6)


def test_inside():
    camera = orbit(0.3, 0.2, torch.tensor([0.5, 1.5]), 0.8)
    assert inside(camera, 1.0).tolist() == [True, False]


def test_what_is_no_camera_is_refused():
    def changed(index, value):
        camera = orbit(torch.zeros(2), 0.0, 2.0, 0.8)
        camera[1, index] = value
        return camera

    with pytest.raises(ValueError, match=r"floats \[B, 13\].* got float32 \[2, 12\]"):
        check(torch.zeros(2, 12))
    with pytest.raises(ValueError, match="camera 1 has a number that is not finite"):
        check(changed(3, math.nan))
    mirrored = orbit(torch.zeros(2), 0.0, 2.0, 0.8)
    mirrored[1, :12].view(3, 4)[:, 0] *= -1
    for wrong in (changed(0, 0.5), mirrored):
        with pytest.raises(ValueError, match="pose of camera 1 is not a rotation"):
            check(wrong)
    for tangent in (0.0, -1.0, 12.0):
        with pytest.raises(ValueError, match=r"camera 1 must lie in \(0, 170\) degrees"):
            check(changed(12, tangent))
    with pytest.raises(ValueError, match="an eye that is not its target"):
        look_at(torch.ones(1, 3), torch.ones(1, 3), 0.8)
