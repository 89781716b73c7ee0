"""I3D (arXiv 1705.07750), the network of papers' Frechet video distance.

Its weights are not ours to ship. They come as `rgb_imagenet.pt`, trained on ImageNet and
Kinetics-400, in the layout that many projects pass on.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.errors import one_line

SIDE, SHORTEST = 224, 9  # pixels it looks at; frames that leave two moments for its last average
CHUNK = 8  # clips at once
# Channels of the branches: 1x1; 1x1 then 3x3; 1x1 then 3x3; pooling then 1x1.
MIXED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


def same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """x [N, C, T, H, W] with zeros around it as in TensorFlow's SAME: the odd one behind."""
    pads = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        pad = max((math.ceil(size / s) - 1) * s + k - size, 0)
        pads = [pad // 2, pad - pad // 2, *pads]
    return F.pad(x, pads)


def pooled(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    return F.max_pool3d(same(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inp: int, out: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        self.conv3d = nn.Conv3d(inp, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(same(x, self.conv3d.kernel_size, self.conv3d.stride))))


class Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, inp: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int):
        super().__init__()
        self.b0, self.b1a, self.b1b = Unit(inp, b0), Unit(inp, b1a), Unit(b1a, b1b, 3)
        self.b2a, self.b2b, self.b3b = Unit(inp, b2a), Unit(b2a, b2b, 3), Unit(inp, b3b)

    def forward(self, x: Tensor) -> Tensor:
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled(x, (3,) * 3, (1,) * 3))
        return torch.cat(branches, dim=1)


class Logits(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv3d = nn.Conv3d(1024, 400, 1)


class I3D(nn.Module):
    """The 400 logits of clips [N, 1 or 3, T, H, W] in [-1, 1], T >= 9: [N, 400], time means."""

    def __init__(self):
        super().__init__()
        self.Conv3d_1a_7x7, self.Conv3d_2b_1x1, self.Conv3d_2c_3x3 = Unit(3, 64, 7, 2), Unit(64, 64), Unit(64, 192, 3)
        for name, channels in MIXED.items():
            self.add_module(name, Mixed(*channels))
        self.logits = Logits()
        self.config = {}

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._logits(part) for part in x.split(CHUNK)])

    def _logits(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1, -1)
        x = F.interpolate(x, (x.shape[2], SIDE, SIDE), mode="trilinear", align_corners=False)
        x = pooled(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = pooled(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name == "Mixed_4b":
                x = pooled(x, (3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                x = pooled(x, (2, 2, 2), (2, 2, 2))
            x = getattr(self, name)(x)
        return self.logits.conv3d(F.avg_pool3d(x, (2, 7, 7), stride=1)).mean((2, 3, 4))


def load(path: str | Path) -> I3D:
    """The network with weights from `rgb_imagenet.pt`, or from the same tensors as .safetensors.

    Runs no code of the file.

    Raises:
        ValueError: there is no such file, it is no plain table of tensors, or one for another
            network.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no I3D at {path}: data.i3d must be the path of rgb_imagenet.pt")
    try:
        plain = path.suffix == ".safetensors"
        state = load_file(path) if plain else torch.load(path, map_location="cpu", weights_only=True)
        net = I3D()
        net.load_state_dict(state)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        OSError,
        EOFError,
        RuntimeError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(
            f"{path} does not hold I3D's weights in the layout of rgb_imagenet.pt ({one_line(error, 200)})"
        ) from None
    return net.eval().requires_grad_(False)
