"""torchvision, torchaudio and open3d: what the core replaces or leaves to them."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distillkit.data import TensorData
from domains.image.data import Digits, TorchvisionData
from domains.image.evaluation import ImageEvaluator, inception
from domains.music import torchaudio
from domains.music.mel import bands
from domains.music.resample import polyphase, resample

pytestmark = pytest.mark.full
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "package", ["torchvision", "torchaudio", "open3d", "diffusers", "transformers", "accelerate", "onnxruntime"]
)
def test_the_packages_of_full_import_beside_each_other(package):
    code = f"import torch, torchvision, torchaudio, {package}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-500:]


def test_doctor_finds_nothing_to_mend_about_them():
    done = subprocess.run(
        [sys.executable, "-m", "distillkit", "doctor"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT IMPORTABLE" not in done.stdout


def test_pipelines_of_diffusers():
    """Tests that are skipped where diffusers is missing, as they are from the light lane."""
    files = [str(path) for path in sorted((ROOT / "tests" / "domains" / "video").glob("test_[pa]*.py"))]
    assert len(files) == 3
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not full", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-2000:]


def write_idx(path, array: np.ndarray) -> None:
    """The file format of MNIST: magic number with type and rank, sizes, bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_torchvision_data_on_disk_are_read(tmp_path, name):
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    rng = np.random.RandomState(0)
    images = {"train": rng.randint(0, 256, (60, 28, 28)), "t10k": rng.randint(0, 256, (20, 28, 28))}
    labels = {"train": np.arange(60) % 10, "t10k": np.arange(20) % 10}
    for part in images:
        write_idx(raw / f"{part}-images-idx3-ubyte", images[part])
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels[part])
    data = TorchvisionData(name, str(tmp_path), val=0.2)
    data.setup()
    assert (len(data.train), len(data.val), len(data.test)) == (48, 12, 20)
    assert data.event_shape == (1, 28, 28) and data.classes == {"label": 10}
    expected = torch.from_numpy(images["t10k"]).float()[:, None] / 127.5 - 1
    torch.testing.assert_close(data.test[torch.arange(20)]["data"], expected)
    assert data.test[torch.arange(20)]["label"].tolist() == labels["t10k"].tolist()


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Random Inception weights in torch-fidelity's file format, and the network that has them."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(NoTrainInceptionV3, "load_state_dict", lambda *_, **__: None)
        net = NoTrainInceptionV3("inception-v3-compat", ["2048"], "unread")
    torch.save(net.state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth", net


def test_inception_features_are_those_of_torch_fidelity(weights):
    path, net = weights
    images_uint8 = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    extractor = inception(path, torch.device("cpu"))
    got = extractor.features(images_uint8.float() / 127.5 - 1)
    assert got.shape == (3, 2048) and extractor.facts["name"] == "InceptionV3"
    torch.testing.assert_close(got, net(images_uint8))
    grey = images_uint8[:, :1]
    torch.testing.assert_close(extractor.features(grey.float() / 127.5 - 1), net(grey.expand(-1, 3, -1, -1)))


def test_an_evaluation_in_inception_features(weights):
    """On a few images only: this network takes a second for ten of them."""
    digits = Digits()
    digits.setup()
    few = TensorData(digits.train[torch.arange(24)])
    evaluator = ImageEvaluator(few, TensorData(digits.val[torch.arange(24)]), digits.classes, f"inception:{weights[0]}")
    assert evaluator(few.tensors["data"], {})["frechet"] > 0
    assert evaluator.describe()["features"]["dimensions"] == 2048


@pytest.mark.parametrize(("old", "new"), [(44_100, 16_000), (8_000, 44_100), (48_000, 44_100), (7, 5)])
def test_sounds_are_resampled_as_by_torchaudio(old, new):
    assert torchaudio.functional() is not None
    x = torch.randn(2, 3, 5_003, generator=torch.Generator().manual_seed(0))
    common = math.gcd(old, new)
    torch.testing.assert_close(resample(x, old, new), polyphase(x, old // common, new // common), atol=1e-4, rtol=0)


@pytest.mark.parametrize("slaney", [False, True])
def test_mel_bands_are_those_of_torchaudio(slaney, monkeypatch):
    theirs = bands(8_000, 1_024, 64, 150.0, None, slaney)
    monkeypatch.setattr(torchaudio, "functional", lambda: None)
    bands.cache_clear()
    own = bands(8_000, 1_024, 64, 150.0, None, slaney)
    bands.cache_clear()
    torch.testing.assert_close(own, theirs, atol=1e-4, rtol=0)
