"""The cheap reconstruction: exact where it can be, worse by its damage, and holes."""

import math

import pytest
import torch

from distillkit.rendering.cameras import look_at, project
from domains.scene.coarse import blurred, damaged, ends, reconstructed, unprojected
from domains.scene.rooms import drawn, render


@pytest.fixture(scope="module")
def seen():
    scenes, cameras = drawn(torch.arange(6))
    data, depth = render(scenes, cameras)
    return data, depth, cameras


def end(x):
    return x[:, :, [0, -1]]


def psnr(x, y):
    return 10 * torch.log10(4 / (x - y).square().flatten(1).mean(1))


def test_unprojected_pixels_project_to_themselves(seen):
    _, depth, cameras = seen
    points = unprojected(end(depth), ends(cameras))
    pixels, away = project(ends(cameras), points.flatten(2, 3), 32, 32)
    row, column = torch.meshgrid(torch.arange(32.0) + 0.5, torch.arange(32.0) + 0.5, indexing="ij")
    torch.testing.assert_close(
        pixels, torch.stack([column, row], -1).flatten(0, 1).expand_as(pixels), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(away, end(depth)[:, 0].flatten(2))


def test_exact_depths_give_the_end_views_and_better_frames_than_wrong_ones(seen):
    data, depth, cameras = seen
    exact = reconstructed(end(data), end(depth), cameras)
    torch.testing.assert_close(end(exact), end(data), atol=1e-4, rtol=0)
    fade = torch.linspace(0, 1, 8)[:, None, None]
    faded = data[:, :, :1] * (1 - fade) + data[:, :, -1:] * fade
    quality = [psnr(exact, data).mean()]
    for damage in (0.5, 1.0):
        guessed = damaged(end(data), end(depth), torch.full((6,), damage), torch.arange(6))
        quality.append(psnr(reconstructed(*guessed, cameras), data).mean())
    assert quality[0] > quality[1] + 1 > quality[2] + 2
    assert quality[0] > psnr(faded, data).mean() + 3


def test_no_damage_changes_nothing_and_damage_follows_from_the_seed(seen):
    data, depth, _ = seen
    first, depth, none = end(data), end(depth), torch.zeros(6)
    for found, given in zip(damaged(first, depth, none, torch.arange(6)), (first, depth), strict=True):
        torch.testing.assert_close(found, given)
    amount = torch.linspace(0, 1, 6)
    once, again = (damaged(first, depth, amount, torch.arange(6)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    alone = damaged(first[2:3], depth[2:3], amount[2:3], torch.tensor([2]))
    torch.testing.assert_close(alone[1], once[1][2:3])
    other = damaged(first[2:3], depth[2:3], amount[2:3], torch.tensor([3]))
    assert (other[1] / alone[1]).log().std() > 0.05
    errors = (once[1] / depth).log().flatten(1).std(1)
    assert errors[0] < 1e-6 and (errors[1:].diff() > -0.1).all() and errors[-1] > 0.15


def test_a_blur_keeps_the_mean_and_has_its_width():
    x = torch.zeros(1, 1, 1, 15, 15)
    x[..., 7, 7] = 1
    made = blurred(x, torch.tensor([1.0]))[0, 0, 0]
    assert made.sum().item() == pytest.approx(1, abs=1e-5)
    away = torch.arange(-7.0, 8)
    assert (made.sum(0) * away**2).sum().item() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(made, made.T)


def test_a_nearer_point_hides_a_farther_one():
    """Two cameras at one place: the first sees a near red wall, the second a far blue one."""
    eye, target = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    cameras = look_at(eye, target, 0.8).expand(3, 13)[None]
    first = torch.zeros(1, 3, 2, 8, 8)
    first[:, 0, 0], first[:, 2, 1] = 1, 1
    depth = torch.stack([torch.full((8, 8), 1.0), torch.full((8, 8), 2.0)])[None, None]
    middle = reconstructed(first, depth, cameras)[0, :, 1]
    torch.testing.assert_close(middle, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 8, 8))
    alike = reconstructed(first, torch.ones_like(depth), cameras)[0, :, 1]  # both in one place: the mean
    torch.testing.assert_close(alike, torch.tensor([0.5, 0, 0.5])[:, None, None].expand(3, 8, 8))


def test_points_behind_a_camera_are_not_seen_and_hide_nothing():
    """The last camera looks the other way, and its points are behind the one in the middle."""
    eye, there, back = torch.tensor([[0.0, 0.0, 1.0]] * 3), [1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]
    cameras = look_at(eye, torch.tensor([there, there, back]), 0.8)[None]
    first = torch.stack([torch.full((3, 8, 8), 0.25), torch.full((3, 8, 8), 0.75)], 1)[None]
    found = reconstructed(first, torch.ones(1, 1, 2, 8, 8), cameras)
    torch.testing.assert_close(found, first[:, :, [0, 0, 1]])


@pytest.mark.parametrize("shift", [0.75, 0.25, -0.25])
def test_points_between_pixels_are_spread_in_proportion(shift):
    """The camera in the middle stands so far to the left that a wall moves by a part of a pixel."""
    fov, side = 0.8, 8
    left = shift * 2 * math.tan(fov / 2) / side
    eye = torch.tensor([[0.0, 0.0, 1.0], [0.0, left, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    cameras = look_at(eye, eye + torch.tensor([1.0, 0, 0]), fov)[None]
    picture = torch.rand(1, 3, 1, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = picture.expand(-1, -1, 2, -1, -1)
    found = reconstructed(first, torch.ones(1, 1, 2, side, side, dtype=torch.float64), cameras)[:, :, 1]
    low = math.floor(shift)
    part, (near, far) = shift - low, (picture[:, :, 0].roll(low + i, -1) for i in (0, 1))
    torch.testing.assert_close(found[..., 2:-2], ((1 - part) * near + part * far)[..., 2:-2])


def test_what_no_point_shows_is_grey():
    """The camera in the middle stands farther: the wall ends at the border of the end views."""
    eye = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    cameras = look_at(eye, eye + torch.tensor([1.0, 0, 0]), 0.8)[None]
    found = reconstructed(torch.ones(1, 3, 2, 16, 16), torch.ones(1, 1, 2, 16, 16), cameras)
    assert (found[:, :, [0, 2]] == 1).all() and (found[:, :, 1, 5:11, 5:11] == 1).all()
    around = torch.ones(16, 16, dtype=torch.bool)
    around[3:13, 3:13] = False
    assert (found[:, :, 1, around] == 0).all()
