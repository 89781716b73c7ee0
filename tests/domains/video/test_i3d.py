"""I3D's layout and arithmetic, as far as they can be checked without its weights."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from domains.video import i3d
from domains.video.data import MovingDigits


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return i3d.I3D().eval()


def test_the_layout_is_that_of_the_public_file(net):
    state = net.state_dict()
    assert sum(p.numel() for p in net.parameters()) == 12_697_264  # of RGB I3D with 400 classes
    assert state["Conv3d_1a_7x7.conv3d.weight"].shape == (64, 3, 7, 7, 7)
    assert state["Mixed_4e.b1b.bn.running_var"].shape == (288,) and state["Mixed_5c.b3b.conv3d.weight"].shape[1] == 832
    assert state["logits.conv3d.bias"].shape == (400,) and "Conv3d_1a_7x7.conv3d.bias" not in state


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "out"), [(224, 7, 2, 112), (112, 3, 2, 56), (15, 3, 2, 8), (7, 2, 2, 4)]
)
def test_padding_is_tensorflows(size, kernel, stride, out):
    x = torch.ones(1, 1, size, 1, 1)
    padded = i3d.same(x, (kernel, 1, 1), (stride, 1, 1))
    assert nn.functional.max_pool3d(padded, (kernel, 1, 1), (stride, 1, 1)).shape[2] == out
    spare = padded.shape[2] - size
    assert padded.flatten().tolist() == [0.0] * (spare // 2) + [1.0] * size + [0.0] * (spare - spare // 2)


def test_logits_of_grey_clips_of_any_size_one_by_one(net, monkeypatch):
    x = torch.rand(2, 1, 9, 12, 16) * 2 - 1
    with torch.no_grad():
        found = net(x)
        monkeypatch.setattr(i3d, "CHUNK", 1)
        torch.testing.assert_close(net(x), found, rtol=1e-4, atol=1e-5)
    assert found.shape == (2, 400) and not torch.allclose(found[0], found[1])


def test_files(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "rgb_imagenet.pt")
    save_file(net.state_dict(), tmp_path / "i3d.safetensors")
    for name in ("rgb_imagenet.pt", "i3d.safetensors"):
        loaded = i3d.load(tmp_path / name)
        assert torch.equal(loaded.logits.conv3d.weight, net.logits.conv3d.weight) and not loaded.training
    with pytest.raises(ValueError, match="there is no I3D at"):
        i3d.load(tmp_path / "none.pt")
    (tmp_path / "code.pt").write_bytes(pickle.dumps(print, protocol=2))
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    for name in ("code.pt", "other.pt"):
        with pytest.raises(ValueError, match="does not hold I3D's weights"):
            i3d.load(tmp_path / name)


def test_the_evaluator_compares_clips_in_its_features(net, tmp_path, monkeypatch):
    monkeypatch.setattr(i3d, "SIDE", 32)
    monkeypatch.setattr(i3d.I3D, "forward", lambda self, x: x.mean((1, 3, 4)))  # sixteen numbers instead of 400 logits
    torch.save(net.state_dict(), tmp_path / "rgb_imagenet.pt")
    data = MovingDigits(train=60, val=60, test=60, i3d=str(tmp_path / "rgb_imagenet.pt"))
    data.setup()
    evaluator = data.evaluator()
    described = evaluator.describe()["features"]
    assert described["name"] == "I3D" and len(described["sha256"]) == 64
    batch = data.test[torch.arange(60)]
    found = evaluator(batch["data"], batch)
    assert evaluator._reference.clips.shape == (60, 16) and found["class_agreement"] > 0.8
