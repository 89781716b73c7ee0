"""Point files as people have them: every format, each written here by hand, whole and damaged."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from domains.lidar import layouts
from domains.lidar.files import fault, read_scan, write_bin, write_ply
from domains.lidar.layouts import unpack_lzf

REAL = Path(os.environ.get("DISTILLKIT_TEST_DATA", "")) / "lidar"
COUNTS = {
    "sequences/os1_128_street/velodyne/000000": 107647,
    "sequences/os1_128_street/velodyne/000001": 107357,
    "sequences/os1_128_street/velodyne/000002": 107532,
    "sequences/os1_128_plaza/velodyne/000000": 101772,
    "sequences/os1_128_plaza/velodyne/000001": 109205,
    "singles/os2_128": 119682,
    "singles/os0_128_a": 97299,
    "singles/os1_32": 27310,
    "singles/os2_32": 28541,
    "singles/os0_32": 21631,
}
POINTS = np.array([[1, 2, 3], [-4.5, 5.25, 0.125], [60, -7, 1.5], [8, 8, -2]], np.float32)
SHADES = np.array([0, 51, 102, 255], np.uint8)
RINGS = np.array([0, 1, 1, 3], np.uint16)


@pytest.mark.skipif(not REAL.is_dir(), reason="DISTILLKIT_TEST_DATA names no folder with it")
@pytest.mark.parametrize("name", COUNTS)
def test_real_scans(name):
    scan = read_scan(REAL / f"{name}.bin")
    beams = 32 if "_32" in name else 128
    assert scan.points.shape == (COUNTS[name], 3)
    assert scan.intensity.min() >= 0 and 0.9 < scan.intensity.max() <= 1
    assert scan.ring.unique().tolist() == [*range(beams)]  # of a sidecar
    height = torch.atan2(scan.points[:, 2], scan.points[:, :2].norm(dim=1))
    assert height[scan.ring == 0].mean() > height[scan.ring == beams - 1].mean() + 0.3


@pytest.mark.skipif(not REAL.is_dir(), reason="DISTILLKIT_TEST_DATA names no folder with it")
def test_a_real_map():
    assert read_scan(REAL / "sequences" / "os1_128_street" / "map.ply").points.shape == (155000, 3)


# ---- formats


def ply(order, extra=b""):
    """Points with a column that is not wanted, intensities and rings; faces behind them."""
    kind = {"<": "binary_little_endian", ">": "binary_big_endian", "": "ascii"}[order]
    head = (
        f"ply\r\nformat {kind} 1.0\ncomment element vertex 7\nelement camera 2\nproperty double focus\n"
        "element vertex 4\nproperty uchar red\nproperty float x\nproperty double y\nproperty float z\n"
        "property uint8 Intensity\nproperty ushort ring\n"
        "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    ).encode()
    rows = [(7, *point, shade, ring) for point, shade, ring in zip(POINTS, SHADES, RINGS, strict=True)]
    if not order:
        lines = ["1.5", "2.5", *(" ".join(map(str, map(float, row))) for row in rows), "3 0 1 2"]
        return head + "\n".join(lines).encode()
    body = struct.pack(f"{order}2d", 1.5, 2.5) + b"".join(struct.pack(f"{order}BfdfBH", *row) for row in rows)
    return head + body + struct.pack(f"{order}B3i", 3, 0, 1, 2)


def pcd(data):
    """Points with padding, a column of three numbers, intensities and rings."""
    head = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y _ z normal intensity ring\nSIZE 4 8 1 4 4 1 2\nTYPE F F U F F U U\n"
        f"COUNT 1 1 3 1 3 1 1\nWIDTH 2\nHEIGHT 2\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 4\nDATA {data}\n"
    ).encode()
    row = np.dtype(
        [("x", "<f4"), ("y", "<f8"), ("_", "u1", 3), ("z", "<f4"), ("n", "<f4", 3), ("i", "u1"), ("r", "<u2")]
    )
    table = np.zeros(4, row)
    table["x"], table["y"], table["z"] = POINTS.T
    table["i"], table["r"], table["n"] = SHADES, RINGS, 0.5
    if data == "ascii":
        flat = [np.concatenate([np.ravel(value) for value in each.tolist()]) for each in table]
        return head + "".join(" ".join(map(str, numbers)) + "\n" for numbers in flat).encode()
    if data == "binary":
        return head + table.tobytes()
    columns = b"".join(table[name].tobytes() for name in row.names)
    packed = pack_lzf(columns)
    return head + struct.pack("<2I", len(packed), len(columns)) + packed


def pack_lzf(data):
    """LZF by its definition: each run of literals, or reference to what came before, that fits."""
    out, literals, at = bytearray(), bytearray(), 0

    def flush():
        for start in range(0, len(literals), 32):
            out.extend([len(literals[start : start + 32]) - 1, *literals[start : start + 32]])
        literals.clear()

    while at < len(data):
        start, length = data.rfind(data[at : at + 3], max(0, at - 8192), at + 2), 0
        if 0 <= start < at and at + 3 <= len(data):
            while length < 264 and at + length < len(data) and data[start + length] == data[at + length]:
                length += 1
        if length < 3:
            literals.append(data[at])
            at += 1
            continue
        flush()
        far, short = at - start - 1, length - 2
        out.extend([min(short, 7) << 5 | far >> 8, *([short - 7] if short >= 7 else []), far & 255])
        at += length
    flush()
    return bytes(out)


WHOLE = {
    "ascii.ply": ply(""),
    "little.ply": ply("<"),
    "big.ply": ply(">"),
    "ascii.pcd": pcd("ascii"),
    "binary.pcd": pcd("binary"),
    "packed.pcd": pcd("binary_compressed"),
    "nuscenes.pcd.bin": np.c_[POINTS, SHADES, RINGS].astype("<f4").tobytes(),
    "nuscenes.bin": np.c_[POINTS, SHADES, RINGS][:3].astype("<f4").tobytes(),  # 60 bytes: five columns alone fit
    "table.xyz": b"# x y z intensity ring\n" + "\n".join(
        ",".join(map(str, [*point.tolist(), shade, ring])) for point, shade, ring in zip(POINTS, SHADES, RINGS, strict=True)
    ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_formats(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(WHOLE[name])
    assert fault(path) is None
    scan = read_scan(path)
    size = len(scan.points)
    assert size == (3 if name == "nuscenes.bin" else 4)
    assert torch.equal(scan.points, torch.from_numpy(POINTS[:size]))
    assert torch.allclose(scan.intensity, torch.from_numpy(SHADES[:size] / np.float32(255)))
    assert scan.ring.tolist() == RINGS[:size].tolist()


@pytest.mark.parametrize("columns", [3, 4, 5, 6])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".xyz"])
def test_tables(columns, suffix, tmp_path):
    table = np.c_[POINTS, SHADES / 255, RINGS, np.ones(4)][:, :columns].astype(np.float32)
    path = tmp_path / f"scan{suffix}"
    {".npy": np.save, ".npz": lambda path, of: np.savez(path, points=of), ".xyz": np.savetxt}[suffix](path, table)
    scan = read_scan(path)
    assert fault(path) is None and torch.equal(scan.points, torch.from_numpy(POINTS))
    assert (scan.intensity is not None) == (columns in (4, 5)) and (scan.ring is not None) == (columns == 5)


def test_what_is_written_is_read_again(tmp_path):
    points, intensity = torch.from_numpy(POINTS), torch.tensor([0, 0.25, 0.5, 1])
    colours = torch.arange(12, dtype=torch.uint8).reshape(4, 3)
    scan = read_scan(write_bin(tmp_path / "a" / "scan.bin", points, intensity))
    assert torch.equal(scan.points, points) and torch.equal(scan.intensity, intensity) and scan.ring is None
    assert read_scan(write_bin(tmp_path / "scan.bin", points)).intensity.eq(0).all()
    for each in (None, colours):
        assert torch.equal(read_scan(write_ply(tmp_path / "scan.ply", points, each)).points, points)
    columns = layouts.read_columns(tmp_path / "scan.ply")
    assert np.array_equal(np.stack([columns[name] for name in ("red", "green", "blue")], 1), colours.numpy())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".bin", ".ply")]


def test_a_size_that_fits_both_has_four_columns_unless_it_is_named(tmp_path):
    table = np.arange(1, 21, dtype="<f4")
    for name, rows in (("scan.bin", 5), ("scan.pcd.bin", 4)):
        table.tofile(tmp_path / name)
        assert len(read_scan(tmp_path / name).points) == rows


def test_rings_are_counted_from_above(tmp_path):
    """nuScenes counts from below, Ouster from above."""
    low, high = [10, 0, -2], [10, 0, 1]
    for name, ring in (("below", [0, 31]), ("above", [31, 0])):
        np.save(tmp_path / f"{name}.npy", np.array([low, high], np.float32))
        np.save(tmp_path / f"{name}_ring.npy", np.array(ring, np.uint8))
        assert read_scan(tmp_path / f"{name}.npy").ring.tolist() == [31, 0]


def test_rings_of_another_scan_are_refused(tmp_path):
    path = write_bin(tmp_path / "velodyne" / "000000.bin", torch.from_numpy(POINTS))
    (tmp_path / "ring").mkdir()
    np.save(tmp_path / "ring" / "000000.npy", np.zeros(5, np.uint8))
    with pytest.raises(ValueError, match=r"000000.bin has 4 points, but .*000000.npy has uint8 of the shape \[5\]"):
        read_scan(path)
    np.save(tmp_path / "ring" / "000000.npy", np.array(["top"] * 4))
    with pytest.raises(ValueError, match=r"000000.bin has 4 points, but .*000000.npy has <U3 of the shape \[4\]"):
        read_scan(path)


@pytest.mark.parametrize("ring", [[0.5, 1, 2, 3], [-1, 0, 1, 2], [0, 1, 2, np.nan], [0, 1, 2, 1e300]])
def test_numbers_that_are_no_rings_are_not_taken_for_them(ring, tmp_path):
    np.savez(tmp_path / "scan.npz", points=POINTS, ring=np.array(ring))
    assert read_scan(tmp_path / "scan.npz").ring is None


def test_rows_without_a_return_are_left_out_and_told(tmp_path):
    table = np.c_[POINTS, SHADES, RINGS].astype(np.float32)
    table[0, 1], table[2, :3] = np.nan, 0
    np.save(tmp_path / "scan.npy", table)
    scan = read_scan(tmp_path / "scan.npy")
    assert torch.equal(scan.points, torch.from_numpy(POINTS[[1, 3]]))
    assert scan.intensity.tolist() == pytest.approx([0.2, 1]) and scan.ring.tolist() == [1, 3]


def test_only_static_classes_are_left_by_labels(tmp_path):
    path = write_bin(tmp_path / "scan.bin", torch.from_numpy(POINTS))
    for classes, kept in (([0, 1, 252, 40], [3]), ([2, 251, 259, 10], [0, 1, 3])):
        (np.array(classes, np.uint32) | (7 << 16)).tofile(tmp_path / "scan.label")
        assert torch.equal(read_scan(path, tmp_path / "scan.label").points, torch.from_numpy(POINTS[kept]))
    (tmp_path / "scan.label").write_bytes(b"\0" * 12)
    with pytest.raises(ValueError, match="scan.bin has 4 points, but .*scan.label has 12 bytes"):
        read_scan(path, tmp_path / "scan.label")


# ---- damage

DAMAGED = {
    "empty.bin": (b"", "is empty"),
    "cut.bin": (WHOLE["nuscenes.pcd.bin"][:70], "has 70 bytes, no multiple of 16"),
    "cut.pcd.bin": (WHOLE["nuscenes.pcd.bin"][:64], "has 64 bytes, no multiple of 20"),
    "cut.ply": (WHOLE["little.ply"][:-40], "is cut off"),
    "cut_header.ply": (WHOLE["little.ply"][:60], "no header that ends with end_header"),
    "short.ply": (WHOLE["ascii.ply"][:-60], "no table of numbers"),
    "rows.pcd": (WHOLE["ascii.pcd"].replace(b"POINTS 4", b"POINTS 5"), "instead of"),
    "words.ply": (WHOLE["ascii.ply"].replace(b"60.0", b"sixty"), "no table of numbers"),
    "other.ply": (WHOLE["little.ply"].replace(b"vertex 4", b"corner 4"), "damaged header"),
    "many.ply": (WHOLE["little.ply"].replace(b"vertex 4", b"vertex 999999999"), "is cut off"),
    "endless.ply": (WHOLE["little.ply"].replace(b"vertex 4", b"vertex " + b"9" * 40), "damaged header"),
    "list.ply": (WHOLE["little.ply"].replace(b"ring\n", b"ring\nproperty list uchar int a\n"), "has a list"),
    "none.ply": (WHOLE["ascii.ply"].replace(b"vertex 4", b"vertex 0"), "holds no points"),
    "flat.ply": (WHOLE["little.ply"].replace(b"float z", b"float w"), "has no column z"),
    "cut.pcd": (WHOLE["binary.pcd"][:-1], "is cut off"),
    "cut_packed.pcd": (WHOLE["packed.pcd"][:-1], "is cut off"),
    "broken_packed.pcd": (WHOLE["packed.pcd"].replace(struct.pack("<I", 136), struct.pack("<I", 137)), "is cut off"),
    "many_packed.pcd": (WHOLE["packed.pcd"].replace(b"POINTS 4", b"POINTS 99999999"), "more than the"),
    "kind.pcd": (WHOLE["binary.pcd"].replace(b"DATA binary", b"DATA zipped"), "unknown DATA or types: zipped"),
    "type.pcd": (WHOLE["binary.pcd"].replace(b"TYPE F F", b"TYPE O F"), "unknown DATA or types"),
    "fields.pcd": (WHOLE["binary.pcd"].replace(b"SIZE 4 8 1", b"SIZE 4 8"), "do not fit together"),
    "text.xyz": (b"a house\n", "no table of numbers"),
    "cut.npy": (b"\x93NUMPY\x01\x00", "no whole .npy file"),
    "cut.npz": (b"PK\x03\x04", "no whole .npz file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_in_one_sentence(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(DAMAGED[name][0])
    with pytest.raises(ValueError, match=DAMAGED[name][1]) as caught:
        read_scan(path)
    said = str(caught.value)
    assert said.startswith(f"{path} ") and said.count(str(path)) == 1 and "\n" not in said


def test_an_archive_is_no_array_and_words_are_no_numbers(tmp_path):
    np.savez(tmp_path / "scan.npz", points=POINTS)
    (tmp_path / "scan.npz").rename(tmp_path / "scan.npy")
    assert fault(tmp_path / "scan.npy").startswith("is no whole .npy file")
    with pytest.raises(ValueError, match="scan.npy is no whole .npy file"):
        read_scan(tmp_path / "scan.npy")
    np.savez(tmp_path / "scan.npz", points=POINTS, ring=np.array(["top"] * 4))
    with pytest.raises(ValueError, match=r"scan.npz has 4 points, but <U3 of the shape \[4\] as ring"):
        read_scan(tmp_path / "scan.npz")


def test_pickles_are_not_opened(tmp_path):
    np.save(tmp_path / "scan.npy", np.array([print], object), allow_pickle=True)
    np.savez(tmp_path / "scan.npz", points=np.array([print], object))
    for name in ("scan.npy", "scan.npz"):
        with pytest.raises(ValueError, match=f"{name} .*[Oo]bject"):
            read_scan(tmp_path / name)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps([1.0]))
    with pytest.raises(ValueError, match="raw.npy is no whole .npy file") as caught:
        read_scan(tmp_path / "raw.npy")
    assert "allow_pickle" not in str(caught.value)  # numpy's own advice is to open it


def test_what_no_sensor_sees_is_refused(tmp_path):
    np.save(tmp_path / "scan.npy", POINTS * 1000)
    with pytest.raises(ValueError, match="scan.npy has a coordinate of 60,000 m"):
        read_scan(tmp_path / "scan.npy")
    np.save(tmp_path / "scan.npy", np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="scan.npy has no return: all 3 rows"):
        read_scan(tmp_path / "scan.npy")
    with pytest.raises(ValueError, match=r"numbers \[n, 3\] to \[n, 6\]"):
        np.save(tmp_path / "scan.npy", np.zeros((3, 7)))
        read_scan(tmp_path / "scan.npy")
    with pytest.raises(ValueError, match="scan.las is none of .bin"):
        (tmp_path / "scan.las").touch()
        read_scan(tmp_path / "scan.las")
    with pytest.raises(ValueError, match="gone.bin No such file"):
        read_scan(tmp_path / "gone.bin")


def test_large_files_are_refused_before_they_are_read(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "scan.npz", points=np.zeros((10_000, 3), np.float32))
    np.save(tmp_path / "scan.npy", np.zeros((10_000, 3), np.float32))
    monkeypatch.setattr(layouts, "MOST", 100_000)
    monkeypatch.setattr(np, "load", None)
    assert (tmp_path / "scan.npz").stat().st_size < 1000
    for name in ("scan.npz", "scan.npy"):
        with pytest.raises(ValueError, match=f"{name} has 120,[0-9]+ bytes, more than the 100,000"):
            read_scan(tmp_path / name)


# ---- LZF


def test_lzf_by_hand():
    """A run of three letters; six more from three back, which reach into themselves; a long one."""
    packed = bytes([2]) + b"abc" + bytes([4 << 5, 2]) + bytes([7 << 5, 11, 8])
    assert unpack_lzf(packed, 29) == b"abc" * 9 + b"ab"
    far = (
        bytes([31]) + bytes(range(32)) + b"".join(bytes([31]) + bytes(32) for _ in range(30)) + bytes([3 << 5 | 3, 223])
    )
    assert unpack_lzf(far, 32 * 31 + 5)[-5:] == bytes([0, 1, 2, 3, 4])  # 992 back, in two bytes


@pytest.mark.parametrize("seed", range(3))
def test_lzf_round_trip(seed):
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 3, 20_000, np.uint8).tobytes() + generator.bytes(500) + bytes(2000)
    assert unpack_lzf(pack_lzf(data), len(data)) == data


@pytest.mark.parametrize("packed, size", [(bytes([2]) + b"ab", 3), (bytes([0, 97, 4 << 5, 2]), 7), (bytes([224]), 9)])
def test_lzf_that_is_damaged(packed, size):
    with pytest.raises(ValueError, match="is damaged"):
        unpack_lzf(packed, size)
