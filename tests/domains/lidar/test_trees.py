"""Recordings in folders as they are published, and as people keep them."""

import warnings

import numpy as np
import pytest
import torch
from mutations import Mutation, prove
from scipy.spatial.transform import Rotation

from domains.lidar.files import write_bin, write_ply
from domains.lidar.trees import find, read_poses

POINTS = torch.tensor([[5.0, 1, 0], [6, -1, 1]])


def pose(x, y, z, yaw=0.0, pitch=0.0, roll=0.0):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("zyx", [yaw, pitch, roll]).as_matrix()
    matrix[:3, 3] = x, y, z
    return matrix


POSES = np.stack([pose(i, 0.3 * i, 0.1 * i, 0.2 * i, 0.05 * i) for i in range(3)])
TR = np.linalg.inv(pose(0.27, 0.1, -0.08)) @ np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def lines(poses):
    return "\n".join(" ".join(map(repr, matrix[:3].ravel().tolist())) for matrix in poses) + "\n"


def sequence(home, number=3, labels=False):
    for i in range(number):
        write_bin(home / "velodyne" / f"{i:06}.bin", POINTS)
        if labels:
            (home / "labels").mkdir(exist_ok=True)
            np.full(2, 40, np.uint32).tofile(home / "labels" / f"{i:06}.label")
    return home


def kitti(root, name="00", tr=TR, poses=POSES):
    """A sequence whose file has poses of the camera, as KITTI's."""
    home = sequence(root / "sequences" / name, labels=True)
    (home / "calib.txt").write_text("P0: " + "0 " * 12 + "\nTr: " + lines([tr]))
    (home / "poses.txt").write_text(lines(tr @ poses @ np.linalg.inv(tr)))
    return home


# ---- SemanticKITTI


def test_poses_are_those_of_the_lidar(tmp_path):
    home = kitti(tmp_path)
    read = read_poses(home / "poses.txt", home / "calib.txt")
    assert read.dtype == np.float64 and np.abs(read - POSES).max() < 1e-9
    assert np.abs(read_poses(home / "poses.txt", home / "none.txt") - TR @ POSES @ np.linalg.inv(TR)).max() < 1e-9


@pytest.mark.parametrize("old, new", [("np.linalg.inv(tr) @ camera @ tr", "tr @ camera @ np.linalg.inv(tr)"),
                                      ("np.linalg.inv(tr) @ camera @ tr", "np.linalg.inv(tr) @ camera"),
                                      ("np.linalg.inv(tr) @ camera @ tr", "camera")])  # fmt: skip
def test_the_order_of_the_calibration_matters(tmp_path, old, new):
    prove(Mutation("another frame", read_poses, old, new, lambda: test_poses_are_those_of_the_lidar(tmp_path)))


def test_semantic_kitti(tmp_path):
    for name in ("08", "00"):
        home = kitti(tmp_path / "dataset", name)
        (home / "voxels").mkdir()
        (home / "voxels" / "000000.bin").write_bytes(b"\1\2\3")
        (home / "times.txt").touch()
        write_ply(home / "map.ply", POINTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for root in (tmp_path, tmp_path / "dataset", tmp_path / "dataset" / "sequences"):
            found = find(root)
            assert [*found] == ["00", "08"]
            assert [frame.name for frame in found["08"]] == ["08/000000", "08/000001", "08/000002"]
        assert [*find(tmp_path, ["08"])] == ["08"]
        assert [*find(home)] == [*find(home / "velodyne")] == ["00"]
    frame = find(home)["00"][2]
    assert frame.scan == home / "velodyne" / "000002.bin" and frame.labels == home / "labels" / "000002.label"
    assert np.abs(frame.pose - POSES[2]).max() < 1e-9


def test_poses_in_a_folder_of_their_own(tmp_path):
    """KITTI's odometry keeps them beside `sequences`."""
    home = kitti(tmp_path)
    (tmp_path / "poses").mkdir()
    (home / "poses.txt").rename(tmp_path / "poses" / "00.txt")
    assert np.abs(np.stack([frame.pose for frame in find(tmp_path)["00"]]) - POSES).max() < 1e-9


def test_without_poses_and_labels(tmp_path):
    sequence(tmp_path / "sequences" / "11")
    frames = find(tmp_path)["11"]
    assert len(frames) == 3 and all(frame.pose is None and frame.labels is None for frame in frames)


# ---- other trees


def test_nuscenes(tmp_path):
    for part, times in (("samples", [3, 1]), ("sweeps", [2])):
        for time in times:
            path = tmp_path / part / "LIDAR_TOP" / f"n015__LIDAR_TOP__{time}.pcd.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.ones((4, 5), "<f4").tofile(path)
    found = find(tmp_path)
    assert {name: [frame.scan.name[-9:] for frame in frames] for name, frames in found.items()} == {
        "n015": ["1.pcd.bin", "3.pcd.bin", "2.pcd.bin"]
    }
    assert all(frame.pose is None for frame in found["n015"])


def test_loose_files(tmp_path):
    write_bin(tmp_path / "b.bin", POINTS)
    write_ply(tmp_path / "town" / "a.ply", POINTS)
    np.save(tmp_path / "b_ring.npy", np.zeros(2, np.uint8))
    home = tmp_path / "drive"
    for i in range(3):
        write_ply(home / f"{i}.ply", POINTS)
    (home / "poses.txt").write_text(lines(POSES))
    found = find(tmp_path)
    assert {name: [frame.name for frame in frames] for name, frames in found.items()} == {
        "b": ["b"],
        "drive": ["drive/0", "drive/1", "drive/2"],
        "town/a": ["town/a"],
    }
    assert found["b"][0].pose is None and np.array_equal(found["drive"][1].pose, POSES[1])
    assert [*find(home)] == ["drive"]


# ---- what does not fit


def test_faulty_files_are_named_and_the_others_keep_their_poses(tmp_path):
    home = kitti(tmp_path)
    (home / "velodyne" / "000001.bin").write_bytes(b"\0" * 33)
    with pytest.warns(UserWarning, match=r"left out: sequences/00/velodyne/000001.bin \(has 33 bytes, no multiple"):
        frames = find(tmp_path)["00"]
    assert [frame.name for frame in frames] == ["00/000000", "00/000002"]
    assert np.abs(frames[1].pose - POSES[2]).max() < 1e-9


@pytest.mark.parametrize(
    "poses, said",
    [
        (lines(POSES[:2]), "has 2 poses for 3 scans of 00"),
        (lines(POSES).replace("1.0 0.0", "1.0", 1), "must have 12 numbers in a line, line 1 is"),
        (lines(POSES).replace("0.0", "zero", 1), "must have 12 numbers in a line, line 1 is"),
        (lines(POSES * 2), "no rigid motion, in line 1"),
        (lines(POSES).replace("0.0", "nan", 1), "no rigid motion, in line 1"),
        (lines(POSES @ np.diag([1.0, 1, -1, 1])), "no rigid motion, in line 1"),
    ],
)
def test_poses_that_are_none(tmp_path, poses, said):
    home = sequence(tmp_path / "sequences" / "00")
    (home / "poses.txt").write_text(poses)
    with pytest.raises(ValueError, match=f"poses.txt .*{said}"):
        find(tmp_path)


def test_a_calibration_that_is_none(tmp_path):
    home = kitti(tmp_path)
    (home / "calib.txt").write_text("P0: 1 2 3\n")
    with pytest.raises(ValueError, match="calib.txt must have one line Tr: with 12 numbers, has 0"):
        find(tmp_path)


def test_names_and_folders_that_are_not_there(tmp_path):
    kitti(tmp_path)
    with pytest.raises(ValueError, match=r"has no sequence 'street': 00"):
        find(tmp_path, ["street"])
    with pytest.raises(ValueError, match="is not a folder"):
        find(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no scan that can be used"):
        find(tmp_path / "empty")
