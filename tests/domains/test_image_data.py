"""Image data: ranges, splits, and what is refused."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from distillkit.data import split
from domains.image.data import Digits, ImageFolder, NpzImages, TorchvisionData, from_uint8

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


def test_broken_files_are_named_and_left_out(folder):
    (folder / "red" / "broken.png").write_bytes(b"no image")
    data = ImageFolder(str(folder), resolution=8)
    with pytest.warns(UserWarning, match=r"1 files are not readable .*: red/broken.png"):
        data.setup()
    assert len(data.train) + len(data.val) + len(data.test) == 40


def test_a_file_that_breaks_later_is_named(folder):
    data = ready(ImageFolder(str(folder), resolution=8))
    data.train.paths[0].write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"{data.train.paths[0].name} cannot be decoded"):
        data.train[torch.tensor([0])]


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
        ({"images": np.array([{}])}, "cannot be read as an .npz file of plain arrays"),
    ],
)
def test_npz_refusals(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        NpzImages(str(tmp_path / "x.npz")).setup()


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
    with pytest.raises(ValueError, match="is not a folder of images"):
        ImageFolder(str(tmp_path / "nowhere")).setup()
    with pytest.raises(ValueError, match="holds no image that opens"):
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


def test_torchvision_uses_the_official_test_split(monkeypatch, tmp_path):
    def cifar(root, train, download):
        assert not download
        num, colour = (50, 255) if train else (20, 0)
        return SimpleNamespace(data=np.full((num, 32, 32, 3), colour, np.uint8), targets=[i % 10 for i in range(num)])

    fake_torchvision(monkeypatch, cifar)
    data = ready(TorchvisionData("CIFAR10", str(tmp_path)))
    assert data.event_shape == (3, 32, 32) and data.classes == {"label": 10}
    assert [len(part) for part in (data.train, data.val, data.test)] == [45, 5, 20]
    assert (whole(data.val)["data"] == 1).all() and (whole(data.test)["data"] == -1).all()


def test_torchvision_refusals(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="name must be one of MNIST"):
        TorchvisionData("ImageNet", str(tmp_path))

    def missing(root, train, download):
        raise RuntimeError("Dataset not found.")

    fake_torchvision(monkeypatch, missing)
    with pytest.raises(ValueError, match="MNIST is not under .*; get it once"):
        TorchvisionData("MNIST", str(tmp_path)).setup()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ValueError, match=r"pip install 'distillkit\[vision\]'"):
        TorchvisionData("MNIST", str(tmp_path)).setup()


@pytest.mark.skipif(not FASHION.is_file(), reason="DISTILLKIT_TEST_DATA names no folder with it")
def test_fashion_sample():
    data = ready(NpzImages(str(FASHION)))
    assert data.event_shape == (1, 28, 28) and data.classes == {"label": 10}
    assert torch.bincount(whole(data.test)["label"]).tolist() == [9] * 10
