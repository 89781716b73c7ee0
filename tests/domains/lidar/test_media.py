"""Pictures of scenes as points, and their files."""

import base64
import json
import re

import numpy as np
import pytest
import torch

from domains.lidar import media
from domains.lidar.files import read_scan
from domains.lidar.media import CELL, GAP, INK, LINE, Frame


def scenes(num: int = 2, points: int = 400) -> torch.Tensor:
    """Flat ground of 12.8 m with a red post 3 m ahead and 2 m to the left."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(num, points, 3, generator=random) * torch.tensor([12.8, 12.8, 0.1]) - torch.tensor([6.4, 6.4, 2.0])
    post = torch.tensor([3.0, 2.0, 0.0]).repeat(40, 1)
    post[:, 2] = torch.linspace(-2, 3, 40)
    return torch.cat([x, post.expand(num, 40, 3)], 1)


FRAME = Frame(8.0, -2.0, 3.0)


def middle(image, red: bool = True) -> np.ndarray:
    """Where an image is red, as (right, down) shares of a view's width; or its darkness."""
    pixels = np.asarray(image).astype(int)
    found = np.argwhere((pixels[..., 0] > 150) & (pixels[..., 1] < 90))
    return found[:, ::-1].mean(0) / CELL


def test_ahead_is_up_and_left_is_left():
    scene = scenes(1)[0].numpy()
    right, down = middle(media.from_above(scene, FRAME))
    assert right == pytest.approx(0.5 - 2 / 16, abs=0.01) and down == pytest.approx(0.5 - 3 / 16, abs=0.01)
    behind = media.from_behind(scene, FRAME)
    right, _ = middle(behind)
    assert right == pytest.approx(0.5 - 2 / 16, abs=0.01)
    assert behind.size == (CELL, int(np.ceil(7 / 16 * CELL)))  # a metre above and below
    rows = np.flatnonzero((np.asarray(behind) != INK).any((1, 2)))
    assert rows[0] == pytest.approx(CELL / 16, abs=2) and rows[-1] == pytest.approx(6 * CELL / 16, abs=2)


def test_what_is_in_front_hides_what_is_behind():
    low, high = np.array([[0.0, 0, -2]]), np.array([[0.0, 0, 3]])
    for scene in ([low, high], [high, low]):
        above = np.asarray(media.from_above(np.concatenate(scene), FRAME)).astype(int)
        assert above[CELL // 2, CELL // 2, 0] > above[CELL // 2, CELL // 2, 2]
    near, far = np.array([[-1.0, 0, 3]]), np.array([[1.0, 0, 3]])
    frame = Frame(8.0, 3.0, 3.001)
    for scene in ([near, far - [0, 0, 1e-3]], [far - [0, 0, 1e-3], near]):
        assert np.array_equal(media.from_behind(np.concatenate(scene), frame), media.from_behind(near, frame))


def test_compare_shows_all_sets_in_one_frame():
    real = scenes(5)
    sheet = media.compare({"real": real, "student": real, "teacher best": real}, {"part": real[:, ::8]})
    shown = media.SHOWN
    frame = media.framed([*real[:shown, ::8].numpy(), *real[:shown].numpy()])
    height = media.from_behind(real[0].numpy(), frame).height
    assert sheet.size == (4 * (CELL + GAP) + GAP, LINE + GAP + shown * (CELL + height + 2 * GAP))
    pixels = np.asarray(sheet)[LINE + GAP :][:CELL]
    cells = [pixels[:, GAP + i * (CELL + GAP) :][:, :CELL] for i in range(4)]
    assert np.array_equal(cells[1], cells[2]) and np.array_equal(cells[2], cells[3])
    assert (cells[0] != INK).sum() < (cells[3] != INK).sum() / 3


def test_the_student_stands_between_its_teacher_and_the_real_scenes(monkeypatch):
    titles = []
    monkeypatch.setattr(media, "sheet", lambda lines, names: titles.extend(names))
    x = scenes(1)
    media.compare(dict.fromkeys(("student", "teacher best", "teacher same steps", "real"), x), {"part": x[:, ::8]})
    assert titles == ["input", "teacher best", "teacher same steps", "student", "real"]


@pytest.mark.parametrize("half, bar", [(6.4, 2), (8.0, 2), (10.0, 5), (50.0, 20)])
def test_the_bar_is_as_long_as_it_says(half, bar):
    view = np.asarray(media._measured(media.from_above(np.zeros((0, 3)), Frame(half, 0, 1)), Frame(half, 0, 1)))
    line = (view[-9] == 255).all(-1).sum()
    assert line == pytest.approx(bar * CELL / 2 / half, abs=1.5)


def test_a_diverging_model_is_shown():
    x = scenes(2)
    wild = x.clone()
    wild[0, :9], wild[0, 9:99], wild[1] = torch.inf, 1e9, torch.nan
    assert media.picture(wild, {"part": x}).size == media.picture(x, {"part": x}).size == (2 * CELL + 12, CELL + 8)
    assert media.picture(wild).size == (2 * CELL + 12, CELL + 8)
    media.compare({"student": wild}, {"part": x})


def test_files_and_the_page(tmp_path):
    x = scenes(2)
    x[1, 0] = 1e6  # of a diverging model: in the files, and not on the page
    paths = media.save(x, {"part": x[:, ::8].clamp(-6.4, 6.4)}, tmp_path)
    names = ["scene_0.ply", "scene_0.bin", "scene_1.ply", "scene_1.bin", "scenes.html"]
    assert [path.name for path in paths] == names
    for path in paths[:2]:
        assert torch.equal(read_scan(path).points, x[0])
    held = json.loads(re.search(r"const scene = (.*);", paths[-1].read_text())[1])["items"]
    assert [item["caption"] for item in held] == [
        f"scene {number}, {what}" for number in (0, 1) for what in ("input", "completed")
    ]
    numbers = [len(base64.b64decode(item["places"])) // 6 for item in held]
    assert numbers == [55, 440, 55, 439]
    colours = [np.frombuffer(base64.b64decode(item["colours"]), np.uint8).reshape(-1, 3) for item in held]
    assert np.array_equal(colours[1][-40:], colours[3][-40:])  # the post: equal heights, equal colours


def test_what_is_no_scene_is_refused():
    for samples in (torch.zeros(0, 8, 3), torch.zeros(2, 8, 2), torch.zeros(8, 3), torch.zeros(2, 0, 3)):
        with pytest.raises(ValueError, match=r"scenes \[n, points, 3\] with n >= 1"):
            media.picture(samples)
    with pytest.raises(ValueError, match="nothing to compare"):
        media.compare({}, {})
