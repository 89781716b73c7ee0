"""Image data: ranges, splits, and what is refused."""

import io
import os
import pickle
import sys
import warnings
import zipfile
import zlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from distillkit import runs
from distillkit.cli.front import main
from distillkit.data import split
from domains.image.data import Digits, ImageFolder, NpzImages, TorchvisionData
from domains.image.reading import cropped, fault, from_uint8

FASHION = Path(os.environ.get("DISTILLKIT_TEST_DATA", "")) / "image" / "fashion_mnist_900.npz"


def ready(data):
    data.setup()
    return data


def whole(part):
    return part[torch.arange(len(part))]


def save(path, colour, size=(12, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_digits_are_split_once_and_for_ever():
    data = ready(Digits())
    parts = [data.train, data.val, data.test]
    assert [len(part) for part in parts] == [1297, 250, 250]
    assert data.event_shape == (1, 8, 8) and data.classes == {"label": 10}
    batch = data.train[torch.tensor([3, 0])]
    assert batch["data"].shape == (2, 1, 8, 8) and batch["data"].dtype == torch.float32
    assert batch["label"].dtype == torch.int64
    x = torch.cat([whole(part)["data"] for part in parts])
    assert x.min() == -1 and x.max() == 1 and float(x.std()) == pytest.approx(0.752, abs=1e-3)
    for part in parts:  # about a tenth of each class
        share = torch.bincount(whole(part)["label"], minlength=10) / len(part)
        assert (share - 0.1).abs().max() < 0.01
    # shipped weights were trained on this very training split
    assert whole(data.test)["label"][:12].tolist() == [4, 5, 6, 4, 8, 6, 9, 9, 1, 8, 2, 8]
    assert torch.equal(whole(ready(Digits()).val)["data"], whole(data.val)["data"])


def test_a_split_is_complete_disjoint_and_in_proportion():
    groups = [0] * 60 + [1] * 30 + [2] * 10
    parts = split(groups, val=20, test=10)
    assert [len(part) for part in parts] == [70, 20, 10]
    assert sorted(torch.cat(parts).tolist()) == list(range(100))
    counts = [np.bincount([groups[i] for i in part], minlength=3).tolist() for part in parts]
    assert counts == [[42, 21, 7], [12, 6, 2], [6, 3, 1]]
    assert not torch.equal(parts[2], split(groups, val=20, test=10, seed=1)[2])


def test_from_uint8_spans_the_range_and_puts_transparency_over_white():
    pixels = np.array([0, 255], dtype=np.uint8).reshape(1, 1, 2)
    assert from_uint8(pixels, "x").tolist() == [[[[-1.0, 1.0]]]]
    rgba = np.array([[0, 0, 0, 0], [255, 0, 0, 255]], dtype=np.uint8).reshape(1, 1, 2, 4)
    assert from_uint8(rgba, "x")[0, :, 0].T.tolist() == [[1, 1, 1], [1, -1, -1]]


@pytest.fixture
def folder(tmp_path):
    for i in range(20):
        save(tmp_path / "red" / f"{i:02}.png", (255, 0, 0))
        save(tmp_path / "blue" / f"{i:02}.jpg", (0, 0, 255))
    return tmp_path


def test_image_folder_reads_classes(folder):
    data = ready(ImageFolder(str(folder), resolution=8))
    assert data.event_shape == (3, 8, 8) and data.classes == {"label": 2}
    assert [len(part) for part in (data.train, data.val, data.test)] == [32, 4, 4]
    batch = whole(data.train)
    assert batch["data"].shape == (32, 3, 8, 8)
    red = batch["data"][batch["label"] == 1]  # blue comes first
    assert len(red) == 16 and torch.allclose(red[:, 0], torch.tensor(1.0)) and (red[:, 1:] == -1).all()
    again = ready(ImageFolder(str(folder), resolution=8))
    assert again.train.paths == data.train.paths
    assert ready(ImageFolder(str(folder), resolution=8, seed=1)).train.paths != data.train.paths


def test_image_folder_crops_the_centre_and_mirrors(tmp_path):
    picture = np.zeros((8, 16, 3), dtype=np.uint8)
    picture[:, :4] = 255  # cut away
    picture[:, 4:8, 0] = 255  # the left half of the centre is red
    for i in range(10):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    data = ready(ImageFolder(str(tmp_path), resolution=8, flip=True))
    assert data.classes == {} and len(data.train) == 16 and len(data.val) == 1
    plain, mirror = data.train[torch.tensor([0, 8])]["data"]
    assert (plain[0, :, :4] == 1).all() and (plain[0, :, 4:] == -1).all() and (plain[1:] == -1).all()
    assert torch.equal(mirror, plain.flip(-1))


def test_image_folder_resizes_with_antialiasing(tmp_path):
    board = np.indices((32, 32)).sum(0) % 2 * 255  # a one-pixel chessboard averages to grey
    for i in range(5):
        Image.fromarray(board.astype(np.uint8)).save(tmp_path / f"{i}.png")
    data = ready(ImageFolder(str(tmp_path), resolution=8, channels=1))
    assert data.train[torch.tensor([0])]["data"][0, 0, 2:6, 2:6].abs().max() < 0.05


def test_image_folder_understands_sixteen_bits_and_transparency(tmp_path):
    for i in range(5):
        Image.fromarray(np.full((8, 8), 65535, dtype=np.uint16)).save(tmp_path / f"{i}.png")
    assert (ready(ImageFolder(str(tmp_path), 8, channels=1)).train[torch.tensor([0])]["data"] == 1).all()
    for i in range(5):
        save(tmp_path / f"{i}.png", (0, 0, 0, 0), mode="RGBA")
    assert (ready(ImageFolder(str(tmp_path), 8)).train[torch.tensor([0])]["data"] == 1).all()


def bytes_of(kind, size=(64, 48), mode="RGB", **settings):
    """A noisy image as a file of a kind."""
    pixels = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def png_of(width, height, pixels=None):
    """A one-bit PNG of any size in a few kilobytes: black, or with given compressed pixels."""
    squeeze = zlib.compressobj(1)
    rows = pixels or b"".join(squeeze.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + squeeze.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\1\0\0\0\0"
    chunks = (b"IHDR" + head, b"IDAT" + rows, b"IEND")
    parts = ((len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


DAMAGED = {
    "cut.jpg": (bytes_of("JPEG")[:-1000], "image file is truncated"),
    "progressive.jpg": (bytes_of("JPEG", progressive=True)[:-1000], "image file is truncated"),
    "last.jpg": (bytes_of("JPEG")[:-2], "image file is truncated"),
    "end.bmp": (bytes_of("BMP")[:-1], "image file is truncated"),
    "cut.png": (bytes_of("PNG")[:-1000], "image file is truncated"),
    "hole.png": (bytes_of("PNG")[:2000] + bytes(64) + bytes_of("PNG")[2064:], "broken data stream"),
    "junk.png": (png_of(64, 64, b"whole chunks of junk"), "broken data stream"),
    "cut.webp": (bytes_of("WEBP")[:-10], "could not create decoder object"),
    "gif.jpg": (bytes_of("GIF", mode="P")[:-1000], "image file is truncated"),
    "empty.png": (b"", "holds none of PNG, JPEG, WEBP, BMP, GIF"),
    "page.jpeg": (b"<!doctype html><title>404</title>" * 50, "holds none of"),
    "drawing.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "holds none of"),  # no Ghostscript
    "bomb.png": (png_of(30_000, 30_000), "has more than 67108864 pixels: shrink it"),
    "large.png": (png_of(2**13, 2**13 + 1), "has 8192 x 8193 pixels, more than 67108864: shrink it"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_found_before_training(tmp_path, name):
    content, why = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    assert why in fault(tmp_path / name)


def test_too_large_an_image_is_never_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    for name in ("bomb.png", "large.png"):
        (tmp_path / name).write_bytes(DAMAGED[name][0])
        assert "pixels" in fault(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} cannot be decoded .* pixels"):
            ImageFolder(str(tmp_path)).decode(tmp_path / name)


def test_whatever_is_whole_is_used_whatever_its_suffix(tmp_path):
    kinds = {"JPEG": "a.png", "PNG": "b.JPG", "WEBP": "c.jpeg", "BMP": "d.webp", "GIF": "e.Bmp"}
    for kind, name in kinds.items():
        (tmp_path / name).write_bytes(bytes_of(kind, mode="P" if kind == "GIF" else "RGB"))
    (tmp_path / "phone.jpg").write_bytes(bytes_of("MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]))
    (tmp_path / "just.png").write_bytes(png_of(2**13, 2**13))
    assert [fault(path) for path in sorted(tmp_path.iterdir())] == [None] * 7


def test_damaged_files_are_named_once_and_left_out(folder):
    for name, (content, _) in DAMAGED.items():
        (folder / "red" / name).write_bytes(content)
    (folder / "green").mkdir()
    (folder / "green" / "0.png").write_bytes(DAMAGED["cut.png"][0])
    for _ in range(2):  # the second time the folder's index tells it
        with pytest.warns(UserWarning) as said:
            data = ready(ImageFolder(str(folder), resolution=8))
        left_out, classes = (str(warning.message) for warning in said)
        names = ["green/0.png", *(f"red/{name}" for name in sorted(DAMAGED)[:9])]
        assert left_out.startswith(f"{folder}: left out: ") and left_out.endswith(" and 5 more")
        assert all(f"{name} (" in left_out for name in names)
        assert "no image in green, which are no classes therefore; the classes are, from 0 on, blue, red" in classes
        assert data.classes == {"label": 2} and len(data.train) + len(data.val) + len(data.test) == 40
        assert whole(data.train)["data"].isfinite().all()


def test_a_run_goes_on_without_damaged_images(folder, tmp_path_factory, capsys, monkeypatch):
    monkeypatch.setenv(runs.OUT, "")  # which is then put back
    for name, (content, _) in DAMAGED.items():
        (folder / "red" / name).write_bytes(content)
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["domain=image", "method=pretrain", "data=image_folder", f"data.path={folder}", "data.resolution=8"]
    words += [
        "data.batch_size=4",
        "vars.classes.label=2",
        "network=mlp",
        "~vars.callbacks.finish",
        "vars.callbacks.watch.samples=0",
        "trainer.limit_val_batches=0",
    ]
    code = main(["fit", *words, "--trainer.max_steps=3", "--out", str(out)])
    said = capsys.readouterr().err
    assert code == 0 and said.startswith(f"warning: {folder}: left out: red/bomb.png ("), said
    assert said.count("\n") == 1, f"one line is one warning, without the place in the code: {said}"


def test_the_data_are_the_same_whether_damage_was_known_before_or_not(folder):
    (folder / "red" / "cut.jpg").write_bytes(DAMAGED["cut.jpg"][0])
    with pytest.warns(UserWarning, match="left out: red/cut.jpg"):
        first = ready(ImageFolder(str(folder), resolution=8))
        again = ready(ImageFolder(str(folder), resolution=8))
        (folder / ".distillkit-images.json").unlink()
        anew = ready(ImageFolder(str(folder), resolution=8))
    for part in ("train", "val", "test"):
        one, two, three = (getattr(data, part) for data in (first, again, anew))
        assert one.paths == two.paths == three.paths and torch.equal(one.label, two.label)


def test_hidden_folders_are_no_classes_and_unread_types_are_said(folder):
    save(folder / ".ipynb_checkpoints" / "0-checkpoint.png", 0)
    save(folder / "__MACOSX" / "red" / "._0.png", 0)
    save(folder / "red" / "._0.png", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ready(ImageFolder(str(folder), resolution=8)).classes == {"label": 2}
    save(folder / "scans" / "0.TIF", 0)
    save(folder / "moving" / "0.gif", 0)
    (folder / "azure").mkdir()
    with pytest.warns(UserWarning) as said:
        assert ready(ImageFolder(str(folder), resolution=8)).classes == {"label": 2}
    text = " ".join(str(warning.message) for warning in said)
    assert (
        "passed over, for .png, .jpg, .jpeg, .webp, .bmp are read: 1 .gif (moving/0.gif), 1 .tif (scans/0.TIF)" in text
    )
    assert "no image in azure, moving, scans, which are no classes" in text


def test_a_file_that_breaks_later_is_named_and_the_next_stands_in(folder):
    data = ready(ImageFolder(str(folder), resolution=8, flip=True))
    num, labels = len(data.train.paths), data.train.label.tolist()
    last, first = data.train.paths[num - 1], data.train.paths[0]
    assert last.parent != first.parent
    before = data.train[torch.tensor([0, num])]
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(
        UserWarning, match=rf"{last.name} cannot be decoded \(.*: the next one that can be read stands in"
    ):
        after = data.train[torch.tensor([num - 1, 2 * num - 1])]
    assert torch.equal(after["data"], before["data"]) and after["label"].tolist() == [labels[0]] * 2
    assert len(data.train) == 2 * num
    for path in data.val.paths:
        path.unlink()
    with pytest.raises(ValueError, match="none of 4 can be read: .* cannot be decoded .* and 3 more"):
        data.val[torch.tensor([2])]


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (20_000, 3), (1, 1)])
def test_a_long_thin_image_is_not_enlarged_as_a_whole(tmp_path, size, monkeypatch):
    resize, made = Image.Image.resize, []
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: made.append(size) or resize(self, size, *a, **k)
    )
    Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "0.png")
    red = ImageFolder(str(tmp_path), resolution=64).decode(tmp_path / "0.png")  # 64 x 1,920,000 pixels otherwise
    assert red.shape == (3, 64, 64) and (red[0] == 1).all() and (red[1:] == -1).all()
    assert made == [(64, 64)]


def test_the_square_is_the_one_that_the_whole_resized_image_would_have():
    pixels = np.random.RandomState(0).randint(0, 256, (48, 64, 3)).astype(np.uint8)
    for box, side in (
        ((0, 0, 64, 48), 16),
        ((0, 0, 37, 48), 24),
        ((5, 0, 64, 11), 8),
        ((0, 0, 48, 48), 48),
        ((0, 0, 64, 48), 48),
    ):
        image = Image.fromarray(pixels).crop(box)
        scale = side / min(image.size)
        resized = image.resize([max(side, round(length * scale)) for length in image.size], Image.Resampling.BICUBIC)
        left, top = ((length - side) // 2 for length in resized.size)
        expected = np.asarray(resized.crop((left, top, left + side, top + side))).astype(int)
        assert np.abs(np.asarray(cropped(image, side)) - expected).max() <= 1


def test_what_cameras_and_printers_write_is_shown_right(tmp_path):
    """Special pictures are read as viewers show them.

    Turned by EXIF, CMYK, palette with a clear colour, grey with alpha, 16 bits, one bit, moving.
    """
    folder = ImageFolder(str(tmp_path), resolution=8)

    def shown(name, image, **settings):
        image.save(tmp_path / name, **settings)
        assert fault(tmp_path / name) is None
        return folder.decode(tmp_path / name)

    half = np.zeros((16, 16, 3), np.uint8)
    half[:8, :, 0] = 255  # red above black
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: what is above in the file belongs to the right
    turned = shown("turned.jpg", Image.fromarray(half), exif=exif, quality=95)
    assert (turned[0, :, 5:] > 0.9).all() and (turned[0, :, :3] < -0.9).all()
    assert (
        shown("print.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)))[:, 4, 4] - torch.tensor([1, -1, -1])
    ).abs().max() < 0.05
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    assert shown("palette.png", palette)[:, 0, 0].tolist() == [1, -1, -1]
    assert (shown("clear.png", palette, transparency=1) == 1).all()  # over white
    assert (shown("veil.png", Image.new("LA", (8, 8), (0, 0))) == 1).all()
    assert (shown("bit.png", Image.new("1", (8, 8), 1)) == 1).all()
    deep = np.array([[128, 129, 257 * 100 + 128, 65_535]], np.uint16).repeat(4, 0)
    grey = ImageFolder(str(tmp_path), resolution=4, channels=1)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert torch.allclose(
        (grey.decode(tmp_path / "deep.png")[0, 0] + 1) * 127.5, torch.tensor([0.0, 1, 100, 255]), atol=1e-4
    )
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    for name in ("moving.png", "moving.webp"):
        moving = shown(name, frames[0], save_all=True, append_images=frames[1:], lossless=True)
        assert moving[:, 0, 0].tolist() == [1, -1, -1]


def test_npz_of_ours_and_of_openai(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (40, 6, 5, 3)).astype(np.uint8)
    labels = np.arange(40) % 4
    np.savez(tmp_path / "ours.npz", images=images, labels=labels)
    np.savez(tmp_path / "theirs.npz", arr_0=images, arr_1=labels)
    for name in ("ours", "theirs"):
        data = ready(NpzImages(str(tmp_path / f"{name}.npz")))
        assert data.event_shape == (3, 6, 5) and data.classes == {"label": 4}
        assert [len(part) for part in (data.train, data.val, data.test)] == [32, 4, 4]
        first = whole(data.test)
        expected = images[split(labels.tolist(), 4, 4)[2].tolist()]
        assert torch.allclose(first["data"], torch.tensor(expected).permute(0, 3, 1, 2) / 127.5 - 1)
        assert sorted(first["label"].tolist()) == [0, 1, 2, 3]
    np.savez(tmp_path / "plain.npz", images=images[..., 0])
    assert ready(NpzImages(str(tmp_path / "plain.npz"))).event_shape == (1, 6, 5)
    assert ready(NpzImages(str(tmp_path / "ours.npz"), num_classes=7)).classes == {"label": 7}


IMAGES = np.zeros((20, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"pictures": IMAGES}, "neither `images` nor `arr_0`"),
        ({"images": IMAGES / 255.0}, "type float64, which has no known range; save them as uint8"),
        ({"images": np.full((20, 4, 4), np.nan)}, "NaN or infinity among its pixels"),
        ({"images": IMAGES.reshape(20, 1, 4, 2, 2)}, r"got \[20, 1, 4, 2, 2\]"),
        ({"images": np.zeros((20, 3, 4, 5), np.uint8)}, "with C = 1, 3 or 4"),
        ({"images": IMAGES[:3]}, "3 images are too few for a split"),
        ({"images": IMAGES, "labels": np.zeros(19, int)}, "one integer label per image"),
        ({"images": IMAGES, "labels": np.zeros(20)}, "one integer label per image, got float64"),
        ({"images": IMAGES, "labels": np.arange(20) - 1}, "labels from -1 to 18"),
        (
            {"images": IMAGES, "labels": np.arange(20) * 10},
            "labels up to 190 for 20 images: .* or give data.num_classes=191",
        ),
        ({"images": IMAGES, "labels": np.full(20, np.nan)}, "one integer label per image, got float64"),
        ({"images": IMAGES, "labels": np.eye(20, dtype=int)}, r"one integer label per image, got int64 \[20, 20\]"),
        ({"images": IMAGES[:0]}, r"got \[0, 4, 4, 1\]"),
        ({"images": np.uint8(0)}, "must hold images"),
        ({"images": np.array(["a"] * 20)}, "pixels of type <U1"),
        ({"images": np.array([{}])}, "cannot be read as an .npz file of plain arrays"),
        ({"images": IMAGES, "labels": np.array([{}] * 20)}, "cannot be read as an .npz file of plain arrays"),
    ],
)
def test_npz_refusals(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        NpzImages(str(tmp_path / "x.npz")).setup()


class Trap:
    def __reduce__(self):
        return pytest.fail, ("the pickle was opened",)


def test_broken_npz_files_are_named_and_no_pickle_is_opened(tmp_path):
    np.savez(tmp_path / "whole.npz", images=IMAGES)
    whole = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "array.npy", IMAGES)
    np.savez(tmp_path / "objects.npz", images=np.array([Trap()], dtype=object))
    with zipfile.ZipFile(tmp_path / "words.npz", "w") as file:
        file.writestr("images.npy", "no array")
    for name, content in {
        "half.npz": whole[: len(whole) // 2],
        "hole.npz": whole[:200] + bytes([255] * 40) + whole[240:],
        "empty.npz": b"",
        "array.npz": (tmp_path / "array.npy").read_bytes(),
        "pickle.npz": pickle.dumps(Trap()),
    }.items():
        (tmp_path / name).write_bytes(content)
    for name in ("half", "hole", "empty", "array", "pickle", "objects", "words"):
        with pytest.raises(ValueError, match=f"{name}.npz cannot be read as an .npz file of plain arrays"):
            NpzImages(str(tmp_path / f"{name}.npz")).setup()


def test_npz_labels_beyond_the_classes_and_classes_without_labels(tmp_path):
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=np.arange(20))
    with pytest.raises(ValueError, match=r"must lie in 0\.\.4"):
        NpzImages(str(tmp_path / "x.npz"), num_classes=5).setup()
    np.savez(tmp_path / "x.npz", images=IMAGES)
    with pytest.raises(ValueError, match="has no `labels`"):
        NpzImages(str(tmp_path / "x.npz"), num_classes=5).setup()


def test_other_refusals(tmp_path):
    with pytest.raises(ValueError, match="nowhere.npz is not an .npz file"):
        NpzImages(str(tmp_path / "nowhere.npz")).setup()
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        ImageFolder(str(tmp_path / "nowhere")).setup()
    with pytest.raises(ValueError, match="holds no image that can be used"):
        ImageFolder(str(tmp_path)).setup()
    save(tmp_path / "a" / "0.png", (0, 0, 0))
    save(tmp_path / "0.png", (0, 0, 0))
    with pytest.raises(ValueError, match="both flat and in class folders"):
        ImageFolder(str(tmp_path)).setup()
    with pytest.raises(ValueError, match="channels must be 1"):
        ImageFolder(str(tmp_path), channels=2)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Digits(batch_size=0)
    np.savez(tmp_path / "x.npz", images=IMAGES)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got 1.5"):
        NpzImages(str(tmp_path / "x.npz"), val=1.5).setup()


def fake_torchvision(monkeypatch, dataset):
    torchvision = ModuleType("torchvision")
    torchvision.datasets = SimpleNamespace(CIFAR10=dataset, MNIST=dataset)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", torchvision.datasets)


def test_torchvision_uses_the_official_test_split(monkeypatch, tmp_path):
    def cifar(root, train, download):
        assert not download
        num, colour = (50, 255) if train else (20, 0)
        data, targets = np.full((num, 32, 32, 3), colour, np.uint8), [i % 10 for i in range(num)]
        return SimpleNamespace(data=data, targets=targets, classes=[f"thing {i}" for i in range(10)])

    fake_torchvision(monkeypatch, cifar)
    data = ready(TorchvisionData("CIFAR10", str(tmp_path)))
    assert data.event_shape == (3, 32, 32) and data.classes == {"label": 10}
    assert data.names["label"][3] == "thing 3" and len(data.names["label"]) == 10
    assert [len(part) for part in (data.train, data.val, data.test)] == [45, 5, 20]
    assert (whole(data.val)["data"] == 1).all() and (whole(data.test)["data"] == -1).all()


def test_torchvision_refusals(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="name must be one of MNIST"):
        TorchvisionData("ImageNet", str(tmp_path))

    def missing(root, train, download):
        raise RuntimeError("Dataset not found.")

    fake_torchvision(monkeypatch, missing)
    with pytest.raises(ValueError, match=r"MNIST is not, or not whole, under .* \(Dataset not found.\); get it once"):
        TorchvisionData("MNIST", str(tmp_path)).setup()

    def cut(root, train, download):
        return SimpleNamespace(data=np.zeros((50, 28, 28), np.uint8), targets=[0] * 49)

    fake_torchvision(monkeypatch, cut)
    with pytest.raises(ValueError, match=r"MNIST must hold one integer label per image, got int64 \[49\]"):
        TorchvisionData("MNIST", str(tmp_path)).setup()
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'distillkit\[vision\]'"):
        TorchvisionData("MNIST", str(tmp_path)).setup()


@pytest.mark.skipif(not FASHION.is_file(), reason="DISTILLKIT_TEST_DATA names no folder with it")
def test_fashion_sample():
    data = ready(NpzImages(str(FASHION)))
    assert data.event_shape == (1, 28, 28) and data.classes == {"label": 10}
    assert torch.bincount(whole(data.test)["label"]).tolist() == [9] * 10
