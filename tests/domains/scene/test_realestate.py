"""RealEstate10K's chunks: a round trip, renders from a folder, and what is refused."""

import io
import json
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distillkit.rendering.cameras import check, pose, to_opencv
from domains.scene.coarse import ends
from domains.scene.data import made
from domains.scene.realestate import RealEstate, cameras_of, chunk, on_planes, spread
from domains.scene.rooms import drawn, render

WIDE, HIGH, NUM = 96, 64, 8


def jpeg(levels: np.ndarray) -> torch.Tensor:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=97, subsampling=0)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def rows_of(cameras: torch.Tensor) -> torch.Tensor:
    """Cameras [N, 13] as rows of a chunk."""
    w2c = torch.linalg.inv(to_opencv(pose(cameras.double())))[:, :3].flatten(1)
    focal = 1 / (2 * cameras[:, 12].double())  # in heights of the picture
    return torch.cat(
        [torch.stack([focal * HIGH / WIDE, focal], 1), torch.full((len(w2c), 2), 0.5), torch.zeros(len(w2c), 2), w2c], 1
    ).float()


@pytest.fixture(scope="module")
def rooms():
    scenes, cameras = drawn(torch.arange(5))
    pictures, _ = render(scenes, cameras, HIGH, WIDE)
    levels = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()
    return cameras, levels


def scenes_of(rooms) -> list[dict]:
    cameras, levels = rooms
    return [
        {
            "key": f"scene_{i}",
            "url": "",
            "timestamps": torch.arange(NUM),
            "cameras": rows_of(cameras[i]),
            "images": [jpeg(frame) for frame in levels[i]],
        }
        for i in range(len(levels))
    ]


@pytest.fixture
def folder(rooms, tmp_path):
    torch.save(scenes_of(rooms)[:3], tmp_path / "000000.torch")
    torch.save(scenes_of(rooms)[3:], tmp_path / "000001.torch")
    (tmp_path / "index.json").write_text(json.dumps({"scene_0": "000000.torch"}))
    chunk.cache_clear()
    return tmp_path


@pytest.mark.filterwarnings("ignore:there are no data.renders")
def test_clips_and_cameras_come_back(folder, rooms):
    cameras, _ = rooms
    data = RealEstate(str(folder), frames=4, resolution=32, batch_size=2)
    data.setup()
    assert [len(part) for part in (data.train, data.val, data.test)] == [3, 1, 1] and data.event_shape == (3, 4, 32, 32)
    found = {}
    for part in (data.train, data.val, data.test):
        batch = part[torch.arange(len(part))]
        for i, place in enumerate(part.places):
            found[place.key] = {name: value[i] for name, value in batch.items()}
    assert sorted(found) == [f"scene_{i}" for i in range(5)]
    taken = spread(NUM, 4)
    scenes, _ = drawn(torch.arange(5))
    seen, _ = render(scenes, cameras[:, taken])  # the square from the middle has the same field of view
    for i in range(5):
        one = found[f"scene_{i}"]
        torch.testing.assert_close(one["cameras"], cameras[i, taken], atol=1e-4, rtol=1e-4)
        assert (one["data"] - seen[i]).abs().mean() < 0.04  # JPEG, and another way of shrinking
        assert torch.equal(one["first"], one["data"][:, [0, -1]])
        planes = on_planes(one["first"][None], one["cameras"][None], 4.0)[0]
        torch.testing.assert_close(one["coarse"], planes)
        torch.testing.assert_close(planes[:, [0, -1]], one["first"], atol=0.02, rtol=0)
    again = RealEstate(str(folder), frames=4)
    again.setup()
    assert [place.key for place in again.train.places] == [place.key for place in data.train.places]


def test_a_folder_test_is_not_trained_on(folder):
    (folder / "test").mkdir()
    (folder / "000000.torch").rename(folder / "test" / "000000.torch")
    with warnings.catch_warnings(action="ignore"):
        data = RealEstate(str(folder), frames=4)
        data.setup()
    assert {place.key for place in data.train.places} == {"scene_3", "scene_4"}
    assert len(data.val) + len(data.test) == 3


def test_renders_are_the_coarse_clips(folder, tmp_path_factory):
    renders = tmp_path_factory.mktemp("renders")
    for i in range(4):  # the last scene has none
        place = renders / f"scene_{i}" / ("color" if i % 2 else "")
        place.mkdir(parents=True)
        for k in range(NUM):
            Image.new("RGB", (48, 32), (10 * k, 40 * i, 7)).save(place / f"{k:06}.png")
    with pytest.warns(UserWarning, match="scene_4 has no render in"):
        data = RealEstate(str(folder), renders=str(renders), frames=4)
        data.setup()
    for part in (data.train, data.val, data.test):
        coarse = ((part[torch.arange(len(part))]["coarse"] + 1) * 127.5).round()
        for place, clip in zip(part.places, coarse, strict=True):
            assert clip[0, :, 5, 5].tolist() == [10 * k for k in spread(NUM, 4)]
            assert (clip[1] == 40 * int(place.key[-1])).all()


@pytest.mark.parametrize("key", ["../elsewhere", "/elsewhere", "a/b", "..", ""])
def test_a_render_lies_in_its_folder(tmp_path, key):
    from domains.scene.renders import Renders

    (tmp_path / "renders").mkdir()
    assert "could lie anywhere" in Renders(tmp_path / "renders", 3, 16).fault(key)


def test_a_video_is_a_render(folder, tmp_path):
    pytest.importorskip("av")
    from domains.scene.renders import Renders
    from domains.video.media import save_mp4

    save_mp4([np.full((32, 32, 3), 16 * k, np.uint8) for k in range(9)], tmp_path / "scene_0.mp4", fps=4)
    renders = Renders(tmp_path, 3, 16)
    assert renders.fault("scene_0") is None and "has no render" in renders.fault("scene_1")
    clip = (renders("scene_0") + 1) * 127.5
    assert clip.shape == (3, 3, 16, 16)
    assert clip.mean((0, 2, 3)).tolist() == pytest.approx([0, 64, 128], abs=4)


class Evil:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_pickle_is_refused_and_never_run(folder, capsys):
    for name, content in (("evil.torch", [{"key": Evil()}]), ("odd.torch", [{"key": Path("x")}])):
        torch.save(content, folder / name)
    (folder / "bare.torch").write_bytes(pickle.dumps([{"key": Evil()}]))
    with pytest.warns(UserWarning) as said:
        RealEstate(str(folder), frames=4).setup()
    text = " ".join(str(warning.message) for warning in said)
    assert "this ran" not in capsys.readouterr().out
    for name in ("evil.torch", "odd.torch", "bare.torch"):
        assert name in text
    assert "asks for print, which is no plain data" in text
    with pytest.raises(ValueError, match="evil.torch asks for print, .* save a list of dicts"):
        chunk(folder / "evil.torch")


def spoiled(rooms, **changes) -> dict:
    scene = scenes_of(rooms)[0]
    return scene | {name: change(scene[name]) for name, change in changes.items()}


@pytest.mark.filterwarnings("ignore:there are no data.renders")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": lambda x: x[:1], "cameras": lambda x: x[:1]}, "odd has 1 frame, fewer than the 4 of a clip"),
        ({"images": lambda x: x[:3]}, "odd has 3 images and cameras"),
        ({"images": lambda x: [torch.zeros(9, dtype=torch.uint8)] * NUM}, "odd cannot be used: holds none of"),
        ({"cameras": lambda x: x * torch.tensor([1.0] * 6 + [2.0] * 12)}, "odd cannot be used: .* not a rotation"),
        ({"cameras": lambda x: x * torch.tensor([1.0, 1, 1, 1, 1, 1, -1, -1, -1] + [1] * 9)}, "not a rotation"),
        ({"cameras": lambda x: x * torch.tensor([1.1] + [1.0] * 17)}, "pixels that are not square"),
        ({"cameras": lambda x: x + torch.tensor([0, 0, 0.05] + [0.0] * 15)}, "lens of camera 0 is off the centre"),
        ({"cameras": lambda x: x * torch.tensor([float("nan")] + [1.0] * 17)}, "odd cannot be used"),
        ({"images": lambda x: None}, "has no key, cameras and images"),
        ({"images": lambda x: [one[:1].expand(10**13) for one in x]}, "odd has images that are no bytes of a JPEG"),
    ],
)
def test_a_scene_that_cannot_be_used_is_named(rooms, folder, changes, said):
    torch.save([spoiled(rooms, **changes) | {"key": "odd"}], folder / "odd.torch")
    with pytest.warns(UserWarning, match=said):
        data = RealEstate(str(folder), frames=4)
        data.setup()
    assert len(data.train) + len(data.val) + len(data.test) == 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"frames": 1}, "frames must be at least 2, got 1"),
        ({"frames": 9, "span": 4}, "span must be at least 8"),
        ({"renders": "/nowhere"}, "/nowhere is not a folder: give data.renders=FOLDER"),
        ({"plane": 0.0}, "plane must be positive"),
    ],
)
def test_wrong_settings_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        RealEstate("chunks", **given)


def test_too_few_scenes_are_refused(rooms, tmp_path):
    torch.save(scenes_of(rooms)[:2], tmp_path / "few.torch")
    chunk.cache_clear()
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(ValueError, match="2 scenes that can be used, too few"),
    ):
        RealEstate(str(tmp_path), frames=4).load()
    torch.save(OrderedDict(key="a"), tmp_path / "few.torch")
    chunk.cache_clear()
    with pytest.raises(ValueError, match="holds no list of scenes"):
        RealEstate(str(tmp_path), frames=4).load()


def test_cameras_of_a_chunk_look_where_they_should():
    """World to camera in OpenCV axes: it stands 2 behind the origin and looks along z."""
    row = torch.tensor([[0.5, 1.0, 0.5, 0.5, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2.0]])
    camera = cameras_of(row, (200, 100))
    check(camera)
    c2w = pose(camera)[0]
    torch.testing.assert_close(c2w[:3, 3], torch.tensor([0.0, 0.0, -2.0]))
    torch.testing.assert_close(-c2w[:3, 2], torch.tensor([0.0, 0.0, 1.0]))  # the axis
    torch.testing.assert_close(c2w[:3, 1], torch.tensor([0.0, -1.0, 0.0]))  # up in the picture
    assert camera[0, 12].item() == pytest.approx(0.5)  # half of 100 pixels over fy of 100
    tall = cameras_of(torch.cat([torch.tensor([[1.0, 0.5]]), row[:, 2:]], 1), (100, 200))
    assert tall[0, 12].item() == pytest.approx(0.5)  # the square is as wide as the picture


def test_two_cameras_at_one_place_have_planes_too():
    batch = made(torch.tensor([1]), torch.zeros(1))
    still = batch["cameras"][:, :1].expand(-1, 8, -1)
    first = (batch["data"][:, :, [0, -1]].float() / 127.5) - 1
    assert on_planes(first, still, 4.0).isfinite().all() and ends(still).shape == (1, 2, 13)
