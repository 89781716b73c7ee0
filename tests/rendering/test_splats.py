"""Files of Gaussians: byte by byte, through another reader, and what is refused."""

import math

import numpy as np
import pytest
import torch

from distillkit.rendering.cameras import orbit
from distillkit.rendering.gaussians import GaussianField, Gaussians, render_gaussians, rotations
from distillkit.rendering.splats import PROPERTIES, read_splats, write_splats


@pytest.fixture
def gaussians():
    draw = torch.Generator().manual_seed(0)
    means, turns, scales, colours = (torch.rand(6, n, generator=draw) for n in (3, 4, 3, 3))
    return Gaussians(means - 0.5, turns - 0.5, scales + 0.1, torch.rand(6, generator=draw), colours)


def test_there_and_back(gaussians, tmp_path):
    found = read_splats(write_splats(tmp_path / "a.ply", gaussians))
    for name in ("means", "scales", "opacities", "colours"):
        torch.testing.assert_close(getattr(found, name), getattr(gaussians, name))
    torch.testing.assert_close(rotations(found.quaternions), rotations(gaussians.quaternions))


def test_the_file_of_a_field_looks_like_the_field(tmp_path):
    field = GaussianField(2, 30, std=1.0)
    with torch.no_grad():
        one = Gaussians(*(part[0] for part in field.gaussians(torch.tensor([1]))))
        write_splats(tmp_path / "a.ply", one)
        again = Gaussians(*(part[None] for part in read_splats(tmp_path / "a.ply")))
        camera = orbit(0.4, 0.3, 2.2, 0.9)
        expected = field.render(camera, torch.tensor([1]), 8, 8).image
    torch.testing.assert_close(render_gaussians(again, camera, 8, 8).image, expected, rtol=1e-4, atol=1e-5)


def test_the_bytes(tmp_path):
    """All seventeen properties in the order of 3DGS, little-endian, with their transforms."""
    half = torch.tensor([[1.0, 2.0, 3.0]])
    turn = torch.tensor([[0.0, 0.0, 0.0, 2.0]])
    one = Gaussians(half, turn, torch.tensor([[0.1, 1.0, 10.0]]), torch.tensor([0.75]), torch.tensor([[0.5, 1.0, 0.0]]))
    header, _, body = write_splats(tmp_path / "a.ply", one).read_bytes().partition(b"end_header\n")
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    names = names.split(" ")
    lines = ["ply", "format binary_little_endian 1.0", "element vertex 1", *(f"property float {n}" for n in names)]
    assert header.decode().splitlines() == lines and tuple(names) == PROPERTIES
    c = 0.5 * 2 * math.sqrt(math.pi)
    expected = [1, 2, 3, 0, 0, 0, 0, c, -c, math.log(3), math.log(0.1), 0, math.log(10), 0, 0, 0, 1]
    assert np.frombuffer(body, "<f4").tolist() == pytest.approx(expected, rel=1e-6)


def test_another_reader_sees_the_same(gaussians, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    write_splats(tmp_path / "a.ply", gaussians)
    cloud = trimesh.load(tmp_path / "a.ply")
    np.testing.assert_allclose(cloud.vertices, gaussians.means.numpy(), rtol=1e-6)
    raw = cloud.metadata["_ply_raw"]["vertex"]
    assert tuple(raw["properties"]) == PROPERTIES and set(raw["properties"].values()) == {"<f4"}
    np.testing.assert_allclose(raw["data"]["scale_1"].reshape(-1), gaussians.scales[:, 1].log().numpy(), rtol=1e-6)


def test_extremes_are_written_as_numbers(tmp_path):
    one = Gaussians(torch.zeros(2, 3), torch.ones(2, 4), torch.ones(2, 3), torch.tensor([0.0, 1.0]), torch.ones(2, 3))
    found = read_splats(write_splats(tmp_path / "a.ply", one))
    assert found.opacities.tolist() == pytest.approx([0, 1], abs=1e-5)


def test_more_properties_and_comments_are_passed_over(gaussians, tmp_path):
    data = write_splats(tmp_path / "a.ply", gaussians).read_bytes()
    header, _, body = data.partition(b"end_header\n")
    rows = np.frombuffer(body, "<f4").reshape(6, 17)
    header = header.replace(b"1.0\n", b"1.0\ncomment made elsewhere\n", 1)
    header = header.replace(b"property float opacity", b"property float f_rest_0\nproperty float opacity")
    (tmp_path / "b.ply").write_bytes(header + b"end_header\n" + np.insert(rows, 9, 7, axis=1).tobytes())
    for a, b in zip(read_splats(tmp_path / "b.ply"), read_splats(tmp_path / "a.ply"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda data: b"hello", "no binary little-endian .ply file"),
        (lambda data: data.replace(b"binary_little_endian", b"ascii"), "no binary little-endian .ply file"),
        (lambda data: data.replace(b"float rot_3", b"float other"), "holds no Gaussians: its vertices lack rot_3"),
        (
            lambda data: data.replace(b"float opacity", b"uchar opacity"),
            "holds no Gaussians: its vertices lack opacity",
        ),
        (lambda data: data.replace(b"float nx", b"uchar nx"), "not float or occur twice"),
        (lambda data: data[:-3], "cut off or too long"),
        (lambda data: data.replace(b"vertex 6", b"vertex 7"), "cut off or too long"),
        (lambda data: data[:-4] + np.float32(np.nan).tobytes(), "not finite"),
        (lambda data: data[:-16] + bytes(16), "a quaternion of length 0"),
    ],
)
def test_other_files_are_refused(gaussians, tmp_path, change, said):
    path = write_splats(tmp_path / "a.ply", gaussians)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=said):
        read_splats(path)
