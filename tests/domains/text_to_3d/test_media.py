"""Scenes as files that other programs read, and on the page of a run."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import solid_scenes
import torch
from PIL import Image

from distillkit.evaluation.pictures import save_student
from distillkit.rendering.splats import read_splats
from distillkit.report.page import write_report
from domains.text_to_3d import media
from domains.text_to_3d.scenes import Scenes
from domains.text_to_3d.solids import PROMPTS

RED_SPHERE, BLUE_CUBE = 0, 6
COND = {"prompt": torch.tensor([BLUE_CUBE, RED_SPHERE, BLUE_CUBE])}


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(media, "SIZE", 16)
        yield


@pytest.fixture(scope="module")
def files(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "samples"
    own = solid_scenes.student(solid_scenes.painter([RED_SPHERE, BLUE_CUBE]))
    return folder, save_student(media, own, COND, folder)


def test_every_scene_has_its_files(files):
    folder, paths = files
    expected = [f"scene_{i}{end}" for i in (0, 1) for end in (".gif", ".mp4", ".glb", ".ply")]
    assert [path.name for path in paths] == [*expected, "scenes.html"]
    assert {path.name for path in folder.iterdir()} == {path.name for path in paths}


def test_a_turn_has_sixty_views_and_begins_at_the_front(files):
    av = pytest.importorskip("av")
    folder, _ = files
    with Image.open(folder / "scene_1.gif") as turning:
        assert turning.n_frames == 60 and turning.size == (32, 32) and turning.info["duration"] == 50
        frames = []
        for i in (0, 15, 30, 45, 8):
            turning.seek(i)
            frames.append(np.asarray(turning.convert("RGB"), int).max(-1) < 100)  # the stripe
    dark = [int(frame.sum()) for frame in frames]
    assert dark[0] > 5 * max(dark[1:4])  # of the front; its end is seen from behind
    assert dark[4] > 10 and frames[4].nonzero()[1].mean() < 14  # from its left, the front is on the left
    with av.open(str(folder / "scene_1.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 60 and film.duration == pytest.approx(3e6, rel=0.02)


@pytest.mark.parametrize("end", ["glb", "ply"])
def test_meshes_open_with_their_colours_in_the_world_of_cameras(files, end):
    trimesh = pytest.importorskip("trimesh")
    folder, _ = files
    loaded = trimesh.load(folder / f"scene_1.{end}", force="mesh")
    assert loaded.is_watertight and loaded.volume == pytest.approx(0.84**3, rel=0.1)
    assert np.abs(loaded.vertices).max() == pytest.approx(0.42, abs=0.03)
    colours = np.asarray(loaded.visual.vertex_colors)[:, :3].astype(int)
    front = (loaded.vertices[:, 0] > 0.3) & (np.abs(loaded.vertices[:, 1]) < 0.05)
    assert colours[front].max() < 80 and colours[loaded.vertices[:, 0] < -0.1][:, 2].min() > 200


def test_the_report_holds_the_scenes_and_no_address(files):
    folder, _ = files
    run = folder.parent
    (run / "evaluation.json").write_text(json.dumps({"rows": [], "better": {}}))
    page = write_report(run).read_text()
    (box,) = re.findall(r'<iframe sandbox="allow-scripts" title="Scenes" srcdoc="([^"]*)"', page)
    assert "a red sphere" in box and "a blue cube" in box and "half of the light" in box
    assert not re.search(r"(?:https?:)?//[\w.-]+\.\w+", box) and "<link" not in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_gaussians_are_splats_and_balls(small, tmp_path):
    network = Scenes(only=[PROMPTS[BLUE_CUBE]], kind="gaussians", resolution=128, particles=2).eval()
    with torch.no_grad():
        network.field.opacity_logits[0, :8] = -6
    own, cond = solid_scenes.student(network), {"prompt": torch.tensor([BLUE_CUBE])}
    paths = {path.name for path in media.of_student(own, cond, tmp_path)}
    assert {"scene_0_splats.ply", "scene_1_splats.ply", "scene_0.glb", "scenes.html"} <= paths
    for i in range(2):
        read = read_splats(tmp_path / f"scene_{i}_splats.ply")
        assert torch.allclose(read.means, network.field.means[i], atol=1e-6) and len(read.means) == 128
    page = (tmp_path / "scenes.html").read_text()
    assert "a blue cube 1" in page and "as balls" in page
    item = media.balls(read_splats(tmp_path / "scene_0_splats.ply"), "x")
    assert len(item.vertices) == len(item.colours) == 120 and item.faces is None
    assert item.radius == pytest.approx(0.08, rel=1e-3)


def test_at_most_four_scenes_and_one_of_each_prompt_first(small, tmp_path, monkeypatch):
    monkeypatch.setattr(media, "FRAMES", 2)
    own = solid_scenes.student(solid_scenes.painter([RED_SPHERE, BLUE_CUBE], particles=4))
    paths = media.of_student(own, COND, tmp_path)
    assert sum(path.suffix == ".gif" for path in paths) == 4
    page = (tmp_path / "scenes.html").read_text()
    order = [page.index(name) for name in ("a red sphere 0", "a blue cube 0", "a red sphere 1", "a blue cube 1")]
    assert order == sorted(order) and "sphere 2" not in page


def test_without_the_package_for_films_there_is_none(small, tmp_path, monkeypatch):
    monkeypatch.setattr(media, "FRAMES", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    own = solid_scenes.student(solid_scenes.painter([RED_SPHERE]))
    paths = media.of_student(own, {"prompt": torch.tensor([RED_SPHERE])}, tmp_path)
    assert not any(path.suffix == ".mp4" for path in paths) and any(path.suffix == ".gif" for path in paths)


def test_an_empty_scene_turns_and_has_no_surface(small, tmp_path, monkeypatch):
    monkeypatch.setattr(media, "FRAMES", 2)
    network = solid_scenes.painter([RED_SPHERE])
    with torch.no_grad():
        network.field.grid[:, 0] = -20
    paths = media.of_student(solid_scenes.student(network), {"prompt": torch.tensor([RED_SPHERE])}, tmp_path)
    assert [path.suffix for path in paths] == [".gif", ".mp4"]


def test_a_student_without_scenes_leaves_nothing(tmp_path):
    class Plain:
        network = torch.nn.Identity()

    assert media.of_student(Plain(), COND, tmp_path / "none") == [] and not (tmp_path / "none").exists()


def test_pictures_and_comparisons():
    samples = torch.rand(5, 3, 32, 32) * 2 - 1
    picture = media.picture(samples, None)
    both = media.compare({"teacher": samples, "student": samples}, None)
    assert both.height == 2 * picture.height and both.width > picture.width
