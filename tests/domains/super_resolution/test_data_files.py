"""Photographs in files: every kind comes out as viewers show it; few are kept decoded."""

import struct

import numpy as np
import pytest
import torch
from mutations import Mutation, prove
from photo_files import deep_png, save, texture
from PIL import Image

from domains.image.reading import ORIENTATION
from domains.super_resolution import photographs as module
from domains.super_resolution.photographs import Photographs, look, pixels, read, small


def grey_levels(path) -> list[float]:
    """The red of the first row, as 0 to 255."""
    return ((read(path)[0, 0] + 1) * 127.5).tolist()


def test_a_photograph_comes_out_as_it_was_saved(tmp_path):
    shown = texture(7, 5)
    for name in ("a.png", "b.bmp", "c.webp"):
        path = save(tmp_path / name, shown, **({"lossless": True} if name == "c.webp" else {}))
        image = read(path)
        assert image.shape == (3, 5, 7) and image.dtype == torch.float32 and image.is_contiguous()
        assert torch.equal(image, torch.from_numpy(shown).movedim(-1, 0).float() / 127.5 - 1)
        assert look(path) == {"fault": None, "size": [7, 5]}
    assert torch.equal(read(str(path)), image)


def test_every_kind_is_shown_right(tmp_path):
    red, white = [1.0, -1.0, -1.0], [1.0, 1.0, 1.0]

    def colour(name, image, **settings):
        image.save(tmp_path / name, **settings)
        assert look(tmp_path / name) == {"fault": None, "size": [16, 16]}
        return read(tmp_path / name)[:, 4, 4].tolist()

    size = (16, 16)
    assert colour("grey.png", Image.new("L", size, 51)) == pytest.approx([-0.6] * 3)
    assert colour("clear.png", Image.new("RGBA", size, (0, 0, 0, 0))) == white
    assert colour("half.png", Image.new("RGBA", size, (255, 0, 0, 51))) == pytest.approx([1.0, 0.6, 0.6], abs=0.01)
    assert colour("veil.png", Image.new("LA", size, (0, 0))) == white
    assert colour("print.jpg", Image.new("CMYK", size, (0, 255, 255, 0))) == pytest.approx(red, abs=0.05)
    assert colour("bit.png", Image.new("1", size, 1)) == white
    palette = Image.new("P", size, 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    assert colour("palette.png", palette) == red
    assert colour("key.png", palette, transparency=1) == white


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_become_eight(tmp_path, channels):
    """Pillow reads 16-bit colours itself, as 8 bits: no level may be more than one away."""
    levels = np.array([0, 255, 257, 257 * 100, 257 * 100 + 200, 257 * 200, 65_535], np.uint16)
    deep = levels[None, :, None].repeat(3, 0).repeat(channels, 2)
    if channels in (2, 4):
        deep[..., -1] = 65_535
    (tmp_path / "deep.png").write_bytes(deep_png(deep))
    assert look(tmp_path / "deep.png") == {"fault": None, "size": [7, 3]}
    assert grey_levels(tmp_path / "deep.png") == pytest.approx((levels / 257).tolist(), abs=1)
    assert grey_levels(tmp_path / "deep.png")[::6] == [0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_that_was_held_otherwise(tmp_path, orientation):
    """From the file of each orientation the same photograph is shown: red, green, blue, white."""
    shown = np.zeros((16, 24, 3), np.uint8)
    shown[:8, :12, 0] = shown[:8, 12:, 1] = shown[8:, :12, 2] = 255
    shown[8:, 12:] = 255
    rows, columns = (-1 if orientation in mirrored else 1 for mirrored in ((3, 4, 7, 8), (2, 3, 6, 7)))
    stored = shown[::rows, ::columns]
    stored = stored.swapaxes(0, 1) if orientation >= 5 else stored
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / "photo.png", np.ascontiguousarray(stored), exif=exif)
    assert look(path)["size"] == [24, 16] and np.array_equal(pixels(path), shown)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_damaged_exif_data_cost_no_photograph(tmp_path, suffix):
    """Its pixels are whole; the orientation counts where it can be read."""
    head = b"Exif\0\0II*\0\x08\0\0\0"
    turned = struct.pack("<HHII", ORIENTATION, 3, 1, 6)
    unwritable = struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0")  # a resolution in letters
    several = struct.pack("<H", 2) + turned + unwritable + bytes(4)
    for exif, size in ((b"Exif\0\0no such thing", [24, 16]), (head[:-4], [24, 16]), (head + several, [16, 24])):
        path = save(tmp_path / f"photo.{suffix}", texture(24, 16), exif=exif)
        assert look(path) == {"fault": None, "size": size}
        assert pixels(path).shape == (*size[::-1], 3)


def test_a_broken_photograph_is_named(tmp_path):
    whole = save(tmp_path / "whole.png", texture(32, 32)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-1000])
    (tmp_path / "page.jpg").write_text("<!doctype html>")
    facts = look(tmp_path / "cut.png")
    assert "truncated" in facts["fault"] and facts["size"] is None
    with pytest.raises(ValueError, match=r"page.jpg cannot be decoded \(holds none of PNG, JPEG"):
        read(tmp_path / "page.jpg")


def test_too_small_a_photograph():
    assert small([48, 64], 48) is None and small([64, 48], 48) is None
    assert small([64, 47], 48) == "has 64 x 47 pixels, too few for a square of 48"
    assert small([47, 64], 48) == "has 47 x 64 pixels, too few for a square of 48"


def library(folder, num: int = 5) -> Photographs:
    paths = [(save(folder / f"{k}.png", texture(24, 20, k)),) for k in range(num)]
    return Photographs(paths, [([24, 20],)] * num)


def test_only_so_many_are_kept_as_have_room(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOM", 2 * 3 * 24 * 20 + 1)
    found, decoded = library(tmp_path), []
    monkeypatch.setattr(module, "pixels", lambda path: decoded.append(path.stem) or pixels(path))
    assert len(found) == 5 and found.most == 2
    for number in (0, 1, 0, 1, 2, 1, 0):
        assert np.array_equal(found.kept(number)[0], texture(24, 20, number))
    assert decoded == ["0", "1", "2", "0"]
    monkeypatch.setattr(module, "ROOM", 1)
    assert library(tmp_path).most == 1


def test_what_a_photograph_has_beyond_its_observation_is_cut(tmp_path):
    high, low = texture(27, 21), texture(6, 5, 1)
    paths = save(tmp_path / "high.png", high), save(tmp_path / "low.png", low)
    images = Photographs([paths], [([27, 21], [6, 5])], 4).decode(0)
    assert np.array_equal(images[0], high[:20, :24]) and np.array_equal(images[1], low)


def test_a_small_observation_leaves_the_scale_as_it_is(tmp_path):
    """Its photograph of 23 pixels is 11 times as high as it, and yet of scale 8."""
    paths = save(tmp_path / "high.png", texture(23, 23)), save(tmp_path / "low.png", texture(2, 2))
    assert Photographs([paths], [([23, 23], [2, 2])], 8).decode(0)[0].shape == (16, 16, 3)


def test_a_file_that_has_changed_is_named(tmp_path):
    found = library(tmp_path, 1)
    save(tmp_path / "0.png", texture(20, 24))
    with pytest.raises(ValueError, match=r"0.png is not what it was \(24 x 20 pixels\) when the run began"):
        found.kept(0)


def test_the_fault_is_noticed(tmp_path):
    def check():
        test_what_a_photograph_has_beyond_its_observation_is_cut(tmp_path)

    prove(
        Mutation("cut at the wrong side", Photographs.decode, ": self.scale * width]", "-self.scale * width :]", check)
    )
