"""Meshes from voxels and back, pictures and files, against spheres and boxes."""

import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from domains.threed import media
from domains.threed.data import FeaturesData, StructureData
from domains.threed.lattice import Volumes, lattice_points, occupied, shell, voxel_features, voxel_sets
from domains.threed.mesh_folder import MeshFolder, on_lattice, read_mesh, winding
from domains.threed.meshes import Mesh, feature_meshes, lattice_distance, marching_cubes, seams, structure_meshes
from domains.threed.solids import Solids

trimesh = pytest.importorskip("trimesh")

SPOT = Path(os.environ.get("DISTILLKIT_TEST_DATA", "")) / "mesh" / "spot.obj"


def ball(radius=0.3, centre=(0.05, -0.1, 0.02), side=16):
    """A ball off the centre whose colour is red along x, green along y, blue along z."""
    middle = torch.tensor(centre)
    distance = (lattice_points(side) - middle).norm(dim=-1) - radius
    return Volumes(distance[None], 2 * lattice_points(side, centres=True).movedim(-1, 0)[None])


def features(volumes):
    coords, mask = voxel_sets(shell(occupied(volumes.distance)))
    return voxel_features(volumes, coords, mask), coords, mask


def test_features_become_the_shape_again():
    (mesh,) = feature_meshes(*features(ball()), side=16)
    centre = np.array([0.05, -0.1, 0.02])
    assert mesh.watertight
    assert mesh.volume == pytest.approx(marching_cubes(ball().distance[0].numpy()).volume, rel=1e-4)
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=6 / (8 * 4.8**2))  # chords of up to sqrt(2) h
    assert np.abs(np.linalg.norm(mesh.vertices - centre, axis=-1) - 0.3).max() < 0.003
    assert np.abs(mesh.colours - 2 * mesh.vertices).max() < 0.07  # half a voxel, where neighbours lack on one side
    points, colours = mesh.sample(500, seed=1)
    assert points.shape == colours.shape == (500, 3)
    assert np.abs(points.mean(0) - centre).max() < 0.02
    assert all(np.array_equal(a, b) for a, b in zip(mesh.sample(50, seed=1), mesh.sample(50, seed=1), strict=True))


def test_the_lattice_comes_back_with_its_signs():
    volumes = Solids(train=25, val=1, test=1).load(16)[0]
    x, coords, mask = features(volumes)
    found = lattice_distance(x, coords, mask, 16)
    assert ((found < 0) == (volumes.distance < 0)).float().mean() > 0.9999
    near = (found.abs() < 0.99 / 16) & (volumes.distance.abs() < 0.99 / 16)
    assert (found - volumes.distance)[near].abs().max() < 1e-6
    # what stands in the padding is of no account, nor which shapes come with it
    x[~mask] = torch.nan
    assert torch.equal(lattice_distance(x[3:4], coords[3:4], mask[3:4], 16), found[3:4])


def test_a_hollow_stays_hollow():
    radius = lattice_points(16).norm(dim=-1)
    hollow = Volumes(torch.maximum(radius - 0.42, 0.2 - radius)[None], torch.zeros(1, 3, 16, 16, 16))
    (mesh,) = feature_meshes(*features(hollow), side=16)
    assert mesh.watertight
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * (0.42**3 - 0.2**3), rel=0.03)


def test_corners_are_shared():
    x, coords, mask = features(ball())
    assert seams(x, coords, mask, 16) == pytest.approx(0, abs=1e-6)
    noise = 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert 0.1 < seams(x + noise, coords, mask, 16) < 0.2


def test_structures_become_solids():
    volumes = Solids(train=50, val=1, test=1).load(16)[0]
    solid = occupied(volumes.distance)[:, None].float() * 2 - 1
    meshes, true = structure_meshes(solid), [marching_cubes(d) for d in volumes.distance.numpy()]
    assert all(mesh.watertight for mesh in meshes)
    assert np.mean([m.volume for m in meshes]) == pytest.approx(np.mean([m.volume for m in true]), rel=0.15)
    full = structure_meshes(torch.ones(1, 1, 16, 16, 16))[0]
    assert full.watertight and full.volume == pytest.approx(
        (1 - 2 * 0.625 / 16) ** 3, rel=0.01
    )  # 2 (LEVEL - 1/2) inwards


def test_nothing_is_an_empty_mesh():
    (mesh,) = structure_meshes(-torch.ones(1, 1, 16, 16, 16))
    assert len(mesh.faces) == 0 and not mesh.watertight and mesh.volume == 0
    assert not mesh.sample(10)[0].any()
    coords, mask = torch.zeros(1, 5, 3, dtype=torch.long), torch.zeros(1, 5, dtype=torch.bool)
    assert len(feature_meshes(torch.zeros(1, 5, 11), coords, mask, 16)[0].faces) == 0
    assert (media.render(mesh)[0] == 255).all()


def test_what_is_open_is_not_watertight():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    assert Mesh(vertices, faces).watertight and Mesh(vertices, faces).volume == pytest.approx(1 / 6)
    assert not Mesh(vertices, faces[:3]).watertight
    turned = faces.copy()
    turned[0] = turned[0][::-1]
    assert not Mesh(vertices, turned).watertight
    assert not Mesh(vertices, np.concatenate([faces, faces])).watertight


def test_points_are_even():
    """Twice the area, twice the points."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [7, 0, 0], [5, 1, 0]], np.float32)
    points, _ = Mesh(vertices, np.array([[0, 1, 2], [3, 4, 5]])).sample(3000)
    assert (points[:, 0] > 4).sum() == pytest.approx(2000, abs=2)
    first = points[points[:, 0] < 4]
    assert np.allclose(first[:, :2].mean(0), 1 / 3, atol=0.03) and (first[:, 0] + first[:, 1] <= 1).all()


# ---- files


def saved(mesh, path, colour=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if colour is not None:
        mesh.visual.vertex_colors = [*colour, 255]
    mesh.export(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(5):
        saved(trimesh.creation.box((1, 2, 3 + i)), tmp_path / "crate" / f"{i}.stl")
        saved(trimesh.creation.icosphere(3), tmp_path / "ball" / f"{i}.ply", (255, 0, 0))
    return tmp_path


def test_meshes_in_class_folders(folder):
    data = FeaturesData(MeshFolder(str(folder)), voxels=1200)
    data.setup()
    assert data.classes == {"label": 2} and data.shapes.names == ["ball", "crate"]
    assert [len(part) for part in (data.train, data.val, data.test)] == [8, 1, 1]
    batch = data.train[torch.arange(8)]
    for x, mask, label in zip(batch["data"], batch["mask"], batch["label"], strict=True):
        assert mask.sum() > 100
        expected = torch.tensor([1.0, -1, -1]) if label == 0 else torch.zeros(3)
        torch.testing.assert_close(x[mask][:, 8:], expected.expand(int(mask.sum()), 3), atol=0.01, rtol=0)
    again = StructureData(MeshFolder(str(folder)))
    again.setup()
    assert torch.equal(again.train.tensors["label"], batch["label"])


def test_what_has_no_inside_is_left_out_and_named(folder):
    (folder / "crate" / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (folder / "ball" / "junk.glb").write_bytes(b"no mesh")
    with pytest.warns(UserWarning, match=r"left out: ball/junk.glb \(cannot be read.*flat.obj \(is not watertight"):
        parts = MeshFolder(str(folder)).load(16)
    assert sum(len(part.distance) for part in parts) == 10


def test_folders_that_will_not_do(folder):
    with pytest.raises(ValueError, match="is not a folder"):
        MeshFolder(str(folder / "none")).load(16)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="no watertight mesh"):
        MeshFolder(str(folder / "empty")).load(16)
    saved(trimesh.creation.box((1, 1, 1)), folder / "flat.stl")
    with pytest.raises(ValueError, match="both flat and in class folders"):
        MeshFolder(str(folder)).load(16)
    with pytest.raises(ValueError, match=r"lie in \(0, 1\)"):
        MeshFolder(str(folder), val=0)


def test_distances_to_a_mesh_are_exact(tmp_path):
    saved(trimesh.creation.box((1, 0.5, 2)), tmp_path / "box.obj")
    mesh = read_mesh(tmp_path / "box.obj")
    assert np.allclose(mesh.vertices.max(0), [0.21, 0.105, 0.42], atol=1e-6)
    distance, _ = on_lattice(mesh, 16)
    points = lattice_points(16).numpy()
    q = np.abs(points) - [0.21, 0.105, 0.42]
    expected = np.linalg.norm(q.clip(0), axis=-1) + q.max(-1).clip(max=0)
    assert np.abs(distance - expected)[np.abs(expected) < 2 / 16].max() < 1e-5
    assert np.array_equal(distance < 0, expected < 0)


def test_winding_counts_shapes_on_shapes():
    ball = trimesh.creation.icosphere(2, 0.3)
    double = Mesh(
        np.tile(np.asarray(ball.vertices, np.float32), (2, 1)),
        np.concatenate([ball.faces, ball.faces + len(ball.vertices)]),
    )
    found = winding(double, 8)
    assert found[4, 4, 4] == 2 and found[0, 0, 0] == 0 and set(np.unique(found)) == {0, 2}


@pytest.mark.parametrize(("up", "tall"), [("y", 2), ("z", 1)])
def test_up(tmp_path, up, tall):
    saved(
        trimesh.creation.cone(0.5, 3).apply_transform(trimesh.transformations.rotation_matrix(-math.pi / 2, [1, 0, 0])),
        tmp_path / "c.glb",
    )
    mesh = read_mesh(tmp_path / "c.glb", up)
    extent = np.ptp(mesh.vertices, axis=0)
    assert extent.argmax() == tall and mesh.volume > 0
    assert abs(mesh.vertices[mesh.vertices[:, tall].argmax(), 0]) < 0.01  # the tip is at the top


def test_spot():
    if not SPOT.is_file():
        pytest.skip("the mesh is not here")
    mesh = read_mesh(SPOT, up="y")
    assert mesh.watertight and len(mesh.vertices) == 2930
    distance, _ = on_lattice(mesh, 32)
    again = marching_cubes(distance)
    assert again.watertight and again.volume == pytest.approx(mesh.volume, rel=0.03)


# ---- pictures


def test_the_camera_sees_what_is_there():
    """A ball fills its circle; up is up; the camera goes round."""
    (mesh,) = feature_meshes(*features(ball(0.4, (0, 0, 0))), side=16)
    image = media.render(mesh, azimuths=[0.0])[0]
    drawn = (image < 250).any(-1)
    assert drawn.mean() == pytest.approx(math.pi * 0.4**2, rel=0.04)
    blue = image[..., 2].astype(int) - image[..., 0]
    top, bottom = blue[10:30][drawn[10:30]].mean(), blue[-30:-10][drawn[-30:-10]].mean()
    assert top > bottom  # blue grows upwards
    from_x, from_behind = media.render(mesh, azimuths=[0.0, math.pi])
    red = [view[40:56, 40:56, 0].mean() for view in (from_x, from_behind)]
    assert red[0] > red[1] + 50  # red grows along x, and the camera stands at +x first


def test_what_is_in_front_hides_what_is_behind():
    front, back = (feature_meshes(*features(ball(0.14, (x, 0, 0))), side=16)[0] for x in (0.15, -0.15))
    red, blue = np.array([1, -1, -1], np.float32), np.array([-1, -1, 1], np.float32)
    colours = np.concatenate([np.tile(red, (len(front.vertices), 1)), np.tile(blue, (len(back.vertices), 1))])
    faces = np.concatenate([front.faces, back.faces + len(front.vertices)])
    mesh = Mesh(np.concatenate([front.vertices, back.vertices]), faces, colours)
    from_front, from_behind = media.render(mesh, azimuths=[0.0, math.pi])
    middle = (slice(46, 50), slice(46, 50))  # both balls cover it
    assert from_front[middle][..., 0].min() > 60 and from_front[middle][..., 2].max() == 0
    assert from_behind[middle][..., 2].min() > 60 and from_behind[middle][..., 0].max() == 0


def test_pictures_and_files(tmp_path):
    x, coords, mask = features(Solids(train=3, val=1, test=1).load(16)[0])
    cond = {"coords": coords, "mask": mask}
    structure = torch.ones(3, 1, 16, 16, 16)
    assert media.picture(x, cond, columns=2).size == (2 * media.CELL, 2 * media.CELL)
    assert media.picture(structure * torch.nan).size == (3 * media.CELL, media.CELL)
    sheet = media.compare({"teacher": x, "student": x}, {key: value[:3] for key, value in cond.items()}, columns=2)
    assert sheet.height == 2 * media.CELL and sheet.width > 2 * media.CELL
    paths = media.save(x[:1], {key: value[:1] for key, value in cond.items()}, tmp_path)
    assert sorted(path.name for path in paths) == ["shape_0.gif", "shape_0.glb", "shape_0.ply", "shapes.html"]
    mesh = trimesh.load_scene(tmp_path / "shape_0.glb").to_mesh()
    (own,) = feature_meshes(x[:1], coords[:1], mask[:1], 16)
    assert mesh.is_watertight and mesh.volume == pytest.approx(own.volume, rel=1e-4)
    assert np.abs(np.asarray(mesh.visual.vertex_colors)[:, :3] / 127.5 - 1 - own.colours).max() < 0.01
    cloud = trimesh.load(tmp_path / "shape_0.ply")
    assert cloud.vertices.shape == (4096, 3) and np.ptp(np.asarray(cloud.colors)[:, :3]) > 0
    with Image.open(tmp_path / "shape_0.gif") as turning:
        assert turning.n_frames == media.FRAMES
    assert [path.name for path in media.save(-structure[:1], {}, tmp_path / "empty")] == ["shape_0.gif"]
    with pytest.raises(ValueError, match="coords and mask"):
        media.picture(x, {})


def test_meshes_turn_on_the_page_and_large_ones_as_points(monkeypatch):
    (mesh,) = feature_meshes(*features(ball(0.42, (0, 0, 0))), side=16)
    shown = media.item_of(mesh, "shape 0")
    assert shown.vertices is mesh.vertices and shown.faces is mesh.faces
    assert np.abs(shown.colours / 127.5 - 1 - mesh.colours).max() < 0.01
    monkeypatch.setattr(media, "SHOWN", 500)
    shown = media.item_of(mesh, "shape 0")
    assert shown.faces is None and shown.vertices.shape == shown.colours.shape == (500, 3) and shown.radius > 0
    assert np.abs(np.linalg.norm(shown.vertices, axis=1) - 0.42).max() < 0.02


def test_files_can_be_read_as_meshes_again(tmp_path):
    x, coords, mask = features(ball(0.42, (0, 0, 0)))
    media.save(x, {"coords": coords, "mask": mask}, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mesh = read_mesh(tmp_path / "shape_0.glb")
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.42**3, rel=0.02)
    assert np.abs(mesh.colours - 2 * mesh.vertices).max() < 0.1
