"""IMDN, the information multi-distillation network (arXiv 1909.11856): a small, fast student."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.networks.blocks import zero
from distillkit.spec import Recorded
from domains.super_resolution.network import check_images

BLOCKS = 6
SLOPE = 0.05  # of the leaky rectifiers


class IMDN(Recorded, nn.Module):
    """Looks at the observation alone, at its size, and gives what a photograph adds to it.

    Noise and time are not used: the student is a function of the observation and takes one step.
    At first its output is zero, which is bicubic interpolation. Its blocks take statistics of the
    whole image, so a tile comes out slightly otherwise than within the whole.

    Names and shapes of its weights are those of the authors' (github.com/Zheng222/IMDN, IMDN_x2,
    _x3 and _x4.pth, in a repository without a licence; none are shipped here). These give pixels
    in [0, 1] where this network gives scaled residuals: they are a start for training.

    Args:
        scale: how many times larger than its observation a photograph is.
        width: channels, a multiple of 16; 64 in the paper.
    """

    blind = True

    def __init__(self, scale: int = 4, width: int = 64):
        super().__init__()
        checks.whole(1, 64, scale=scale)
        checks.network(width=width)
        if width % 16:
            raise checks.Unfit("width", width, "be a multiple of 16")
        self.scale = scale
        self.fea_conv = nn.Conv2d(3, width, 3, padding=1)
        for i in range(BLOCKS):
            self.add_module(f"IMDB{i + 1}", Block(width))
        self.c = nn.Sequential(nn.Conv2d(BLOCKS * width, width, 1), nn.LeakyReLU(SLOPE))
        self.LR_conv = nn.Conv2d(width, width, 3, padding=1)
        self.upsampler = nn.Sequential(zero(nn.Conv2d(width, 3 * scale**2, 3, padding=1)), nn.PixelShuffle(scale))

    def check_context(self, cond: dict[str, Tensor]) -> None:
        """See `WithContext`: the observations must be images."""
        check_images(cond["low"])

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        low = cond["low"]
        if [self.scale * side for side in low.shape[-2:]] != list(x.shape[-2:]):
            raise ValueError(
                f"a network for scale {self.scale} cannot make {x.shape[-1]} x {x.shape[-2]} pixels of "
                f"{low.shape[-1]} x {low.shape[-2]}: give it the scale of the data"
            )
        first = h = self.fea_conv((low.to(self.fea_conv.weight.dtype) + 1) / 2)
        steps = [h := self.get_submodule(f"IMDB{i + 1}")(h) for i in range(BLOCKS)]
        return self.upsampler(self.LR_conv(self.c(torch.cat(steps, dim=1))) + first)


class Block(nn.Module):
    """Three convolutions each keep a quarter of their channels and pass on the rest; a fourth ends.

    The kept quarters are weighed, mixed and added to the input.
    """

    def __init__(self, width: int):
        super().__init__()
        self.kept = width // 4
        rest = width - self.kept
        self.c1 = nn.Conv2d(width, width, 3, padding=1)
        self.c2, self.c3 = (nn.Conv2d(rest, width, 3, padding=1) for _ in range(2))
        self.c4 = nn.Conv2d(rest, self.kept, 3, padding=1)
        self.c5 = nn.Conv2d(width, width, 1)
        self.cca = Attention(width)

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = [], x
        for conv in (self.c1, self.c2, self.c3):
            h = F.leaky_relu(conv(rest), SLOPE)
            part, rest = h[:, : self.kept], h[:, self.kept :]
            kept.append(part)
        return x + self.c5(self.cca(torch.cat([*kept, self.c4(rest)], dim=1)))


class Attention(nn.Module):
    """Contrast-aware attention: weights of the channels from their mean + standard deviation."""

    def __init__(self, width: int):
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(width, width // 16, 1), nn.ReLU(), nn.Conv2d(width // 16, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        variance = (x - mean).square().mean((2, 3), keepdim=True)
        return x * self.conv_du(mean + (variance + 1e-12).sqrt())  # a flat channel has a gradient too
