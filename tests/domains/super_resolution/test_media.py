"""Pictures of photographs, small and large."""

import numpy as np
import pytest
import torch
from PIL import Image

from domains.super_resolution import media
from domains.super_resolution.resize import shrunk


def photographs(num: int, height: int, width: int) -> torch.Tensor:
    """Grey images with one patch of detail, at the lower right."""
    x = torch.zeros(num, 3, height, width)
    x[..., -height // 4 :, -width // 4 :] = torch.rand(num, 3, 1, 1) * torch.randn(height // 4, width // 4).sign()
    return x


@pytest.mark.parametrize(
    ("height", "width", "shown"), [(48, 48, (192, 192)), (32, 32, (192, 192)), (400, 600, (128, 192))]
)
def test_compare_shows_input_bicubic_and_all_sets_close_up(height, width, shown):
    x = photographs(6, height, width)
    sheet = np.asarray(media.compare({"student": -x, "real": x}, {"low": shrunk(x, 4)}))
    rows, columns = shown[0] + media.GAP, shown[1] + media.GAP
    assert sheet.shape[:2] == (8 * rows + media.GAP + media.LINE, 4 * columns + media.GAP)
    cell = sheet[media.LINE + media.GAP :][: shown[0], 3 * columns + media.GAP :][:, : shown[1]]
    close = sheet[media.LINE + media.GAP + rows :][: shown[0], 3 * columns + media.GAP :][:, : shown[1]]
    framed = np.argwhere((cell == media.FRAME).all(-1))
    assert len(framed) and framed.min(0)[0] >= shown[0] // 3 and framed.min(0)[1] >= shown[1] // 3
    assert close.std() > cell.std()  # more of the detail


def test_the_most_detailed_photographs_are_shown():
    x = photographs(6, 48, 48)
    x[:3] = 0.0
    sheet = np.asarray(media.compare({"real": x[[0, 3, 1, 4, 2, 5]]}, {"low": shrunk(x, 4)[[0, 3, 1, 4, 2, 5]]}))
    rows = [sheet[media.LINE + 2 * i * 196 :][:190, -190:] for i in range(4)]
    assert sum(row.std() > row[:40].std() for row in rows) >= 3


def test_picture_is_a_sheet():
    assert media.picture(photographs(6, 48, 48)).size == (4 * 196 + 4, 2 * 196 + 4)
    assert media.picture(photographs(1, 1000, 500)).size == (96 + 8, 192 + 8)
    assert media.picture(torch.full((1, 3, 8, 8), torch.nan)).getpixel((50, 50)) == (128, 128, 128)


def test_files_hold_the_pixels(tmp_path):
    x = photographs(2, 12, 20)
    paths = media.save(x, {}, tmp_path)
    assert [path.name for path in paths] == ["photo_0.png", "photo_1.png"]
    expected = ((x[1].clamp(-1, 1) + 1) * 127.5).round().movedim(0, -1).numpy()
    assert (np.asarray(Image.open(paths[1])) == expected).all()


def test_what_is_no_photograph_is_refused():
    for samples in (torch.zeros(0, 3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(3, 8, 8)):
        with pytest.raises(ValueError, match=r"samples \[N, 3, H, W\] with N >= 1"):
            media.picture(samples)
    with pytest.raises(ValueError, match="nothing to compare"):
        media.compare({}, {})


def test_the_student_stands_between_its_teacher_and_the_photographs(monkeypatch):
    low = torch.zeros(1, 3, 8, 8)
    rows = dict.fromkeys(("student", "teacher best", "teacher same steps", "real"), torch.zeros(1, 3, 32, 32))
    titles = []
    monkeypatch.setattr(media, "_sheet", lambda lines, names: titles.extend(names))
    media.compare(rows, {"low": low})
    assert titles == ["input", "bicubic", "teacher best", "teacher same steps", "student", "real"]
