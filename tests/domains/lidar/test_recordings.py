"""Maps of sequences, and the scene around each scan: of a made room and of real streets."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import Mutation, prove
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from distillkit import cache
from distillkit.cache import SampleCache
from domains.lidar import maps
from domains.lidar.files import read_scan, write_bin
from domains.lidar.recordings import Recordings, scene
from domains.lidar.trees import find

REAL = Path(os.environ.get("DISTILLKIT_TEST_DATA", "")) / "lidar"
real = pytest.mark.skipif(not REAL.is_dir(), reason="DISTILLKIT_TEST_DATA names no folder with it")
CAMERA = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def pose(x, y, z=0.0, yaw=0.0):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.from_euler("z", yaw).as_matrix(), (x, y, z)
    return matrix


POSES = [pose(100, 50, 1, 0.5), pose(101, 50.5, 1, 0.6), pose(102, 51, 1.1, 0.8)]
WALLS = np.random.default_rng(0).uniform([80, 30, -1], [120, 70, 4], (6000, 3))
WALLS[np.arange(6000), np.arange(6000) % 2] = np.where(np.arange(6000) % 4 < 2, [80, 30] * 3000, [120, 70] * 3000)
CAR = np.array([[101.0, 58, 1], [101.2, 58, 1]])  # drives on in y, half a metre from scan to scan


def town(root, poses=None, labels=True, calib=None, walls=WALLS):
    """A room of 40 m that a sensor moves through, with a car that moves too."""
    home = root / "sequences" / "00"
    (home / "labels").mkdir(parents=True)
    for i, each in enumerate(POSES):
        seen = np.concatenate([walls[np.random.default_rng(i).permutation(len(walls))[:4000]], CAR + [0, 0.5 * i, 0]])
        points = torch.from_numpy(maps.moved(seen, np.linalg.inv(each)))
        write_bin(home / "velodyne" / f"{i:06}.bin", points)
        if labels:
            np.array([50] * 4000 + [252] * 2, np.uint32).tofile(home / "labels" / f"{i:06}.label")
    rows = [" ".join(map(repr, matrix[:3].ravel().tolist())) for matrix in (POSES if poses is None else poses)]
    (home / "poses.txt").write_text("\n".join(rows))
    if calib is not None:
        (home / "calib.txt").write_text("Tr: " + " ".join(map(repr, calib[:3].ravel().tolist())))
    return root


# ---- maps


def plain(parts):
    """The first point in each voxel of 0.1 m."""
    found = {}
    for points in parts:
        for point in points:
            found.setdefault(tuple(np.floor(point / 0.1).astype(int)), point)
    return np.array(list(found.values()), np.float32)


def check_builder():
    generator = np.random.default_rng(0)
    parts = [generator.uniform(-12, 12, (3000, 3)) * [1, 1, 0.02] for _ in range(4)]
    builder = maps.Builder()
    for part in parts:
        builder.add(part)
    arrays = builder.arrays()
    found, wanted = maps.Map(**arrays), plain(parts)
    assert np.array_equal(np.unique(arrays["points"].numpy(), axis=0), np.unique(wanted, axis=0))
    assert len(found) == len(wanted) and len(arrays["tiles"]) == 16  # of 10 m each, from -20 to 20
    for place, radius in (((0, 0), 3), ((9.9, -11), 0.5), ((-25, 4), 6), ((300, 0), 20)):
        near = found.near(np.array([*place, 0.0]), radius).numpy()
        inside = wanted[(np.abs(wanted[:, :2] - place) <= radius).all(1)]
        assert not len(inside) or cKDTree(near).query(inside)[0].max() == 0
        assert len(near) == 0 or np.abs(near[:, :2] - place).max() < radius + 10
        assert len(np.unique(near, axis=0)) == len(near)


@pytest.mark.parametrize(
    "says, function, old, new",
    [
        ("the last point stays", maps.Builder.add, "return_index=True)", "return_index=True); first = first[::-1]"),
        ("all points stay", maps.Builder.add, "[places] != new", "[places] >= -1"),
        ("known voxels are new", maps.Builder.add, "[places] != new", "[places] == new"),
        ("one tile too few", maps.Map.near, "low[1], high[1] + 1", "low[1], high[1]"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value and len(value) < 30 else "",
)
def test_a_map_is_the_first_point_of_each_voxel(says, function, old, new):
    prove(Mutation(says, function, old, new, check_builder))


def test_a_map_of_kilometres_is_read_in_part():
    """What lies around a place is all that is asked of the points."""

    class Far:
        read = 0

        def __getitem__(self, part):
            Far.read += part.stop - part.start
            return torch.zeros(part.stop - part.start, 3)

    builder = maps.Builder()
    for i in range(50):
        builder.add(np.random.default_rng(i).uniform(-20, 20, (500, 3)) + [100 * i, 0, 0])
    arrays = builder.arrays()
    maps.Map(Far(), arrays["tiles"], arrays["starts"]).near(np.array([2000.0, 0, 0]), 50)
    assert 450 < Far.read < 1500 < len(arrays["points"])


def test_poses_in_other_units_are_refused():
    with pytest.raises(ValueError, match="lies 900 km from the first scan; give poses in metres"):
        maps.Builder().add(np.array([[9e5, 0, 0]]))


# ---- poses


def test_poses_that_are_right_say_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Recordings(town(tmp_path / "a"))[0].truth) > 4000
        camera = [CAMERA @ each @ np.linalg.inv(CAMERA) for each in POSES]
        assert len(Recordings(town(tmp_path / "b", camera, calib=CAMERA))[0].truth) > 4000


@pytest.mark.parametrize("kind, said", [("inverse", "from the world to the sensor"), ("camera", "give its calib.txt")])
def test_poses_of_another_convention_are_refused(kind, said, tmp_path):
    other = {"inverse": np.linalg.inv, "camera": lambda each: CAMERA @ each @ np.linalg.inv(CAMERA)}[kind]
    views = Recordings(town(tmp_path, [other(each) for each in POSES]))
    with pytest.raises(ValueError, match=f"poses of 00 move its scans apart .*{said}"):
        views[1]


def test_poses_that_nothing_explains_are_warned_about(tmp_path):
    wrong = [pose(0, 0), pose(1, -3, 0, 1.0), pose(2, 5, 0, 2.5)]
    with pytest.warns(UserWarning, match="poses of 00 move its scans apart .* its map is blurred"):
        assert Recordings(town(tmp_path, wrong))[1].name == "00/000001"


@real
def test_real_poses(tmp_path):
    home = REAL / "sequences" / "os1_128_plaza"
    first, second = find(home)["os1_128_plaza"]
    before, after = (read_scan(frame.scan).points.numpy() for frame in (first, second))
    after = after[np.linalg.norm(after, axis=1) < 30]
    tree = cKDTree(before)
    assert tree.query(after)[0].mean() > 0.27
    assert tree.query(maps.moved(after, np.linalg.inv(first.pose) @ second.pose))[0].mean() < 0.13
    for part in ("velodyne", "ring"):
        shutil.copytree(home / part, tmp_path / part)
    rows = [" ".join(map(repr, np.linalg.inv(frame.pose)[:3].ravel().tolist())) for frame in (first, second)]
    (tmp_path / "poses.txt").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="they seem to be the inverse"):
        Recordings(tmp_path)[0]


# ---- views


def test_what_moves_is_in_neither_scan_nor_scene(tmp_path):
    for labels, cars in ((True, 0), (False, 3)):
        views = Recordings(town(tmp_path / str(labels), labels=labels))
        view = views[1]
        assert len(view.scan.points) == 4000 + 2 * bool(cars)
        world = maps.moved(view.truth.double().numpy(), POSES[1])
        near = [np.linalg.norm(world - CAR[0] - [0, 0.5 * i, 0], axis=1).min() < 0.05 for i in range(3)]
        assert sum(near) == cars  # ghosts of it stay where nothing tells


def test_a_scene_lies_in_the_frame_of_its_scan(tmp_path):
    views = Recordings(town(tmp_path))
    assert len(views) == 3 and [view.name for view in views] == ["00/000000", "00/000001", "00/000002"]
    for view, each in zip(views, POSES, strict=True):
        truth, points = view.truth.numpy(), view.scan.points.numpy()
        assert view.truth.dtype == torch.float32 and view.scan.ring.dtype == torch.int64
        assert np.abs(cKDTree(maps.moved(WALLS, np.linalg.inv(each))).query(truth)[0]).max() < 1e-3
        assert cKDTree(truth).query(points)[0].max() < 0.18  # another point of its voxel, at most
        assert len(truth) > 1.2 * len(points)
    assert views[-1] is views[2]
    with pytest.raises(IndexError):
        views[3]


def check_scene():
    scan = torch.tensor([[5.0, 0, 0], [20, 20, 1]])  # cells begin at 0 and -5: 5 m before the smallest coordinates
    inside = torch.tensor([[0.1, -4.9, 4.3], [9.9, 4.9, -3.9], [29, 24, 0], [20.1, 15.1, 0]])
    outside = torch.tensor(
        [[-0.1, 0, 0], [10.1, 0, 0], [9, 5.1, 0], [5, 0, 4.5], [5, 0, -4.1], [5, -5.1, 0], [19, 19, 0], [15, 26, 0]]
    )
    assert torch.equal(scene(torch.cat([inside, outside]), scan, 38.0), inside)
    assert torch.equal(scene(inside, scan, 37.0), inside[[0, 1, 3]])


@pytest.mark.parametrize(
    "old, new",
    [
        ("- CELL / 2", ""),
        ("> LOW", "> -5"),
        ("< HIGH", "< 5"),
        ("(x << 42) + (y << 21) + z", "x + y + z"),
        ("(points.norm(dim=1) < max_range) & ", ""),
    ],
)
def test_a_scene_is_where_the_scan_has_points(old, new):
    prove(Mutation("another scene", scene, old, new, check_scene))


def test_a_scan_without_a_pose_is_its_own_scene(tmp_path):
    points = torch.tensor([[1.0, 1, 1], [5, 1, 0], [60, 0, 0], [9, 9, 6], [8, 0, -1]])
    write_bin(tmp_path / "a.bin", points, torch.linspace(0, 1, 5))
    view = Recordings(tmp_path)[0]
    assert torch.equal(view.scan.points, points[1:]) and view.scan.intensity.tolist() == [0.25, 0.5, 0.75, 1]
    assert torch.equal(view.truth, points[[1, 4]]) and view.name == "a" and len(view.scan.ring) == 4
    assert torch.equal(Recordings(tmp_path, max_range=70.0)[0].truth, points[[1, 2, 4]])
    write_bin(tmp_path / "a.bin", points[:1])
    with pytest.raises(ValueError, match="a.bin has no point farther than 3.5 m"):
        Recordings(tmp_path)[0]


def test_a_scan_that_breaks_is_left_out_of_the_map(tmp_path):
    views = Recordings(town(tmp_path))
    write_bin(tmp_path / "sequences" / "00" / "velodyne" / "000001.bin", torch.zeros(4002, 3))
    with pytest.warns(UserWarning, match="left out of the map of 00: .*000001.bin has no return"):
        assert len(views[0].truth) > 4000
    with pytest.raises(ValueError, match="000001.bin has no return"):
        views[1]


@real
def test_real_scenes():
    views = Recordings(REAL / "sequences")
    assert views.sequences == ["os1_128_plaza", "os1_128_street"] and len(views) == 5
    assert len(views[0].truth) == pytest.approx(106_572, rel=0.01)
    assert len(views[2].truth) == pytest.approx(120_076, rel=0.01)
    assert len(Recordings(REAL / "sequences", ["os1_128_street"])) == 3
    assert len(Recordings(REAL / "singles")) == 5


# ---- the cache of maps


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache that is switched on, and the number of maps made."""
    made = []
    build = maps._build
    monkeypatch.setattr(maps, "_build", lambda *given: made.append(given[0]) or build(*given))
    with cache.using(SampleCache(tmp_path / "cache")):
        yield made


def test_a_map_is_made_once(kept, tmp_path):
    root = town(tmp_path / "town")
    first = Recordings(root)[1].truth
    assert torch.equal(Recordings(root)[1].truth, first) and kept == ["00"]
    with cache.using(None):
        assert torch.equal(Recordings(root)[1].truth, first) and kept == ["00", "00"]


@pytest.mark.parametrize("what", ["scan", "label", "pose", "damage", "cut"])
def test_a_map_that_is_stale_or_damaged_is_made_anew(what, kept, tmp_path):
    home = town(tmp_path / "town") / "sequences" / "00"
    before = len(Recordings(home)[0].truth)
    (file,) = (tmp_path / "cache" / "samples").glob("*.safetensors")
    if what == "scan":
        write_bin(home / "velodyne" / "000002.bin", torch.ones(4002, 3) * 5)
    elif what == "label":
        np.full(4002, 252, np.uint32).tofile(home / "labels" / "000002.label")
        os.utime(home / "labels" / "000002.label", (1, 1))
    elif what == "pose":
        (home / "poses.txt").write_text((home / "poses.txt").read_text().replace("102.0", "102.05"))
    else:
        file.write_bytes(file.read_bytes()[:5000] if what == "cut" else b"no map")
    after = len(Recordings(home)[0].truth)
    assert kept == ["00"] * 2
    assert (after == before) == (what in ("damage", "cut"))


def test_a_cache_that_cannot_be_written_stops_nothing(kept, tmp_path):
    root = town(tmp_path / "town")
    (tmp_path / "cache").touch()  # no folder
    with pytest.warns(UserWarning, match="the map of 00 is not kept in"):
        assert len(Recordings(root)[0].truth) > 4000
    (tmp_path / "cache").unlink()
    with (
        cache.using(SampleCache(tmp_path / "cache", 1000)),
        pytest.warns(UserWarning, match="have no room in the cache"),
    ):
        assert len(Recordings(root)[0].truth) > 4000
    assert not list(tmp_path.glob("cache/samples/*"))
