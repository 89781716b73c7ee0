"""Renders against true solids in closed form, faces where there are none, scenes themselves."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import solid_scenes
import torch

from distillkit.codec import Codec
from distillkit.networks.encoded import Encoded
from distillkit.rendering.cameras import orbit
from distillkit.rendering.gaussians import Gaussians, render_gaussians
from domains.text_to_3d import shapes
from domains.text_to_3d.data import Solids
from domains.text_to_3d.evaluation import FRONT, Evaluator, PromptEvaluator, Views, ranked
from domains.text_to_3d.generator import Generator
from domains.text_to_3d.scenes import Scenes
from domains.text_to_3d.solids import PROMPTS, SHAPES, distance, render
from domains.text_to_3d.views import view_of

VOLUMES = (4 / 3 * math.pi * 0.6**3, 0.84**3, 2 * math.pi**2 * 0.43 * 0.18**2, math.pi / 3 * 0.52**2)
RED_SPHERE, GREEN_SPHERE, BLUE_CUBE, RED_TORUS, YELLOW_CONE = 0, 1, 6, 8, 15


@pytest.fixture(scope="module")
def data():
    made = Solids(train=64, val=4, test=8)
    made.setup()
    return made


@pytest.fixture(scope="module")
def evaluator(data):
    return data.evaluator()


@pytest.fixture(scope="module")
def real(data):
    batch = data.test[torch.arange(len(data.test))]
    return batch["data"], {name: batch[name] for name in ("prompt", "camera")}


def test_ranks_in_closed_form():
    """Two samples of prompt 0, one of prompt 2."""
    scores = torch.tensor([[3.0, 2, 1, 0], [0, 1, -1, -2], [5, 0, 4, 4]])
    mean, first = ranked(scores, torch.tensor([0, 0, 2]))
    assert mean == pytest.approx((1 + 2 + 2.5) / 3)  # a tie shares its ranks
    assert first == 0.0  # prompt 0: means 1.5, 1.5: not alone
    assert ranked(scores + torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0, 2]))[1] == 0.5
    assert ranked(torch.zeros(2, 16), torch.tensor([3, 3])) == (8.5, 0.0)


def test_the_truth_is_perfect(evaluator, real):
    found = evaluator(*real)
    assert found["solid_rank"] == found["r_precision"] == found["solid_r_precision"] == 1
    assert found["psnr_to_solid"] == 60 and found["outside"] == 0
    assert found["rank"] < 1.1 and found["view_agreement"] > 0.85 and found["janus"] < 0.1
    assert {*found, "chamfer", "opacity", "decided", "floaters"} == {*evaluator.better}
    floor = evaluator.floor(len(real[0]))
    assert floor == {name: value for name, value in found.items() if name != "psnr_to_solid"} | {
        "opacity": floor["opacity"]
    }


def test_what_is_said_of_the_protocol_is_plain(evaluator):
    described = evaluator.describe()
    assert json.loads(json.dumps(described)) == described and len(described["features"]["sha256"]) == 64
    accuracy = described["features"]["held_out_accuracy"]
    assert accuracy["shape"] > 0.97 < accuracy["colour"] and accuracy["view"] > 0.85


@pytest.mark.parametrize("shift", [1, 4])  # the next colour, the next shape
def test_another_solid_is_another(evaluator, real, shift):
    samples, cond = real
    other = render((cond["prompt"] + shift) % 16, cond["camera"])
    found = evaluator(other, cond)
    assert found["solid_r_precision"] == found["r_precision"] == 0
    assert found["solid_rank"] >= 2 and found["rank"] > 1.5
    assert found["psnr_to_solid"] < 25 and found["view_agreement"] > 0.85


def test_psnr_in_closed_form(evaluator, real):
    samples, cond = real
    step = 20 / 127.5  # whole levels, and nothing is cut
    moved = samples + torch.where(samples > 0, -step, step)
    assert evaluator(moved, cond)["psnr_to_solid"] == pytest.approx(10 * math.log10(4 / step**2), abs=0.01)


def test_what_is_far_from_the_truth_is_far_in_features_too(evaluator, real):
    samples, cond = real
    generator = torch.Generator().manual_seed(0)
    noise, truth = torch.randn(samples.shape, generator=generator), evaluator(*real)
    lost = evaluator(noise, cond)
    assert lost["frechet"] > 3 * truth["frechet"] and lost["outside"] > 0.2 and lost["rank"] > 4
    one = evaluator(samples[:1].expand_as(samples), cond)  # collapsed
    assert one["frechet"] > 3 * truth["frechet"] and one["r_precision"] == pytest.approx(1 / 16)


def test_fronts_where_there_are_none(evaluator, real):
    """Views of the front are said to be from behind."""
    cond = {name: value[:16] for name, value in real[1].items()}
    azimuth = torch.linspace(-0.5, 0.5, 16)
    before = orbit(azimuth, 0.2, 2.1, math.radians(50))
    behind = orbit(azimuth + math.pi, 0.2, 2.1, math.radians(50))
    assert (view_of(before) == FRONT).all() and not (view_of(behind) == FRONT).any()
    fronts = render(cond["prompt"], before)
    there = evaluator(fronts, {**cond, "camera": before})
    assert there["view_agreement"] > 0.95 and "janus" not in there  # all are fronts
    nowhere = evaluator(fronts, {**cond, "camera": behind})
    assert nowhere["view_agreement"] < 0.05 and nowhere["janus"] > 0.95


def test_a_solid_with_two_faces_is_found_out(evaluator):
    """The scene of the cube with the stripe of its front behind too, and the true one."""
    camera = orbit(torch.linspace(-math.pi, math.pi, 17)[:-1], 0.25, 2.1, math.radians(50))
    cond = {"prompt": torch.full([16], BLUE_CUBE), "camera": camera}
    true, both = (
        evaluator(solid_scenes.student(solid_scenes.painter([BLUE_CUBE], faces=faces)).sample(16, cond), cond)
        for faces in (1, 2)
    )
    assert both["janus"] > 0.3 and true["janus"] < 0.1
    assert both["solid_r_precision"] == true["solid_r_precision"] == 1 and true["psnr_to_solid"] > 15


def test_a_camera_sees_each_shape_once(data):
    views, camera = Views(16), data.test[torch.arange(0, 96, 16)]["camera"]
    twice = torch.cat([camera, camera.flip(0)])
    for prompt in (RED_SPHERE, GREEN_SPHERE, YELLOW_CONE):
        expected = render(torch.full([12], prompt), twice, 16)
        assert torch.allclose(views(prompt, twice), expected, atol=1e-6)
    assert len(views._known) == 2 and all(len(looks) == 6 for looks in views._known.values())


class Clip:
    """A stand-in for a CLIP model that takes every prompt for the next one, but the last."""

    facts, prompts = {"name": "stand-in"}, list(PROMPTS)

    def __init__(self, prompt):
        self.prompt = prompt

    def features(self, samples):
        own, prompts = self.prompt[:, None], torch.arange(16)
        return (
            0.5 * (prompts == (own + 1) % 16) - 0.1 * (prompts == own) + 0.9 * (prompts == own) * (own == 15)
        ).double()

    def embedded(self, prompt):
        return torch.eye(16)[prompt]


def test_clip_finds_prompts(data, evaluator, real):
    samples, cond = real
    clip = Clip(cond["prompt"])
    asked = Evaluator(data.train, [data.test], clip)
    expected = {"clip": pytest.approx(100 * 0.8 / 16), "clip_r_precision": pytest.approx(1 / 16)}
    assert asked.thorough(samples, cond) == expected
    assert asked.better["clip_r_precision"] == "higher" and "clip" not in evaluator.better
    assert asked.describe()["clip"] == Clip.facts and evaluator.thorough(samples, cond) == {}
    free = PromptEvaluator((3, 32, 32), clip=clip)
    assert free.thorough(samples, cond) == expected and free.better["clip_r_precision"] == "higher"
    assert PromptEvaluator((3, 32, 32)).thorough(samples, cond) == {}


def test_without_solids_scenes_are_measured_alone():
    free = PromptEvaluator((3, 32, 32))
    own = solid_scenes.student(solid_scenes.painter([BLUE_CUBE]))
    found = free.of_student(own, {"prompt": torch.tensor([BLUE_CUBE])})
    assert set(found) == {"opacity", "decided", "floaters"} and found["opacity"] == pytest.approx(0.84**3 / 8, rel=0.15)
    own.denoiser.network = Encoded(own.network, Codec(), (32, 32))
    assert free.of_student(own, {"prompt": torch.tensor([BLUE_CUBE])}) == found
    assert free.describe()["domain"] == "text_to_3d" and free.floor(4) == {}


# Scenes themselves


def test_scenes_of_solids_are_them(evaluator):
    prompts = [RED_SPHERE, BLUE_CUBE, RED_TORUS, YELLOW_CONE]
    own = solid_scenes.student(solid_scenes.painter(prompts))
    found = evaluator.of_student(own, {"prompt": torch.tensor([*prompts, BLUE_CUBE])})
    assert found["chamfer"] < 0.01 and found["floaters"] == 0 and found["decided"] > 0.9
    assert found["opacity"] == pytest.approx(np.mean(VOLUMES) / 8, rel=0.15)
    assert evaluator.floor(16)["opacity"] == pytest.approx(np.mean(VOLUMES) / 8, rel=0.02)
    swapped = solid_scenes.painter([RED_TORUS])
    swapped.only = [PROMPTS[BLUE_CUBE]]
    assert evaluator.of_student(solid_scenes.student(swapped), {"prompt": torch.tensor([BLUE_CUBE])})["chamfer"] > 0.04


@pytest.mark.parametrize("radius", [0.4, 0.7])
def test_a_ball_is_the_difference_of_the_radii_away_from_the_sphere(evaluator, radius):
    scene = solid_scenes.painter([RED_SPHERE])
    with torch.no_grad():
        points = shapes._world(solid_scenes.centres(32)) / 2
        scene.field.grid[0, 0] = 96 * (radius - points.norm(dim=-1)).clamp(-0.1, 0.1)
    found = evaluator.of_student(solid_scenes.student(scene), {"prompt": torch.tensor([RED_SPHERE])})
    assert found["chamfer"] == pytest.approx(abs(radius - 0.6), abs=0.03)


def test_students_without_scenes_are_nothing_else(evaluator):
    class Plain:
        network = torch.nn.Identity()

    assert evaluator.of_student(Plain(), {"prompt": torch.tensor([0])}) == {}


def test_a_scene_without_a_surface_is_measured_all_the_same(evaluator):
    scene = solid_scenes.painter([RED_SPHERE])
    with torch.no_grad():
        scene.field.grid[:, 0] = -20
    found = evaluator.of_student(solid_scenes.student(scene), {"prompt": torch.tensor([RED_SPHERE])})
    assert found["chamfer"] == pytest.approx(0.6, abs=0.05) and found["opacity"] < 1e-3 and found["decided"] == 1


def test_occupancy_in_closed_form():
    opacity = np.zeros([10, 10, 10], np.float32)
    opacity[:2], opacity[5, 5, 5], opacity[6, 6, 5], opacity[8] = 1, 0.95, 0.6, 0.4  # touching at an edge is apart
    found = shapes.occupancy(opacity)
    assert found["opacity"] == pytest.approx((200 + 0.95 + 0.6 + 40) / 1000)
    assert found["decided"] == pytest.approx(1 - 101 / 1000) and found["floaters"] == 2
    assert shapes.occupancy(np.zeros([4, 4, 4], np.float32)) == {"opacity": 0, "decided": 1, "floaters": 0}


def test_a_cell_of_even_fog_takes_its_share_along_its_side():
    scene = solid_scenes.painter([RED_SPHERE])
    with torch.no_grad():
        scene.field.grid[0, 0] = 1 + math.log(math.expm1(5 / 20))  # density 5, along a side of 1/16
    (made,) = shapes.scenes(solid_scenes.student(scene), {"prompt": torch.tensor([RED_SPHERE])})
    assert shapes.opacities(made) == pytest.approx(1 - math.exp(-5 / 16), abs=1e-5)


@pytest.mark.parametrize("place", [(0.4, 0.0, 0.0), (0.0, -0.3, 0.0), (0.0, 0.0, 0.35)])
def test_surfaces_lie_where_scenes_are(place):
    scene = solid_scenes.painter([RED_SPHERE])
    with torch.no_grad():
        away = (solid_scenes.centres(32) - torch.tensor(place)).norm(dim=-1)
        scene.field.grid[0, 0] = 96 * (0.3 - away).clamp(-0.1, 0.1)
    (found,) = map(shapes.mesh, shapes.scenes(solid_scenes.student(scene), {"prompt": torch.tensor([RED_SPHERE])}))
    assert found.watertight and found.volume == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=0.1)
    assert found.vertices.mean(0) == pytest.approx(np.array(place), abs=0.02)


def test_the_surface_of_a_soft_ball_is_where_half_of_the_light_is_gone():
    """The density falls with the radius; at 0.5 it takes half of the light in 1/12."""
    scene, level = solid_scenes.painter([RED_SPHERE]), 12 * math.log(2)
    with torch.no_grad():
        radius = solid_scenes.centres(32).norm(dim=-1)
        scene.field.grid[0, 0] = 1 + math.log(math.expm1(level / 20)) + 6 * (0.5 - radius)
    (made,) = shapes.scenes(solid_scenes.student(scene), {"prompt": torch.tensor([RED_SPHERE])})
    assert np.linalg.norm(shapes.mesh(made).vertices, axis=1) == pytest.approx(0.5, abs=0.01)


def test_vertices_have_the_colour_of_what_is_inside():
    scenes = shapes.scenes(
        solid_scenes.student(solid_scenes.painter([BLUE_CUBE])), {"prompt": torch.tensor([BLUE_CUBE])}
    )
    found = shapes.mesh(scenes[0])
    front = (found.vertices[:, 0] > 0.3) & (np.abs(found.vertices[:, 1]) < 0.05)
    red, _, blue = found.colours.T
    assert blue[front].max() < -0.5 and blue[found.vertices[:, 0] < -0.1].min() > 0.6 and red.max() < -0.5


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_true_surfaces_are_those_of_the_solids(shape):
    made = shapes.true_mesh(shape)
    assert made.watertight and made.volume == pytest.approx(VOLUMES[shape], rel=0.02)
    gap = distance(shape, torch.from_numpy(made.vertices)).abs()
    assert gap.mean() < 2e-3


def test_gaussians_as_fog_take_as_much_light_through_the_middle():
    one = Gaussians(
        torch.tensor([[0.2, -0.1, 0.1]]),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 3), 0.1),
        torch.tensor([0.7]),
        torch.tensor([[0.9, 0.5, 0.1]]),
    )
    x = torch.linspace(-0.6, 1, 2001)
    points = torch.stack([x, torch.full_like(x, -0.1), torch.full_like(x, 0.1)], -1)
    density, colour = shapes.fog_of(one, points[None])
    left = torch.exp(-density.sum() * (x[1] - x[0]))
    assert float(1 - left) == pytest.approx(0.7, abs=1e-3)
    assert torch.allclose(colour[0, :, 1000], one.colours[0], atol=1e-5)
    camera = orbit(0.0, 0.0, 2.0, math.radians(50))
    camera[:, [7, 11]] += torch.tensor([-0.1, 0.1])  # looks at the Gaussian along x
    drawn = render_gaussians(Gaussians(*(each[None] for each in one)), camera, 65, 65)
    assert float(drawn.opacity[0, 0, 32, 32]) == pytest.approx(0.7, abs=1e-3)
    flat = one._replace(scales=torch.tensor([[0.4, 0.05, 0.05]]))
    assert (
        shapes.fog_of(flat, torch.tensor([[[0.5, -0.1, 0.1]]]))[0]
        > 10 * shapes.fog_of(flat, torch.tensor([[[0.2, 0.2, 0.1]]]))[0]
    )


def test_all_kinds_of_scenes_are_looked_at(evaluator):
    cond = {"prompt": torch.tensor([RED_TORUS, BLUE_CUBE])}
    only = [PROMPTS[i] for i in (RED_TORUS, BLUE_CUBE)]
    for network in (
        *(Scenes(only=only, kind=kind, resolution=64) for kind in ("triplane", "gaussians")),
        Generator(only=only),
    ):
        found = evaluator.of_student(solid_scenes.student(network.eval()), cond)
        assert 0.02 < found["chamfer"] < 0.3 and 0.01 < found["opacity"] < 0.2  # a ball at first


def test_the_first_particles_come_first_and_each_is_its_own_scene():
    network = solid_scenes.painter([RED_SPHERE, BLUE_CUBE], particles=2)
    with torch.no_grad():
        network.field.grid[1, 0] = -20  # the sphere's second
    made = shapes.scenes(solid_scenes.student(network), {"prompt": torch.tensor([BLUE_CUBE, RED_SPHERE])})
    assert [(each.prompt, each.particle) for each in made] == [(0, 0), (6, 0), (0, 1), (6, 1)]
    assert [each.name for each in made] == ["a red sphere 0", "a blue cube 0", "a red sphere 1", "a blue cube 1"]
    assert [int(each._number) for each in made] == [0, 2, 1, 3]
    seen = [float(each.render(orbit(0.0, 0.2, 2.1, 0.9), 16).std()) for each in made]
    assert [value > 0.1 for value in seen] == [True, True, False, True]
