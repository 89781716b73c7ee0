"""Fog in closed form: the light through it, where rays meet the cube, and extremes."""

import math

import pytest
import torch

from distillkit.rendering.cameras import orbit, rays
from distillkit.rendering.volume import NEAREST, behind, composite, render, span

CLOSE = dict(rtol=0, atol=1e-6)


def even(density, colour=(0.2, 0.4, 0.6)):
    """The same fog everywhere."""

    def fog(points):
        num, count = points.shape[:2]
        return points.new_full((num, count), density), points.new_tensor(colour)[:, None].expand(num, 3, count)

    return fog


def test_even_fog_in_closed_form():
    """The light of the background is exp(-density L) with L the length of the ray in the cube."""
    camera = orbit(torch.tensor([0.3, 2.0]), 0.2, 3.0, 0.8)
    origins, towards = rays(camera, 16, 16)
    near, far = span(origins[:, None, None].expand_as(towards), towards)
    passed = torch.exp(-0.7 * (far - near))[:, None]
    for samples in (1, 32):
        found = render(even(0.7), camera, 16, 16, samples, background=torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
        expected = (1 - passed) * torch.tensor([0.2, 0.4, 0.6])[:, None, None]
        expected[0, 0] += passed[0, 0]
        expected[1, 2] += passed[1, 0]
        torch.testing.assert_close(found.image, expected, **CLOSE)
        torch.testing.assert_close(found.opacity, 1 - passed, **CLOSE)


def test_two_layers_by_hand():
    """Half of the light is the first layer's, a quarter the second's, the rest the background's."""
    density, dt = torch.full((1, 1, 1, 2), math.log(2) / 0.25), torch.full((1, 1, 1), 0.25)
    colour = torch.eye(3)[:, :2].view(1, 3, 1, 1, 2)  # red before green
    found = composite(density, colour, dt, torch.tensor([2.0, 3.0]).view(1, 1, 1, 2), torch.tensor([8.0]), 0.8)
    torch.testing.assert_close(found.image.flatten(), torch.tensor([0.5 + 0.2, 0.25 + 0.2, 0.2]), **CLOSE)
    torch.testing.assert_close(found.opacity.flatten(), torch.tensor([0.75]), **CLOSE)
    torch.testing.assert_close(found.depth.flatten(), torch.tensor([0.5 * 2 + 0.25 * 3 + 0.25 * 8]), **CLOSE)


def test_depth_of_a_wall_is_that_along_the_axis():
    """A wall at right angles to the camera's axis has one depth, at the edge as in the middle."""

    def wall(points):
        return torch.where(points[..., 0] < 0.5, 1e4, 0.0), torch.ones_like(points).mT

    found = render(wall, orbit(0.0, 0.0, 3.0, 0.4), 9, 9, samples=512)
    assert (found.depth - 2.5).abs().max() < 2 * math.sqrt(3) * 2 / 512 and (found.opacity > 0.999).all()


def test_span_in_closed_form():
    """Through the middle, away, from inside, past the cube, corner to corner, along two faces."""
    r2, missed = 2**0.5, [NEAREST, NEAREST]
    rows = [
        ([3, 0, 0], [-1, 0, 0], [2, 4]),
        ([3, 0, 0], [1, 0, 0], missed),
        ([0.5, 0, 0], [1, 0, 0], [NEAREST, 0.5]),
        ([3, 0, 0], [0, 1, 0], missed),
        ([3, 0, 1.5], [-1, 0, 0], missed),
        ([2, 2, 0], [-1 / r2, -1 / r2, 0], [r2, 3 * r2]),
        ([1, 0, 3], [0, 0, -1], missed),
        ([-1, 0, 3], [0, 0, -1], [2, 4]),
    ]
    origins, towards, expected = (torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True))
    torch.testing.assert_close(torch.stack(span(origins, towards), -1), expected)


def test_jitter_moves_the_samples_within_their_intervals():
    seen = []

    def fog(points):
        seen.append(points[0])
        return even(1.0)(points)

    camera = orbit(0.0, 0.0, 3.0, 0.1)
    jitter = torch.tensor([0.0, 0.5, 0.999]).view(1, 1, 3)
    render(fog, camera, 1, 3, 4, jitter=jitter)
    x = seen[0].view(3, 4, 3)[..., 0]
    edges = 1 - torch.arange(4) / 2  # nearest intervals first
    torch.testing.assert_close(x, edges - jitter.view(3, 1) / 2, rtol=0, atol=2e-3)


def test_jitter_takes_the_mean_error_away():
    """The mean over uniform offsets of a fog that grows along the ray is its integral."""

    def fog(points):
        return torch.exp(3 * points[..., 0]) / 50, torch.ones_like(points).mT

    camera = orbit(0.0, 0.0, 3.0, 1e-3)
    thick = [-torch.log1p(-render(fog, camera, 1, 1, 3, jitter=(i + 0.5) / 64).opacity) for i in range(64)]
    exact = (math.exp(3) - math.exp(-3)) / 150
    assert abs(float(sum(thick)) / 64 - exact) < 1e-4
    assert abs(float(thick[32]) - exact) > 2e-2  # with 3 samples in the middle


@pytest.mark.parametrize("density", [0.0, 1e30])
def test_nothing_and_everything(density):
    """No fog shows the background at its depth; the densest fog has gradients that are numbers."""
    camera = orbit(torch.tensor([0.0, 1.0]), 0.3, torch.tensor([3.0, 0.5]), 1.2)  # the second is inside
    level = torch.tensor(density, requires_grad=True)

    def fog(points):
        return level.expand(points.shape[:2]), torch.full_like(points, 0.3).mT

    found = render(fog, camera, 12, 12)
    sum(part.sum() for part in found).backward()
    assert level.grad.isfinite() and all(part.isfinite().all() for part in found)
    if density == 0:
        assert (found.image == 1).all() and (found.opacity == 0).all()
        torch.testing.assert_close(found.depth, behind(camera).view(2, 1, 1, 1).expand_as(found.depth))
    else:
        hit = found.opacity[0, 0] > 0.5
        assert hit[6, 6] and not hit[0, 0] and (found.opacity[1] == 1).all()
        torch.testing.assert_close(found.image[1], torch.full((3, 12, 12), 0.3))


def test_the_background_is_behind_the_cube():
    camera = orbit(torch.tensor([0.3, 1.0]), 0.5, torch.tensor([2.0, 4.0]), 0.8)
    torch.testing.assert_close(behind(camera), torch.tensor([2.0, 4.0]) + 3**0.5)
