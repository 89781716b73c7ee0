"""The one way in which images are made smaller and larger, in training, evaluation and use.

PyTorch's bicubic interpolation (a = -0.5 with antialiasing when it shrinks, -0.75 when it
enlarges). It is not MATLAB's, from which numbers of papers differ by some hundredths of a decibel.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation.samples import eight_bits


def enlarged(low: Tensor, size: Sequence[int]) -> Tensor:
    """Images [B, C, h, w] at another size (H, W), bicubic; values may leave their range."""
    return F.interpolate(low, size=tuple(size), mode="bicubic", align_corners=False)


def shrunk(images: Tensor, scale: int) -> Tensor:
    """Images [B, C, sH, sW] in [-1, 1] as [B, C, H, W], antialiased bicubic, rounded to 8 bits.

    Raises:
        ValueError: a side is not divisible by the scale.
    """
    size = shrunk_size(images, scale)
    return eight_bits(F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True))


def shrunk_size(images: Tensor, scale: int) -> tuple[int, int]:
    """The height and width of images that are `scale` times smaller; raises as `shrunk`."""
    height, width = images.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"an image of {width} x {height} pixels cannot be made {scale} times smaller: cut it first")
    return height // scale, width // scale
