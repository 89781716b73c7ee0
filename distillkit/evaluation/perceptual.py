"""Distances between images as people see them, by networks whose weights the user has.

Their weights are not ours to ship: AlexNet's or VGG16's in torchvision's layout (`alexnet-*.pth`,
`vgg16-*.pth`, or the same tensors as .safetensors). The weights on top of them, of some kilobytes,
are read from torchmetrics, which is installed. Images are [B, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.errors import UsageError, one_line

NAMES = {"alex": "AlexNet", "vgg": "VGG16"}
# By network the numbers of its convolutions, in groups whose last outputs are looked at; a group
# after "pool" sees a smaller image.
GROUPS = {
    "alex": ((0,), "pool", (3,), "pool", (6,), (8,), (10,)),
    "vgg": ((0, 2), "pool", (5, 7), "pool", (10, 12, 14), "pool", (17, 19, 21), "pool", (24, 26, 28)),
}
SHAPES = {
    "alex": {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)},
    "vgg": {
        index: (out, inp, 3)
        for index, inp, out in zip(
            (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
            (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512),
            (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
            strict=True,
        )
    },
}
WINDOW = {"alex": 3, "vgg": 2}  # of the maximum that halves the image
LEAST = {"alex": 31, "vgg": 16}  # pixels of a side, of which the last group sees one position


class Backbone(nn.Module):
    """The convolutions of AlexNet or VGG16, frozen, after each group of which features are given.

    The weights are buffers that no checkpoint keeps and no optimiser sees.

    Args:
        weights: path of a file in torchvision's layout; its classifier is not read.
        net: `alex` or `vgg`; None takes the one that the file holds.

    Raises:
        ValueError: there is no such file, or no such network in it.
    """

    def __init__(self, weights: str | Path, net: Literal["alex", "vgg"] | None = None):
        super().__init__()
        path = Path(weights).expanduser()
        state = _read(path)
        held = next((kind for kind, shapes in SHAPES.items() if _fits(state, shapes)), None)
        if held is None or net not in (None, held):
            raise ValueError(
                f"{path} does not hold {NAMES[net] if net else 'AlexNet or VGG16'} in torchvision's layout"
                + (f", but {NAMES[held]}" if held else "")
            )
        self.net, self.sha256 = held, hashlib.sha256(path.read_bytes()).hexdigest()
        for index in SHAPES[held]:
            for part in ("weight", "bias"):
                self.register_buffer(f"{part}{index}", state[f"features.{index}.{part}"].float(), persistent=False)

    @property
    def widths(self) -> list[int]:
        """Channels of the features."""
        return [SHAPES[self.net][group[-1]][0] for group in GROUPS[self.net] if group != "pool"]

    def forward(self, x: Tensor, pool: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
        """Features [B, C, h, w] of normalised images; `pool` halves them, else a maximum does."""
        if min(x.shape[-2:]) < LEAST[self.net]:
            raise ValueError(
                f"{NAMES[self.net]} sees images of at least {LEAST[self.net]} pixels a side, got {list(x.shape[-2:])}"
            )
        found = []
        for group in GROUPS[self.net]:
            if group == "pool":
                x = pool(x) if pool else F.max_pool2d(x, WINDOW[self.net], 2)
                continue
            for index in group:
                weight, bias = getattr(self, f"weight{index}"), getattr(self, f"bias{index}")
                stride, padding = (4, 2) if weight.shape[-1] == 11 else (1, weight.shape[-1] // 2)
                x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            found.append(x.float())
        return found


class Lpips(nn.Module):
    """LPIPS (arXiv 1801.03924, eq. 1, version 0.1): 0 for equal images, larger is farther.

        d(x, y) = sum_l mean_hw sum_c w_lc (f_lc(x) / |f_l(x)| - f_lc(y) / |f_l(y)|)^2

    Args:
        weights: path of AlexNet's or VGG16's weights in torchvision's layout.
        net: `alex` (as published numbers mostly are) or `vgg` (mostly the loss); None takes the one
            that the file holds.
    """

    def __init__(self, weights: str | Path, net: Literal["alex", "vgg"] | None = None):
        super().__init__()
        self.backbone = Backbone(weights, net)
        self.name = f"LPIPS ({self.backbone.net})"
        self.register_buffer("shift", _channels(-0.030, -0.088, -0.188), persistent=False)
        self.register_buffer("scale", _channels(0.458, 0.448, 0.450), persistent=False)
        heads = _shipped(f"lpips_models/{self.backbone.net}.pth")
        for level in range(len(self.backbone.widths)):
            self.register_buffer(f"head{level}", heads[f"lin{level}.model.1.weight"][0], persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances [B] of images x from y; gradients flow to both."""
        pairs = zip(*(self.backbone((image - self.shift) / self.scale) for image in (x, y)), strict=True)
        return sum(
            (getattr(self, f"head{level}") * (_unit(a) - _unit(b)).square()).sum(1).mean((1, 2))
            for level, (a, b) in enumerate(pairs)
        )


class Dists(nn.Module):
    """DISTS (arXiv 2004.07728, eq. 6 to 8): 0 for equal images, at most 1; forgives moved texture.

    Args:
        weights: path of VGG16's weights in torchvision's layout.
    """

    name = "DISTS"

    def __init__(self, weights: str | Path):
        super().__init__()
        self.backbone = Backbone(weights, "vgg")
        self.register_buffer("mean", _channels(0.485, 0.456, 0.406), persistent=False)
        self.register_buffer("std", _channels(0.229, 0.224, 0.225), persistent=False)
        tops = _shipped("dists_models/weights.pt")
        whole = tops["alpha"].sum() + tops["beta"].sum()
        for name in ("alpha", "beta"):
            self.register_buffer(name, tops[name].flatten() / whole, persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances [B] of images x from y; gradients flow to both."""
        x, y = (((image + 1) / 2).float() for image in (x, y))
        levels = zip(
            *([image, *self.backbone((image - self.mean) / self.std, l2_pool)] for image in (x, y)), strict=True
        )
        texture, structure = zip(*(_similarity(a, b) for a, b in levels), strict=True)
        return 1 - torch.cat(texture, 1) @ self.alpha - torch.cat(structure, 1) @ self.beta


def l2_pool(x: Tensor) -> Tensor:
    """Halves images [B, C, H, W]: the root of the mean square under a 3 x 3 Hann window."""
    line = x.new_tensor((0.25, 0.5, 0.25))
    window = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    return (F.conv2d(x.square(), window, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Texture and structure of two features [B, C, h, w], each [B, C], 1 if equal."""
    mean_a, mean_b = (f.mean((2, 3), keepdim=True) for f in (a, b))
    var_a, var_b = ((f - m).square().mean((2, 3)) for f, m in ((a, mean_a), (b, mean_b)))
    both = ((a - mean_a) * (b - mean_b)).mean((2, 3))
    mean_a, mean_b = mean_a[..., 0, 0], mean_b[..., 0, 0]
    texture = (2 * mean_a * mean_b + 1e-6) / (mean_a.square() + mean_b.square() + 1e-6)
    return texture, (2 * both + 1e-6) / (var_a + var_b + 1e-6)


class NoReference:
    """Metrics of images alone, by pyiqa, which fetches their weights when they are first measured.

    Args:
        names: of pyiqa's metrics that need no reference, such as `musiq` and `clipiqa`.

    Raises:
        UsageError: pyiqa does not import, or has no such metric.
    """

    def __init__(self, names: Sequence[str]):
        try:
            self.pyiqa = import_module("pyiqa")
        except Exception as error:  # broken builds raise much else than ImportError
            reason = f"{type(error).__name__}: {one_line(error, 200)}"
            raise UsageError(
                f"{', '.join(names)}: metrics without a reference are measured with pyiqa, which does not import here "
                f"({reason}): pip install pyiqa"
            ) from None
        known = self.pyiqa.list_models(metric_mode="NR")
        if unknown := [name for name in names if name not in known]:
            raise UsageError(f"pyiqa measures no {', '.join(unknown)} of images alone; it has {', '.join(known)}")
        self.names = list(names)
        self._built: dict[str, Any] = {}

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Scores [B] of images by name, computed where the first images were."""
        return {name: self._metric(name, x.device)((x + 1) / 2).flatten() for name in self.names}

    @property
    def better(self) -> dict[str, str]:
        """Which way each is good; known once they have measured."""
        return {name: "lower" if metric.lower_better else "higher" for name, metric in self._built.items()}

    def _metric(self, name: str, device: torch.device) -> Any:
        if name not in self._built:
            self._built[name] = self.pyiqa.create_metric(name, device=device)
        return self._built[name]


def _unit(features: Tensor) -> Tensor:
    """Features [B, C, h, w] of length 1 at each position."""
    return features * (features.square().sum(1, keepdim=True) + 1e-8).rsqrt()


def _channels(*values: float) -> Tensor:
    return torch.tensor(values)[:, None, None]


def _fits(state: dict[str, Any], shapes: dict[int, tuple[int, int, int]]) -> bool:
    """Whether a table of tensors holds convolutions of these shapes: (out, in, side)."""
    wanted = {f"features.{index}.weight": (out, inp, side, side) for index, (out, inp, side) in shapes.items()}
    wanted |= {f"features.{index}.bias": (out,) for index, (out, _, _) in shapes.items()}
    return all(tuple(getattr(state.get(name), "shape", ())) == shape for name, shape in wanted.items())


def _read(path: Path) -> dict[str, Any]:
    """The table of tensors in a file; no code of it runs."""
    if not path.is_file():
        raise ValueError(f"there are no weights at {path}; give the path of torchvision's AlexNet or VGG16")
    try:
        plain = path.suffix == ".safetensors"
        state = load_file(path) if plain else torch.load(path, map_location="cpu", weights_only=True)
        return dict(state)
    except (SafetensorError, pickle.UnpicklingError, OSError, EOFError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no plain table of weights ({one_line(error, 200)})") from None


def _shipped(name: str) -> dict[str, Tensor]:
    """Weights that torchmetrics ships, without importing it."""
    path = Path(find_spec("torchmetrics").submodule_search_locations[0]) / "functional" / "image" / name
    if not path.is_file():
        raise UsageError(f"this torchmetrics has no {name}: pip install --upgrade torchmetrics")
    return torch.load(path, map_location="cpu", weights_only=True)
