"""Every kind of scene: where it appears, how large, in what colour, and its gradients."""

import itertools
import math

import pytest
import torch

from distillkit.rendering import triplane, voxels
from distillkit.rendering.cameras import orbit, project
from distillkit.rendering.gaussians import GaussianField
from distillkit.rendering.triplane import TriplaneField
from distillkit.rendering.volume import behind
from distillkit.rendering.voxels import VoxelField, centres, render_grid

RED = torch.tensor([9.0, -9.0, -9.0])  # before the sigmoid
SIDE = 32


def voxel_ball(centre, radius=0.25, side=SIDE, samples=64):
    field = VoxelField(1, side, samples)
    distance = (centres(side) - torch.tensor(centre)).norm(dim=-1)
    field.grid.data[0] = torch.cat([100 * (radius - distance)[None], RED.view(3, 1, 1, 1).expand(3, *distance.shape)])
    return field


def triplane_ball(centre, radius=0.25):
    """radius^2 - |p - centre|^2 is a sum over planes; silu(a) - silu(-a) = a takes it through."""
    field = TriplaneField(1, 64, channels=1, hidden=2, samples=64)
    u, v, _ = centres(64)[0].unbind(-1)  # along the rows, along the columns
    planes = torch.zeros(1, 3, 1, 64, 64)
    planes[0, 0, 0] = radius**2 - (u - centre[0]) ** 2 - (v - centre[1]) ** 2
    planes[0, 1, 0] = -((v - centre[2]) ** 2)
    field.planes.data = planes
    field.first.data = torch.tensor([[[1.0], [-1.0]]])
    field.last.data = torch.cat([torch.tensor([[1000.0, -1000.0]]), torch.zeros(3, 2)])[None]
    field.last_bias.data[0, 1:, 0] = RED
    return field


def gaussian_ball(centre, scale=0.1):
    field = GaussianField(1, 1, scale=scale)
    field.means.data[0, 0] = torch.tensor(centre)
    field.colour_logits.data[0, 0] = RED
    return field


BALLS = {"voxels": voxel_ball, "triplane": triplane_ball, "gaussians": gaussian_ball}
SMALL = {
    "voxels": lambda: VoxelField(2, 3, 5, std=1.0),
    "triplane": lambda: TriplaneField(2, 3, channels=2, hidden=3, samples=5, std=1.0),
    "gaussians": lambda: GaussianField(2, 4, scale=0.2, std=1.0),
}
ONE = torch.zeros(1, dtype=torch.int64)


def middle(opacity):
    """The centroid of a picture [1, 1, H, W] in pixels, x and y."""
    weight = opacity[0, 0] / opacity.sum()
    y, x = (torch.arange(n) + 0.5 for n in opacity.shape[2:])
    return torch.stack([(weight.sum(0) * x).sum(), (weight.sum(1) * y).sum()])


@pytest.mark.parametrize("kind", BALLS)
def test_an_object_beside_the_middle_is_where_it_should_be(kind):
    """All mirror images, seen from three sides: swapped or flipped axes would move the object."""
    views = orbit(torch.tensor([0.4, 2.0, -1.3]), torch.tensor([0.2, 1.2, -0.5]), 3.0, 0.9)
    for signs in itertools.product((1, -1), repeat=3):
        centre = [sign * place for sign, place in zip(signs, (0.6, 0.4, 0.2), strict=True)]
        field = BALLS[kind](centre)
        for view in views:
            with torch.no_grad():
                found = field.render(view[None], ONE, 32, 40)
            expected, depth = project(view[None], torch.tensor([[centre]]), 32, 40)
            assert (middle(found.opacity) - expected[0, 0]).norm() < 0.3
            row, column = (int(x) for x in expected[0, 0].flip(0))
            image = found.image[0, :, row, column]
            assert image[0] > 0.99 and image[1] < 0.6
            light = float(found.opacity[0, 0, row, column])
            behind_it = float(found.depth[0, 0, row, column] - (1 - light) * behind(view[None])) / light
            assert behind_it == pytest.approx(float(depth), abs=0.3)


@pytest.mark.parametrize("make", [voxel_ball, triplane_ball])
def test_area_of_a_ball_in_closed_form(make):
    """Its outline is a cone that touches it: tan(asin(r / d)) at distance 1."""
    radius, distance, fovy = 0.6, 2.5, 0.8
    field = make((0.0, 0.0, 0.0), radius)
    with torch.no_grad():
        found = field.render(orbit(0.7, 0.4, distance, fovy), ONE, 64, 64)
    outline = math.tan(math.asin(radius / distance)) / math.tan(fovy / 2) * 32
    assert float(found.opacity.sum()) == pytest.approx(math.pi * outline**2, rel=0.03)
    assert float(found.depth[0, 0, 32, 32]) == pytest.approx(distance - radius, abs=0.05)
    assert float(found.depth[0, 0, 0, 0]) == pytest.approx(distance + 3**0.5, abs=1e-4)


def test_a_grid_is_read_in_the_order_z_y_x():
    """A grid of what the coordinates are gives them back, at and between the voxels."""
    grid = centres(8).movedim(-1, 0)[None]
    assert grid[0, :, 1, 2, 3].tolist() == [-0.125, -0.375, -0.625]
    points = torch.rand(1, 50, 3, generator=torch.Generator().manual_seed(0)) * 1.7 - 0.85
    torch.testing.assert_close(voxels.look_up(grid, points), points.mT)


def test_planes_are_read_along_their_axes():
    axis = (torch.arange(8) + 0.5) / 4 - 1
    points = torch.rand(1, 50, 3, generator=torch.Generator().manual_seed(0)) * 1.7 - 0.85
    x, y, z = points[0].mT
    for plane, (first, second) in enumerate([(x, y), (x, z), (y, z)]):
        planes = torch.zeros(1, 3, 2, 8, 8)
        planes[0, plane, 0], planes[0, plane, 1] = axis, axis[:, None]
        torch.testing.assert_close(triplane.look_up(planes, points)[0], torch.stack([first, second]))


def test_density_and_colour_in_closed_form():
    raw = torch.tensor([[0.3, 0.0, 1.0, -2.0]])
    density, colour = voxels.activated(raw)
    assert float(density) == pytest.approx(20 * math.log(1 + math.exp(0.3 - 1)))
    assert colour[0].tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))])


@pytest.mark.parametrize("kind", SMALL)
def test_gradients_are_those_of_finite_differences(kind):
    field = SMALL[kind]().double()
    if kind == "gaussians":  # else turns of balls change nothing
        field.log_scales.data += torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1)) / 2
        field.quaternions.data += torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(2)) / 2
    camera = orbit(torch.tensor([0.4, 2.0, 3.0]).double(), 0.3, 2.2, 0.9).double()
    scene = torch.tensor([0, 1, 1])
    weights = [torch.randn(3, n, 3, 4, generator=torch.Generator().manual_seed(n)) for n in (3, 1, 2)]

    def loss(*_):
        image, opacity, depth = field.render(camera, scene, 3, 4, background=0.3)
        return (image * weights[0]).sum() + (opacity * weights[1]).sum() + (depth * weights[2][:, :1]).sum()

    parameters = tuple(field.parameters())
    assert torch.autograd.gradcheck(loss, parameters, eps=1e-6, atol=1e-7, rtol=1e-4)
    for gradient in torch.autograd.grad(loss(), parameters):  # all that can be learned is
        assert gradient.abs().sum() > 1e-6


@pytest.mark.parametrize("kind", SMALL)
def test_views_of_many_scenes_are_views_of_each(kind):
    field = SMALL[kind]()
    camera = orbit(torch.tensor([0.4, 2.0, 3.0]), 0.3, torch.tensor([2.2, 3.0, 0.4]), torch.tensor([0.9, 0.5, 1.0]))
    scene, background = torch.tensor([1, 0, 1]), torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    jitter = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = field.render(camera, scene, 4, 5, background, jitter)
        for i in range(3):
            one = slice(i, i + 1)
            alone = field.render(camera[one], scene[one], 4, 5, background[one], jitter[one])
            for part, whole in zip(alone, together, strict=True):
                torch.testing.assert_close(part, whole[one])
        other = field.render(camera, 1 - scene, 4, 5, background, jitter)
    assert (together.image - other.image).abs().amax((1, 2, 3)).min() > 1e-3
    assert together.image.shape == (3, 3, 4, 5) and together.depth.shape == together.opacity.shape == (3, 1, 4, 5)
    assert together.opacity.min() >= 0 and together.opacity.max() <= 1
    assert together.image.min() >= 0 and together.image.max() <= 1


@pytest.mark.parametrize("kind", SMALL)
def test_mixed_precision_does_not_move_anything(kind):
    field = SMALL[kind]()
    camera, scene = orbit(torch.tensor([0.4, 2.0]), 0.3, 2.2, 0.9), torch.tensor([1, 0])
    expected = field.render(camera, scene, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = field.render(camera, scene, 6, 6)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_grids_of_a_generator_render_as_those_of_a_field():
    field = VoxelField(2, 8, std=1.0)
    camera = orbit(torch.tensor([0.4, 2.0]), 0.3, 2.2, 0.9)
    expected = field.render(camera, torch.tensor([1, 0]), 8, 8, 0.2, 0.3)
    found = render_grid(field.grid[[1, 0]], camera, 8, 8, 32, 0.2, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    render_grid(field.grid[[1, 0]].bfloat16(), camera, 8, 8).image.sum().backward()  # as autocast makes them


@pytest.mark.parametrize("kind", BALLS)
def test_where_nothing_is_the_background_is(kind):
    field = BALLS[kind]((0.0, 0.0, 0.0))
    camera = orbit(1.0, 0.1, 2.0, 0.9)
    for name, value in (("grid", -1e4), ("last_bias", -1e6), ("opacity_logits", -200.0)):
        if hasattr(field, name):
            getattr(field, name).data[:] = value
    found = field.render(camera, ONE, 8, 8)
    assert (found.image == 1).all() and (found.opacity == 0).all()
    torch.testing.assert_close(found.depth, behind(camera).expand(1, 1, 8, 8))
    sum(part.sum() for part in found).backward()
    assert all(parameter.grad.isfinite().all() for parameter in field.parameters())


@pytest.mark.parametrize("kind", SMALL)
def test_fields_start_alike_from_a_seed_and_differ_among_scenes(kind):
    one, two = SMALL[kind](), SMALL[kind]()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    camera = orbit(torch.zeros(2), 0.0, 2.2, 0.9)
    with torch.no_grad():
        first, second = one.render(camera, torch.tensor([0, 1]), 8, 8).image
    assert (first - second).abs().max() > 1e-2


def test_first_scenes_are_grey_balls_in_the_middle():
    for field in (VoxelField(), TriplaneField(), GaussianField()):
        with torch.no_grad():
            found = field.render(orbit(0.5, 0.2, 2.2, 0.9), ONE, 16, 16)
        assert found.opacity[0, 0, 7:9, 7:9].min() > 0.95 and found.opacity[0, 0, 0, 0] < 0.2
        assert (found.image[0, :, 7:9, 7:9] - 0.5).abs().max() < 0.15


def test_sizes_are_checked():
    for make, said in (
        (lambda: VoxelField(0), "num must be at least 1"),
        (lambda: VoxelField(side=1), "side must be at least 2"),
        (lambda: TriplaneField(channels=0), "channels must be at least 1"),
        (lambda: GaussianField(count=513), r'count must be at most 512, got 513 \(backend="gsplat" takes more\)'),
        (lambda: VoxelField(radius=-1.0), "radius must be positive"),
    ):
        with pytest.raises(ValueError, match=said):
            make()
