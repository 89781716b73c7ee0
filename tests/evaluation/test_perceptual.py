"""LPIPS and DISTS beside torchmetrics' own, which need torchvision, on made weights."""

import pickle
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mutations import Mutation, prove
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.image import dists, lpips

from distillkit.errors import UsageError
from distillkit.evaluation import perceptual
from distillkit.evaluation.perceptual import Backbone, Dists, Lpips


def conv(inp: int, out: int, side: int, stride: int = 1, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inp, out, side, stride, padding), nn.ReLU()]


def alexnet() -> nn.Sequential:
    pool = nn.MaxPool2d(3, 2)
    first = [*conv(3, 64, 11, 4, 2), pool, *conv(64, 192, 5, padding=2), pool]
    return nn.Sequential(*first, *conv(192, 384, 3), *conv(384, 256, 3), *conv(256, 256, 3), pool)


def vgg16() -> nn.Sequential:
    layers, inp = [], 3
    for out in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += conv(inp, out, 3) if out else [nn.MaxPool2d(2, 2)]
        inp = out or inp
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Networks of torchvision's layout and the files that hold them."""
    torch.manual_seed(0)
    folder, made = tmp_path_factory.mktemp("weights"), {"alex": alexnet(), "vgg": vgg16()}
    for name, net in made.items():
        state = {f"features.{key}": value for key, value in net.state_dict().items()}
        torch.save(state | {"classifier.1.weight": torch.zeros(2)}, folder / f"{name}.pth")
    return made, folder


def images(num: int = 2, side: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(2, num, 3, side, side + 5, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return x[0], 0.7 * x[0] + 0.3 * x[1]


@pytest.fixture
def check_lpips(nets, monkeypatch):
    made, folder = nets
    monkeypatch.setattr(
        lpips, "_get_tv_model_features", lambda net, pretrained: made[{"alexnet": "alex"}.get(net, "vgg")]
    )

    def check(net: str) -> None:
        theirs = lpips._LPIPS(net=net, pnet_tune=True)
        (x, y), found = images(), []
        for distance in (theirs, Lpips(folder / f"{net}.pth", net)):
            leaf = x.clone().requires_grad_()
            value = distance(leaf, y).flatten()
            found.append((value.detach(), torch.autograd.grad(value.sum(), leaf)[0]))
        torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=0)
        torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-7)

    return check


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_torchmetrics(check_lpips, net):
    check_lpips(net)


@pytest.fixture
def check_dists(nets, monkeypatch):
    made, folder = nets
    monkeypatch.setattr(dists, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(dists, "VGG16_Weights", SimpleNamespace(DEFAULT=None), raising=False)
    monkeypatch.setattr(dists, "vgg16", lambda weights: SimpleNamespace(features=made["vgg"]), raising=False)

    def check() -> None:
        x, y = images()
        theirs, ours = dists.DISTSNetwork(), Dists(folder / "vgg.pth")
        torch.testing.assert_close(ours(x, y), theirs((x + 1) / 2, (y + 1) / 2), rtol=1e-4, atol=1e-6)
        assert float(ours(x, y).min()) > 1e-3

    return check


def test_dists_is_torchmetrics(check_dists):
    check_dists()


@pytest.mark.parametrize("kind", ["alex", "vgg", "dists"])
def test_equal_images_are_at_no_distance_and_rows_are_alone(nets, kind):
    distance = Dists(nets[1] / "vgg.pth") if kind == "dists" else Lpips(nets[1] / f"{kind}.pth")
    x, y = images()
    torch.testing.assert_close(distance(x, x), torch.zeros(2), rtol=0, atol=2e-6)
    torch.testing.assert_close(distance(x[1:], y[1:]), distance(x, y)[1:], rtol=1e-4, atol=1e-7)
    assert not list(distance.parameters()) and not distance.state_dict()  # nothing to train, nothing in checkpoints
    leaf = x.clone().requires_grad_()
    distance(leaf, y).sum().backward()
    assert leaf.grad.abs().sum() > 0


LPIPS = [
    ("features not of length 1", "(_unit(a) - _unit(b))", "(a - b)"),
    ("the distance not squared", ".square()).sum(1)", ".abs()).sum(1)"),
    ("the mean image not taken away", "(image - self.shift)", "image"),
    ("a sum over positions", ".mean((1, 2))", ".sum((1, 2))"),
    ("a mean over channels", ".sum(1).mean", ".mean(1).mean"),
]


@pytest.mark.parametrize(("says", "old", "new"), LPIPS)
def test_faults_of_lpips_are_noticed(check_lpips, says, old, new):
    prove(Mutation(says, Lpips.forward, old, new, partial(check_lpips, "alex")))


DISTS = [
    ("the image itself left out", Dists.forward, "[image, *", "[0 * image, *"),
    ("maxima instead of roots", Dists.forward, ", l2_pool)", ")"),
    ("texture and structure swapped", Dists.forward, "texture, structure =", "structure, texture ="),
    ("the range not 0 to 1", Dists.forward, "(image + 1) / 2", "image"),
    ("a flat window", perceptual.l2_pool, "(0.25, 0.5, 0.25)", "(1 / 3, 1 / 3, 1 / 3)"),
    ("the means kept", perceptual._similarity, "(a - mean_a) * (b - mean_b)", "a * b"),
]


@pytest.mark.parametrize(("says", "function", "old", "new"), DISTS)
def test_faults_of_dists_are_noticed(check_dists, says, function, old, new):
    prove(Mutation(says, function, old, new, check_dists))


def test_files(nets, tmp_path):
    state = {f"features.{name}": value for name, value in nets[0]["alex"].state_dict().items()}
    save_file(state, tmp_path / "alex.safetensors")
    found = Backbone(tmp_path / "alex.safetensors")
    assert found.net == "alex" and len(found.sha256) == 64 and found.widths == [64, 192, 384, 256, 256]
    with pytest.raises(ValueError, match="there are no weights at"):
        Lpips(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="does not hold VGG16 in torchvision's layout, but AlexNet"):
        Dists(tmp_path / "alex.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="does not hold AlexNet or VGG16"):
        Lpips(tmp_path / "other.pth")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(print, protocol=2))
    for name in ("code.pth", "list.pth"):
        with pytest.raises(ValueError, match="holds no plain table of weights"):
            Lpips(tmp_path / name)


def test_small_images_are_refused(nets):
    distance = Lpips(nets[1] / "alex.pth")
    x, y = images(1, 31)
    assert distance(x, y).isfinite().all()
    with pytest.raises(ValueError, match=r"AlexNet sees images of at least 31 pixels a side, got \[30, 35\]"):
        distance(*images(1, 30))


def test_metrics_of_images_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(UsageError, match="musiq: metrics without a reference .* pip install pyiqa"):
        perceptual.NoReference(["musiq"])
    monkeypatch.setitem(sys.modules, "pyiqa", Pyiqa())
    with pytest.raises(UsageError, match="pyiqa measures no psnr of images alone; it has musiq, niqe"):
        perceptual.NoReference(["musiq", "psnr"])
    found = perceptual.NoReference(["musiq", "niqe"])
    scores = found(torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None].expand(3, 3, 4, 4))
    assert {name: score.tolist() for name, score in scores.items()} == {"musiq": [0, 0.5, 1], "niqe": [0, 0.5, 1]}
    assert found.better == {"musiq": "higher", "niqe": "lower"}


class Pyiqa:
    """As much of pyiqa as is asked of it: the mean of an image, which must lie in [0, 1]."""

    def list_models(self, metric_mode):
        return {"NR": ["musiq", "niqe"], "FR": ["psnr"]}[metric_mode]

    def create_metric(self, name, device):
        return Mean(name == "niqe")


class Mean:
    def __init__(self, lower_better):
        self.lower_better = lower_better

    def __call__(self, x):
        return x.mean((1, 2, 3))[:, None]
