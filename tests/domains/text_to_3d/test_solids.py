"""The solids in closed form: outlines, surfaces, stripe and light."""

import math

import pytest
import torch

from distillkit.rendering.cameras import orbit
from domains.text_to_3d.solids import INK, LIGHT, PROMPTS, REACH, SHAPES, STRIPE, albedo, distance, lit, normal, render

FOVY = math.radians(50)


def looked(prompt, azimuth, elevation=0.0, size=32, far=2.2):
    """One render of a prompt, [3, size, size] in [0, 1]; angles in degrees."""
    camera = orbit(math.radians(azimuth), math.radians(elevation), far, FOVY)
    return (render(torch.tensor([PROMPTS.index(prompt)]), camera, size)[0] + 1) / 2


def covered(image):
    return 1 - (image > 0.999).all(0).float()


def test_prompts_are_shapes_by_colours():
    assert len(PROMPTS) == 16 and PROMPTS[0] == "a red sphere" and PROMPTS[6] == "a blue cube"
    assert PROMPTS[4 * SHAPES.index("torus") + 3] == "a yellow torus"


@pytest.mark.parametrize("far", [1.9, 2.4])
def test_the_outline_of_a_sphere_is_that_of_its_tangents(far):
    image = looked("a red sphere", 200, 10, size=64, far=far)
    radius = math.tan(math.asin(0.6 / far)) / math.tan(FOVY / 2) * 32  # pixels
    assert float(covered(image).sum()) == pytest.approx(math.pi * radius**2, rel=0.06)  # rims count as a whole
    assert float((1 - image.amin(0)).gt(0.5).sum()) == pytest.approx(math.pi * radius**2, rel=0.02)


SURFACE = {
    "sphere": [(0.6, 0, 0), (0, -0.6, 0), (0, 0, 0.6)],
    "cube": [(0.42, 0.1, -0.3), (-0.2, 0.42, 0.42), (0, 0, -0.42)],
    "torus": [(0, 0.61, 0), (0, 0, 0.25), (0.18, 0.43, 0), (-0.18, 0, -0.43)],
    "cone": [(0, 0, 0.5), (0.52, 0, -0.5), (0, 0.26, 0), (0.3, 0, -0.5)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_points_of_the_surfaces_and_the_ball_that_holds_them(shape):
    kind = SHAPES.index(shape)
    points = torch.tensor(SURFACE[shape])
    assert torch.allclose(distance(kind, points), torch.zeros(len(points)), atol=1e-6)
    axis = torch.linspace(-1, 1, 41)
    lattice = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    within = distance(kind, lattice) < 0
    assert within.any() and float(lattice[within].norm(dim=-1).max()) < REACH


def test_normals_point_outwards():
    points = torch.nn.functional.normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert torch.allclose(normal(0, 0.6 * points), points, atol=1e-3)


def test_the_stripe_is_on_the_front_alone():
    def dark(image):
        return int(((image - torch.tensor(INK)[:, None, None]).abs().amax(0) < 0.05).sum())

    for shape in SHAPES:
        assert dark(looked(f"a yellow {shape}", 0)) > 15
        assert dark(looked(f"a yellow {shape}", 180)) == 0
    edge = torch.tensor([[0.5, STRIPE - 0.01, 0], [0.5, STRIPE + 0.01, 0], [-0.5, 0, 0]])
    paint = albedo(PROMPTS.index("a red sphere"), edge)
    assert torch.allclose(paint[0], torch.tensor(INK)) and torch.equal(paint[1], paint[2]) and paint[1, 0] == 0.9


def test_one_looks_through_the_torus_from_front_and_back_alone():
    holes = [float(looked("a green torus", azimuth)[:, 15:17, 15:17].min()) for azimuth in (0, 90, 180, 270)]
    assert holes[0] == holes[2] == 1 and max(holes[1], holes[3]) < 0.7


def test_light_is_lambert_and_ambient():
    light = torch.nn.functional.normalize(torch.tensor(LIGHT), dim=0)
    found = lit(0, 0.6 * torch.stack([light, -light]))
    assert torch.allclose(found, torch.tensor([1.0, 0.45]), atol=1e-3)
    at = float(torch.rad2deg(torch.atan2(light[1], light[0]))) - 40  # beside the stripe
    assert looked("a red sphere", at, 40)[0, 16, 16] > 1.5 * looked("a red sphere", at + 180, 40)[0, 16, 16]


def test_renders_do_not_depend_on_their_neighbours():
    cameras = orbit(torch.linspace(0, 6, 8), 0.3, 2.1, FOVY)
    prompt = torch.arange(8) * 2
    together = render(prompt, cameras)
    assert torch.equal(together[5], render(prompt[5:6], cameras[5:6])[0])
    assert together.min() >= -1 and together.max() <= 1 and together[:, :, 0, 0].eq(1).all()
