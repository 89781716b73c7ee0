"""Meshes as people have them: far away, with polygons, inside out, without pictures, damaged."""

import io
import math
import warnings

import numpy as np
import pytest
from PIL import Image

from distillkit.cli.front import main
from domains.threed.mesh_files import read_mesh
from domains.threed.mesh_folder import MeshFolder, on_lattice

trimesh = pytest.importorskip("trimesh")

U = np.array([[3, 3], [2, 3], [2, 1], [1, 1], [1, 3], [0, 3], [0, 0], [3, 0]], float)  # clockwise, with a notch
U_AREA, U_VOLUME = 30 * 0.28**2, 7 * 0.28**3  # its longest side is 3 units and becomes 0.84


def prism(outline, first=0):
    """Vertices and polygons of a prism over a clockwise outline.

    Each cap is one polygon, which begins at a corner.
    """
    size = len(outline)
    vertices = np.concatenate([np.c_[outline, np.zeros(size)], np.c_[outline, np.ones(size)]])
    corners = [(first + i) % size for i in range(size)]
    sides = [[i, (i + 1) % size, size + (i + 1) % size, size + i][::-1] for i in range(size)]
    return vertices, [corners, [size + i for i in corners[::-1]], *sides]


def as_obj(vertices, faces, relative=False):
    count = len(vertices) if relative else -1
    rows = [f"v {x!r} {y!r} {z!r}" for x, y, z in np.asarray(vertices, float).tolist()]
    return "\n".join([*rows, *("f " + " ".join(str(i - count) for i in face) for face in faces)]) + "\n"


def as_ply(vertices, faces, binary=False):
    head = (
        f"ply\nformat {'binary_little_endian' if binary else 'ascii'} 1.0\nelement vertex {len(vertices)}\n"
        f"property double x\nproperty double y\nproperty double z\nelement face {len(faces)}\n"
        "property list uchar int vertex_indices\nend_header\n"
    ).encode()
    if not binary:
        rows = [" ".join(map(repr, row)) for row in np.asarray(vertices, float).tolist()]
        rows += [f"{len(face)} {' '.join(map(str, face))}" for face in faces]
        return head + "\n".join(rows).encode() + b"\n"
    return (
        head
        + np.asarray(vertices, "<f8").tobytes()
        + b"".join(bytes([len(f)]) + np.array(f, "<i4").tobytes() for f in faces)
    )


def ball(radius=1.0, centre=(0, 0, 0), inward=False):
    found = trimesh.creation.icosphere(1, radius)
    faces = np.asarray(found.faces)
    return np.asarray(found.vertices) + centre, faces[:, ::-1] if inward else faces


def together(*meshes):
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in meshes)])
    return np.concatenate([v for v, _ in meshes]), np.concatenate(
        [f + s for (_, f), s in zip(meshes, starts, strict=False)]
    )


def read(tmp_path, text, name="mesh.obj"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_mesh(tmp_path / name)


# ---- polygons


@pytest.mark.parametrize("first", range(8))
def test_a_concave_polygon_keeps_its_notch(tmp_path, first):
    """A fan would cover it: area 40 instead of 30, from whichever corner the polygon begins at."""
    vertices, faces = prism(U, first)
    for name, text in {
        "a.obj": as_obj(vertices, faces),
        "b.obj": as_obj(vertices, faces, relative=True),
        "c.ply": as_ply(vertices, faces),
        "d.ply": as_ply(vertices, faces, binary=True),
        "e.obj": as_obj(vertices + 4.6e6, faces),
    }.items():
        mesh = read(tmp_path, text, name)
        assert mesh.watertight, name
        assert mesh.areas.sum() == pytest.approx(U_AREA, rel=1e-5), name
        assert mesh.volume == pytest.approx(U_VOLUME, rel=1e-5), name


def test_equal_polygons_of_a_ply_are_cut_as_well(tmp_path):
    """Four corners each, two of them an arrowhead.

    trimesh keeps equally long faces in another way than mixed ones.
    """
    dart = np.array([[0, 0], [-1, 2], [0, 0.5], [1, 2]])  # clockwise, the notch at its third corner
    for binary in (False, True):
        for first in range(4):
            mesh = read(tmp_path, as_ply(*prism(dart, first), binary), f"{first}.ply")
            assert mesh.watertight and mesh.volume == pytest.approx(0.5 * 0.42**3, rel=1e-5)


def test_colours_of_polygons_stay(tmp_path):
    vertices, faces = prism(U)
    text = (
        as_ply(vertices, faces)
        .decode()
        .replace("\nend_header", "\nproperty uchar red\nproperty uchar green\nproperty uchar blue\nend_header")
    )
    head, body = text.split("end_header\n")
    rows = body.splitlines()
    rows[len(vertices) :] = [row + " 255 0 0" for row in rows[len(vertices) :]]
    mesh = read(tmp_path, head + "end_header\n" + "\n".join(rows) + "\n", "red.ply")
    assert np.array_equal(mesh.colours, np.tile(np.float32([1, -1, -1]), (16, 1)))


def test_corners_may_be_counted_from_what_came_so_far(tmp_path):
    """Each of two tetrahedra right behind its own vertices, as some programs write them."""
    one = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf -4 -2 -3\nf -4 -3 -1\nf -3 -2 -1\nf -4 -1 -2\n"
    mesh = read(tmp_path, one + one.replace("v 0 0 0", "v 2 0 0").replace("v 1 0 0", "v 3 0 0").replace("v 0 ", "v 2 "))
    assert mesh.watertight and len(mesh.faces) == 8 and mesh.volume == pytest.approx(2 / 6 * 0.28**3, rel=1e-5)


# ---- places


@pytest.mark.parametrize(("place", "size"), [(0, 1e-9), (0, 1e6), (4.6e6, 1), (-4.6e6, 1), (1e8, 1), (1e8, 1e6)])
def test_far_away_and_tiny_meshes_are_the_same_shape(tmp_path, place, size):
    vertices, faces = ball()
    expected = read(tmp_path, as_obj(vertices, faces), "here.obj")
    mesh = read(tmp_path, as_obj(vertices * size + place, faces))
    assert np.abs(mesh.vertices - expected.vertices).max() < 2e-7 + 0.84 * np.spacing(place) / size
    assert np.array_equal(mesh.faces, expected.faces)


def test_a_file_whose_numbers_are_too_short_for_its_place_is_used_and_said(tmp_path):
    for place, fact in ((0, []), (4.6e6, ["where it lies its 32-bit numbers are 0.5 apart"])):
        trimesh.creation.box((4, 4, 4)).apply_translation([place] * 3).export(tmp_path / "box.stl")
        said = []
        assert read_mesh(tmp_path / "box.stl", said=said).volume == pytest.approx(0.84**3) and said == fact


# ---- parts


def test_repeated_and_flat_faces_do_no_harm(tmp_path):
    vertices, faces = ball()
    expected = read(tmp_path, as_obj(vertices, faces))
    rough = [*faces.tolist(), faces[0].tolist(), faces[5].tolist()[::-1], [3, 3, 4], [7, 7, 7]]
    mesh = read(tmp_path, as_obj(vertices, rough))
    assert mesh.watertight and mesh.volume == pytest.approx(expected.volume)
    soup = vertices[faces].reshape(-1, 3)  # of every face its own vertices, as in an .stl
    mesh = read(tmp_path, as_obj(soup, np.arange(len(soup)).reshape(-1, 3)))
    assert len(mesh.vertices) == len(vertices) and mesh.volume == pytest.approx(expected.volume)


def test_boxes_that_touch_are_two_parts(tmp_path):
    box = np.asarray(trimesh.creation.box((1, 1, 1)).vertices), np.asarray(trimesh.creation.box((1, 1, 1)).faces)
    mesh = read(tmp_path, as_obj(*together(box, (box[0] + [1, 0, 0], box[1]))))
    assert mesh.watertight and mesh.volume == pytest.approx(2 * 0.42**3, rel=1e-5)


def test_slivers_give_finite_distances(tmp_path):
    """A cone of very many very thin triangles."""
    mesh = read(
        tmp_path, as_obj(*prism(np.array([[math.cos(-t), math.sin(-t)] for t in np.linspace(0, 6.2831, 4000)])))
    )
    assert all(np.isfinite(values).all() for values in on_lattice(mesh, 16))


# ---- pictures


def cube(material="paint.mtl"):
    rows = ["vt 0.5 0.5", *(f"v {x} {y} {z}" for x in (0, 1) for y in (0, 1) for z in (0, 1))]
    faces = ["1 2 4 3", "5 7 8 6", "1 5 6 2", "3 4 8 7", "1 3 7 5", "2 6 8 4"]
    faces = ["f " + " ".join(f"{i}/1" for i in face.split()) for face in faces]
    return "\n".join([f"mtllib {material}", "usemtl paint", *rows, *faces]) + "\n"


def png(colour, size=(4, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def test_pictures_that_are_there_are_used(tmp_path):
    (tmp_path / "paint.mtl").write_text("newmtl paint\nKd 1 0 0\nmap_Kd blue.png\n")
    (tmp_path / "blue.png").write_bytes(png((0, 0, 255)))
    assert np.array_equal(np.unique(read(tmp_path, cube()).colours, axis=0), [[-1, -1, 1]])


@pytest.mark.parametrize(
    "picture",
    ["gone.png", "-s 1 1 1 gone.png", "cut.png", "words.png", "../out.png", "/etc/hostname", "http://localhost/a.png"],
)
@pytest.mark.parametrize("own", [True, False])
def test_without_its_picture_a_shape_has_its_own_colour(tmp_path, picture, own):
    folder = tmp_path / "meshes"
    folder.mkdir()
    (tmp_path / "out.png").write_bytes(png((0, 0, 255)))
    (folder / "words.png").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:4000])
    (folder / "paint.mtl").write_text(f"newmtl paint\n{'Kd 1 0 0' if own else ''}\nmap_Kd {picture}\n")
    (folder / "cube.obj").write_text(cube())
    said = []
    mesh = read_mesh(folder / "cube.obj", said=said)
    assert mesh.watertight and said == [f"{picture.split()[-1]} is not there or cannot be used"]
    assert (mesh.colours == [1, -1, -1]).all() if own else mesh.colours is None


def test_pictures_may_lie_elsewhere_in_the_folder(tmp_path):
    (tmp_path / "a" / "textures").mkdir(parents=True)
    (tmp_path / "a" / "textures" / "blue.png").write_bytes(png((0, 0, 255)))
    for i in range(3):
        (tmp_path / "a" / str(i)).mkdir(parents=True)
        (tmp_path / "a" / str(i) / "cube.obj").write_text(cube())
        (tmp_path / "a" / str(i) / "paint.mtl").write_text("newmtl paint\nmap_Kd ..\\textures\\blue.png\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # materials and pictures are no files of an unread type
        train, _, _ = MeshFolder(str(tmp_path)).load(16)
    assert train.colour[0, 2, 8, 8, 8] == 1 and train.colour[0, 0, 8, 8, 8] == -1


def test_materials_that_are_not_there(tmp_path):
    (tmp_path / "cube.obj").write_text(cube("none.mtl"))
    said = []
    assert read_mesh(tmp_path / "cube.obj", said=said).colours is None and said == [
        "none.mtl is not there or cannot be used"
    ]


# ---- folders


def put(folder, num=3):
    for i in range(num):
        vertices, faces = ball()
        (folder / f"ok{i}.obj").write_text(as_obj(vertices * (1 + i), faces))


BOW = np.array([[0, 3], [3, 0], [3, 3], [0, 1]], float)
UNUSABLE = {
    "empty.obj": (b"", "it is empty"),
    "words.obj": (b"no mesh at all\n", "it holds no faces"),
    "points.ply": (as_ply(U[:0].repeat(1, 0).reshape(0, 2), []), "it holds no faces"),
    "junk.glb": (b"no mesh", "cannot be read: "),
    "page.stl": (b"<html>404 not found</html>", "cannot be read: |no faces"),
    "cut.stl": (trimesh.creation.icosphere(1).export(file_type="stl")[:2000], "it holds no faces"),
    "cut.ply": (
        trimesh.creation.icosphere(1).export(file_type="ply")[:700],
        "cannot be read: |not there|not watertight",
    ),
    "nan.obj": (as_obj(*ball()).replace("v 0.0 ", "v nan ", 1).encode(), "a vertex is no number"),
    "inf.obj": (as_obj(*ball()).replace("v 0.0 ", "v 1e999 ", 1).encode(), "a vertex is no number"),
    "index.obj": (as_obj(ball()[0], [*ball()[1], [1, 2, 900]]).encode(), "not there|cannot be read: "),
    "point.obj": (as_obj(np.ones((4, 3)), [[0, 1, 2], [0, 2, 3]]).encode(), "is 0 long at its longest"),
    "flat.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "is not watertight"),
    "sheet.obj": (as_obj(np.eye(3), [[0, 1, 2], [2, 1, 0]]).encode(), "is not watertight"),
    "bow.obj": (as_obj(*prism(BOW)).encode(), "the outline of a face crosses itself"),
    "fewer.obj": (b"v 0 0 0\nv 1 0 0\nf 1 2\n", "no faces|cannot be read: "),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_used_says_why(tmp_path, name):
    text, reason = UNUSABLE[name]
    with pytest.raises(ValueError, match=f"({reason})"):
        read(tmp_path, text, name)


def test_files_that_cannot_be_used_are_left_out_by_name(tmp_path):
    put(tmp_path)
    for name in ("cut.stl", "nan.obj", "bow.obj"):
        (tmp_path / name).write_bytes(UNUSABLE[name][0])
    (tmp_path / "red.mtl").write_text("newmtl paint\nKd 1 0 0\nmap_Kd gone.png\n")
    (tmp_path / "ok9.obj").write_text(cube("red.mtl"))
    with pytest.warns(UserWarning) as said:
        parts = MeshFolder(str(tmp_path)).load(16)
    left_out, lacking = (str(warning.message) for warning in said)
    assert all(f"{name} (" in left_out for name in ("cut.stl", "nan.obj", "bow.obj"))
    assert lacking.endswith(": ok9.obj (gone.png is not there or cannot be used)")
    assert sum(len(part.distance) for part in parts) == 4


def test_one_rule_for_folders(tmp_path):
    put(tmp_path)
    (tmp_path / "ok0.obj").rename(tmp_path / "ok0.OBJ")
    (tmp_path / "._ok1.obj").write_bytes(b"debris")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "ok1.obj").write_bytes(b"debris")
    (tmp_path / "chair.fbx").write_bytes(b"x")
    (tmp_path / "folder.obj").mkdir()
    with pytest.warns(UserWarning, match=r"1 \.fbx \(chair.fbx\)") as said:
        parts = MeshFolder(str(tmp_path)).load(16)
    assert len(said) == 1 and sum(len(part.distance) for part in parts) == 3


@pytest.mark.slow
def test_a_folder_from_the_command_line(tmp_path, capsys):
    put(tmp_path, 6)
    (tmp_path / "u.obj").write_text(as_obj(*prism(U)))
    (tmp_path / "cube.obj").write_text(cube("none.mtl"))
    (tmp_path / "junk.glb").write_bytes(b"no mesh")
    words = [
        "fit",
        "domain=threed",
        "stage=structure",
        "method=pretrain",
        "data=mesh_folder",
        f"data.shapes.path={tmp_path}",
    ]
    words += [
        "data.batch_size=2",
        "vars.callbacks.finish.num_samples=0",
        "--trainer.max_steps=2",
        "--out",
        f"{tmp_path}/run",
    ]
    assert main(words) == 0
    assert "warning: " in (said := capsys.readouterr().err) and "junk.glb (cannot be read: " in said
