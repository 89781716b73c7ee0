"""Ellipses and their blending, against closed forms and against loops over pixels."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from distillkit.errors import UsageError
from distillkit.rendering.cameras import intrinsics, orbit, pose, project, rays, to_opencv
from distillkit.rendering.gaussians import (
    BLUR,
    GaussianField,
    Gaussians,
    blend,
    blend_by_gsplat,
    on_screen,
    render_gaussians,
    rotations,
)


def some(num=5, scenes=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    means, quaternions, scales, colours = (torch.rand(scenes, num, n, generator=draw) for n in (3, 4, 3, 3))
    opacities = torch.rand(scenes, num, generator=draw)
    return Gaussians(means * 1.4 - 0.7, quaternions - 0.5, scales * 0.3 + 0.02, opacities, colours)


def one(mean=(0.0, 0, 0), turn=(1.0, 0, 0, 0), scale=(0.1, 0.1, 0.1), opacity=0.5, colour=(1.0, 0, 0)):
    parts = [torch.tensor(value)[None, None] for value in (mean, turn, scale, opacity, colour)]
    return Gaussians(*parts)


def test_an_ellipse_in_closed_form():
    """In front y is to the right and z up; a turn from y to z by 30 degrees is anticlockwise."""
    half = math.radians(15)
    gaussian = one(turn=(2 * math.cos(half), 2 * math.sin(half), 0.0, 0.0), scale=(0.5, 0.3, 0.1))
    camera = orbit(0.0, 0.0, 2.0, math.pi / 2)  # 20 / 2 pixels for each unit in the middle
    centre, covariance, depth = on_screen(gaussian, camera, 40, 60)
    assert centre.flatten().tolist() == pytest.approx([30, 20]) and float(depth) == pytest.approx(2)
    c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
    right, up, mixed = c * c * 9 + s * s, s * s * 9 + c * c, s * c * (9 - 1)
    assert covariance.flatten().tolist() == pytest.approx([right + BLUR, -mixed, -mixed, up + BLUR], rel=1e-5)


def test_an_ellipse_spreads_by_the_derivative_of_the_projection():
    gaussians = Gaussians(*(part.double() for part in some()))
    camera = orbit(torch.tensor([0.5, 2.0]).double(), 0.4, 2.5, 0.9).double()
    centre, covariance, depth = on_screen(gaussians, camera, 20, 30)
    expected, behind = project(camera, gaussians.means, 20, 30)
    torch.testing.assert_close(centre, expected)
    torch.testing.assert_close(depth, behind)
    for b in range(2):
        for n in range(5):
            step = torch.autograd.functional.jacobian(
                lambda p, b=b: project(camera[b], p, 20, 30)[0], gaussians.means[b, n : n + 1]
            )
            spread = step[0, :, 0] @ (rotations(gaussians.quaternions[b, n]) * gaussians.scales[b, n])
            torch.testing.assert_close(covariance[b, n], spread @ spread.T + BLUR * torch.eye(2).double())


def test_the_derivative_beside_the_picture_is_that_at_its_margin():
    """Five half pictures to the right it counts as 1.3; far out it would grow without bound."""
    gaussian = one((2 - 0.2, 5 * 0.2, 0.0), scale=(0.02,) * 3)
    _, covariance, depth = on_screen(gaussian, orbit(0.0, 0.0, 2.0, math.pi / 2), 20, 20)
    spread = (10 * 0.02 / 0.2) ** 2
    assert float(depth) == pytest.approx(0.2)
    assert covariance.flatten().tolist() == pytest.approx([(1 + 1.3**2) * spread + BLUR, 0, 0, spread + BLUR], rel=1e-4)


def test_rotations():
    """Quarter turns about x, y and z, and what is true of all turns."""
    turns = torch.tensor([[3.0, 3, 0, 0], [3, 0, 3, 0], [3, 0, 0, 3]])
    expected = [
        [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
        [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
        [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
    ]
    torch.testing.assert_close(rotations(turns), torch.tensor(expected).float())
    found = rotations(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(found @ found.mT, torch.eye(3).expand(9, 3, 3))
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(9))


def loops(means, quaternions, scales, opacities, colours, w2c, matrix, width, height):
    """One view in OpenCV's convention: colours and depth [H, W, 4], opacity [H, W, 1]."""
    seen = means @ w2c[:3, :3].T + w2c[:3, 3]
    f, cx, cy = matrix[0, 0], matrix[0, 2], matrix[1, 2]
    picture, opacity = torch.zeros(height, width, 4), torch.zeros(height, width, 1)
    spreads = []
    for n, (x, y, z) in enumerate(seen):
        step = torch.tensor([[f / z, 0, -f * x / z**2], [0, f / z, -f * y / z**2]])
        axes = step @ w2c[:3, :3] @ rotations(quaternions[n]) @ scales[n].diag()
        spreads.append(torch.linalg.inv(axes @ axes.T + 0.3 * torch.eye(2)))
    for row in range(height):
        for column in range(width):
            left = 1.0
            for n in sorted(range(len(means)), key=lambda n: float(seen[n, 2])):
                x, y, z = seen[n]
                away = torch.stack([column + 0.5 - (f * x / z + cx), row + 0.5 - (f * y / z + cy)])
                alpha = min(float(opacities[n] * torch.exp(-away @ spreads[n] @ away / 2)), 0.999)
                picture[row, column] += left * alpha * torch.cat([colours[n], z[None]])
                left *= 1 - alpha
            opacity[row, column] = 1 - left
    return picture, opacity


def test_blending_is_that_of_loops_over_pixels():
    gaussians = some()
    camera = orbit(torch.tensor([0.5, 2.0]), 0.4, 2.5, 0.9)
    found = render_gaussians(gaussians, camera, 6, 7, background=torch.tensor([0.1, 0.2, 0.3]))
    w2c = torch.linalg.inv(to_opencv(pose(camera)))
    for b in range(2):
        picture, opacity = loops(*(part[b] for part in gaussians), w2c[b], intrinsics(camera, 6, 7)[b], 7, 6)
        image = picture[..., :3] + (1 - opacity) * torch.tensor([0.1, 0.2, 0.3])
        torch.testing.assert_close(found.image[b].movedim(0, -1), image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.opacity[b, 0], opacity[..., 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            found.depth[b, 0], (picture[..., 3:] + (1 - opacity) * (2.5 + 3**0.5))[..., 0], rtol=1e-4, atol=1e-5
        )


def test_gaussians_of_a_generator_in_half_precision_are_drawn_in_single():
    half = Gaussians(*(part.bfloat16() for part in some()))
    camera = orbit(torch.tensor([0.5, 2.0]), 0.4, 2.5, 0.9)
    expected = render_gaussians(Gaussians(*(part.float() for part in half)), camera, 5, 6)
    assert all(torch.equal(a, b) for a, b in zip(render_gaussians(half, camera, 5, 6), expected, strict=True))


def test_the_peak_is_at_the_projected_centre():
    camera = orbit(0.8, 0.3, 2.5, 0.9)
    origins, towards = rays(camera, 20, 30)
    mean = (origins[0] + 2.3 * towards[0, 4, 21]).tolist()
    found = render_gaussians(one(mean, scale=(0.1, 0.2, 0.05)), camera, 20, 30)
    assert divmod(int(found.opacity.argmax()), 30) == (4, 21)
    assert float(found.opacity.max()) == pytest.approx(0.5, abs=1e-4)
    assert found.image[0, :, 4, 21].tolist() == pytest.approx([1, 0.5, 0.5], abs=1e-4)


def test_the_order_of_a_list_does_not_matter():
    gaussians, camera = some(20), orbit(torch.tensor([0.5, 2.0]), 0.4, 2.5, 0.9)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for a, b in zip(
        render_gaussians(gaussians, camera, 8, 8),
        render_gaussians(Gaussians(*(part[:, order] for part in gaussians)), camera, 8, 8),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_what_is_in_front_hides_what_is_behind():
    """From the front the red one hides the green one, from the back it is the other way round."""
    red, green = (
        one((x, 0.0, 0.0), opacity=1.0, colour=colour) for x, colour in ((0.5, (1.0, 0, 0)), (-0.5, (0.0, 1, 0)))
    )
    both = Gaussians(*(torch.cat(parts, 1) for parts in zip(green, red, strict=True)))
    for azimuth, first in ((0.0, 0), (math.pi, 1)):
        image = render_gaussians(both, orbit(azimuth, 0.0, 3.0, 0.8), 9, 9).image[0, :, 4, 4]
        assert image[first] > 0.998 and image[1 - first] < 2e-3 and image[2] < 2e-3


def test_what_is_behind_the_camera_is_not_seen():
    camera = orbit(0.0, 0.0, 0.5, 0.8)
    for x in (0.49, 0.5, 0.52, 1.0):  # in front within the nearest, at it, behind it
        gaussian = [part.requires_grad_() for part in one((x, 0.0, 0.0), opacity=1.0)]
        found = render_gaussians(Gaussians(*gaussian), camera, 5, 5)
        assert (found.image == 1).all() and (found.opacity == 0).all()
        found.image.sum().backward()
        assert all(part.grad.isfinite().all() for part in gaussian)


def test_huge_and_tiny_gaussians_have_gradients():
    camera = orbit(0.3, 0.2, 2.0, 0.8)
    for scale in (1e-8, 1e4):
        gaussian = [part.requires_grad_() for part in one((0.1, 0.2, 0.9), scale=(scale,) * 3, opacity=1.0)]
        found = render_gaussians(Gaussians(*gaussian), camera, 5, 5)
        sum(part.sum() for part in found).backward()
        assert all(part.grad.isfinite().all() for part in gaussian)


def test_gsplat_gets_what_it_wants(monkeypatch):
    """A package that draws with loops stands for it, so matrices, sizes and modes are seen."""

    def rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **options):
        assert options == dict(near_plane=0.05, eps2d=0.3, packed=False, render_mode="RGB+D")
        assert viewmats.shape == (2, 1, 4, 4) and Ks.shape == (2, 1, 3, 3)
        parts = zip(means, quats, scales, opacities, colors, viewmats[:, 0], Ks[:, 0], strict=True)
        pictures, opacities = zip(*(loops(*each, width, height) for each in parts), strict=True)
        return torch.stack(pictures)[:, None], torch.stack(opacities)[:, None], {}

    monkeypatch.setitem(sys.modules, "gsplat", SimpleNamespace(rasterization=rasterization))
    gaussians, camera = some(), orbit(torch.tensor([0.5, 2.0]), 0.4, 2.5, 0.9)
    for a, b in zip(blend_by_gsplat(gaussians, camera, 5, 6), blend(gaussians, camera, 5, 6), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert GaussianField(count=513, backend="gsplat").means.shape == (1, 513, 3)


def test_gsplat_that_cannot_draw_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", None)
    camera = orbit(0.0, 0.0, 2.0, 0.8)
    with pytest.raises(UsageError, match=r"pip install 'distillkit\[gsplat\]'"):
        blend_by_gsplat(one(), camera, 4, 4)
    with pytest.raises(UsageError, match="CUDA alone, and the cameras are on cpu: leave it out"):
        GaussianField(count=2, backend="gsplat").render(camera, torch.zeros(1, dtype=torch.int64), 4, 4)
    with pytest.raises(ValueError, match="drawn by torch or gsplat, got backend='cuda'"):
        GaussianField(backend="cuda")
