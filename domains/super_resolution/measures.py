"""Measures of images beside their photographs, as papers take them: on brightness, in 8 bits.

B: images; H, W: height, width. Brightness is [B, H, W] float64, in levels from 0 to 255.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation.samples import eight_bits

BEST_PSNR = 100.0  # decibels that equal images get, instead of infinitely many
CONTRAST = 170.0  # of gradients, in levels, below which they hardly count


def luma(images: Tensor, border: int = 0) -> Tensor:
    """Brightness of images [B, 3, H, W] in [-1, 1], without `border` pixels on each side.

    It is Y of BT.601, from 16 to 235, of levels as a file keeps them, and not rounded itself.
    """
    height, width = images.shape[-2:]
    levels = (eight_bits(images[..., border : height - border, border : width - border]).double() + 1) * 127.5
    weights = levels.new_tensor((65.481, 128.553, 24.966)) / 255
    return 16 + torch.einsum("bchw,c->bhw", levels.round(), weights)


def psnr(error: Tensor, peak: float) -> Tensor:
    """Decibels [B] of mean squared errors [B] below the square of the peak, at most `BEST_PSNR`."""
    return (10 * torch.log10(peak**2 / error)).clamp_max(BEST_PSNR)


def psnr_y(ours: Tensor, theirs: Tensor) -> Tensor:
    """PSNR [B] of two brightnesses, in decibels."""
    return psnr((ours - theirs).square().mean((1, 2)), 255)


def ssim_y(ours: Tensor, theirs: Tensor) -> Tensor:
    """SSIM [B] of two brightnesses (Wang et al. 2004, eq. 13), H, W >= 6; 1 is best.

    The Gaussian window has 11 pixels and a spread of 1.5. Every place counts, and images go on
    mirrored at their ends, as in torchmetrics; other programs leave out places near the ends, which
    gives 0.722 instead of 0.720 for Kodak's photographs enlarged four times.
    """
    line = torch.exp(-0.5 * (torch.arange(-5, 6) / 1.5).square()).to(ours)
    line = (line / line.sum())[None, None]

    def mean(x: Tensor) -> Tensor:
        x = F.pad(x[:, None], (5, 5, 5, 5), mode="reflect")
        return F.conv2d(F.conv2d(x, line[..., None]), line[..., None, :])

    a, b = mean(ours), mean(theirs)
    var_a, var_b, both = mean(ours**2) - a**2, mean(theirs**2) - b**2, mean(ours * theirs) - a * b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return ((2 * a * b + c1) * (2 * both + c2) / ((a**2 + b**2 + c1) * (var_a + var_b + c2))).mean((1, 2, 3))


def gmsd(ours: Tensor, theirs: Tensor) -> Tensor:
    """Deviation [B] of the gradients' similarity (Xue et al. 2014, arXiv 1308.3052, eq. 4 to 6).

    Brightnesses, H, W >= 6, are halved by means of four pixels; gradients are Prewitt's, taken
    within the image. 0 is best.
    """
    a, b = (_gradient(F.avg_pool2d(x[:, None], 2)) for x in (ours, theirs))
    return ((2 * a * b + CONTRAST) / (a**2 + b**2 + CONTRAST)).flatten(1).std(1, unbiased=False)


def _gradient(x: Tensor) -> Tensor:
    """Sizes of gradients of x [B, 1, h, w], [B, 1, h - 2, w - 2]."""
    down = x.new_tensor([[1, 1, 1], [0, 0, 0], [-1, -1, -1]]) / 3
    return F.conv2d(x, torch.stack([down, down.T])[:, None]).square().sum(1, keepdim=True).sqrt()


def fine_energy(y: Tensor) -> Tensor:
    """Energy [B] of brightness above half the largest frequency, more than 1/4 cycle a pixel.

    Each image is faded out towards its ends, which else would count as edges.
    """
    height, width = y.shape[-2:]
    fade = torch.outer(*(torch.hann_window(side, False).to(y) for side in (height, width)))
    power = torch.fft.fft2((y - y.mean((1, 2), keepdim=True)) * fade).abs().square()
    across, along = (torch.fft.fftfreq(side).to(y) for side in (height, width))
    fine = (across[:, None].square() + along.square()).sqrt() > 0.25
    return (power * fine).sum((1, 2)) / (height * width)
