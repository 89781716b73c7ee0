"""Degradations: photographs as small observations of them.

`DEGRADATIONS[name](images, scale, seeds)` takes images [B, 3, H, W] in [-1, 1], whose sides the
scale divides, and gives [B, 3, H / scale, W / scale] in [-1, 1], rounded to 8 bits. Row i follows
from images[i] and seeds[i] alone, whatever batch it is in.

`bicubic` draws nothing. `realesrgan` is that of Real-ESRGAN (arXiv 2107.10833) with the settings of
ResShift (arXiv 2307.12348): blur, resizing, noise and JPEG, in half of the cases twice.
`realesrgan_light` does each of them once and takes milliseconds.

Within this file, images are [1, 3, H, W] float32 in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.random import PCG64, Generator
from PIL import Image
from scipy.special import j1
from torch import Tensor
from torch.nn import functional as F

from domains.super_resolution.resize import eight_bits, shrunk, shrunk_size

Range = tuple[float, float]

# Kernels: the form of their profile, whether they are round, and how often each is drawn.
KINDS = {
    ("gaussian", True): 0.45,
    ("gaussian", False): 0.25,
    ("generalised", True): 0.12,
    ("generalised", False): 0.03,
    ("plateau", True): 0.12,
    ("plateau", False): 0.03,
}
# Profiles of the squared distance q in standard deviations, and the range of their exponent beta.
FORMS: dict[str, tuple[Callable[..., Any], Range]] = {
    "gaussian": (lambda q, beta: np.exp(-q / 2), (1.0, 1.0)),
    "generalised": (lambda q, beta: np.exp(-(q**beta) / 2), (0.5, 4.0)),
    "plateau": (lambda q, beta: 1 / (1 + q**beta), (1.0, 2.0)),
}
SINC, LAST_SINC = 0.1, 0.8  # how often a blur is a low-pass filter, and the last step is one
MODES = ("area", "bilinear", "bicubic")
GREY = 0.4  # how often noise is the same in the three channels
QUALITIES = (30, 95)
LUMA = np.array([0.2989, 0.587, 0.114], dtype=np.float32)[:, None, None]


@dataclass(frozen=True)
class Round:
    """The ranges of one round.

    Args:
        sizes: smallest and largest side of the blur's kernel, which is odd, in pixels.
        sigma: standard deviation of the blur, in pixels.
        resize: probabilities of up, down, keep.
        factors: the smallest and the largest factor of the size.
        gaussian: standard deviation of Gaussian noise, in levels of 255.
        poisson: factor of Poisson noise.
    """

    sizes: tuple[int, int]
    sigma: Range
    resize: tuple[float, float, float]
    factors: Range
    gaussian: Range
    poisson: Range


FIRST = Round((7, 21), (0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3.0))
SECOND = Round((7, 15), (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5))
AGAIN, BLUR_AGAIN = 0.5, 0.8  # how often there is a second round, and how often it blurs
LIGHT = (1, 10)  # standard deviation of the light one's noise, in levels of 255


def bicubic(images: Tensor, scale: int, seeds: Sequence[int] = ()) -> Tensor:
    """Antialiased bicubic; see `resize.shrunk`."""
    return shrunk(images, scale)


def realesrgan(images: Tensor, scale: int, seeds: Sequence[int]) -> Tensor:
    """Blur, resizing, noise, JPEG, perhaps once more, and a low-pass filter; see the top."""
    return _each(images, scale, seeds, _realesrgan)


def realesrgan_light(images: Tensor, scale: int, seeds: Sequence[int]) -> Tensor:
    """One Gaussian blur, one resizing, Gaussian noise and JPEG."""
    return _each(images, scale, seeds, _light)


DEGRADATIONS: dict[str, Callable[[Tensor, int, Sequence[int]], Tensor]] = {
    "bicubic": bicubic,
    "realesrgan": realesrgan,
    "realesrgan_light": realesrgan_light,
}


def _each(images: Tensor, scale: int, seeds: Sequence[int], degrade: Callable[..., Tensor]) -> Tensor:
    size = shrunk_size(images, scale)
    unit = (images.cpu().float() + 1) / 2
    low = [degrade(Generator(PCG64(int(seed))), image, size) for image, seed in zip(unit.split(1), seeds, strict=True)]
    return eight_bits(2 * torch.cat(low) - 1).to(images.device)


def _realesrgan(random: Generator, image: Tensor, size: tuple[int, int]) -> Tensor:
    image = blurred(image, blur_kernel(random, FIRST))
    image = resized(random, image, scaled(image.shape[-2:], factor(random, FIRST)))
    image = jpeg(noisy(random, image, FIRST), quality(random))
    if random.random() < AGAIN:
        if random.random() < BLUR_AGAIN:
            image = blurred(image, blur_kernel(random, SECOND))
        image = resized(random, image, scaled(size, factor(random, SECOND)))
        image = noisy(random, image, SECOND)
    if random.random() < 0.5:
        return jpeg(_last(random, image, size), quality(random))
    return _last(random, jpeg(image, quality(random)), size)


def _last(random: Generator, image: Tensor, size: tuple[int, int]) -> Tensor:
    """The final size, and with a probability the low-pass filter."""
    image = resized(random, image, size)
    if random.random() >= LAST_SINC:
        return image
    return blurred(image, low_pass(uniform(random, (math.pi / 3, math.pi)), odd(random, SECOND.sizes)))


def _light(random: Generator, image: Tensor, size: tuple[int, int]) -> Tensor:
    image = blurred(image, kernel("gaussian", odd(random, FIRST.sizes), uniform(random, FIRST.sigma)))
    image = resized(random, image, size)
    image = image + gaussian_noise(random, image, uniform(random, LIGHT), random.random() < GREY)
    return jpeg(image, quality(random))


# Draws


def uniform(random: Generator, between: Range) -> float:
    return between[0] + (between[1] - between[0]) * random.random()


def odd(random: Generator, sizes: tuple[int, int]) -> int:
    """An odd number between two odd numbers, both included."""
    return sizes[0] + 2 * int(random.integers((sizes[1] - sizes[0]) // 2 + 1))


def exponent(random: Generator, betas: Range) -> float:
    """beta of a profile: below 1 and above 1 equally often, uniform within each."""
    return uniform(random, (betas[0], 1.0) if random.random() < 0.5 else (1.0, betas[1]))


def factor(random: Generator, settings: Round) -> float:
    """The factor by which a size changes: above 1, below 1, or 1."""
    way = random.choice(3, p=settings.resize)
    return uniform(random, ((1.0, settings.factors[1]), (settings.factors[0], 1.0), (1.0, 1.0))[way])


def quality(random: Generator) -> int:
    return int(random.integers(QUALITIES[0], QUALITIES[1] + 1))


def blur_kernel(random: Generator, settings: Round) -> Tensor:
    """A kernel of one of the `KINDS`, or a low-pass filter."""
    size = odd(random, settings.sizes)
    if random.random() < SINC:
        return low_pass(uniform(random, (math.pi / 3 if size < 13 else math.pi / 5, math.pi)), size)
    form, is_round = kind(random)
    sigma = uniform(random, settings.sigma)
    other, angle = (sigma, 0.0) if is_round else (uniform(random, settings.sigma), uniform(random, (-math.pi, math.pi)))
    return kernel(form, size, sigma, other, angle, exponent(random, FORMS[form][1]))


def kind(random: Generator) -> tuple[str, bool]:
    """One of the `KINDS`."""
    return list(KINDS)[random.choice(len(KINDS), p=list(KINDS.values()))]


# Kernels, [size, size] float32 with sum 1


def kernel(
    form: str, size: int, sigma: float, other: float | None = None, angle: float = 0.0, beta: float = 1.0
) -> Tensor:
    """A kernel of one of the `FORMS` over `q = r^T S^-1 r`.

    Args:
        form: the profile.
        size: side, an odd number of pixels.
        sigma, other: root of S's eigenvalues, in pixels; `other` None means a round kernel.
        angle: of the first eigenvector to the x axis, in radians.
        beta: exponent of q.
    """
    x, y = _offsets(size)
    along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    q = (along / sigma) ** 2 + (across / (other or sigma)) ** 2
    return _normalised(FORMS[form][0](q, beta))


def low_pass(cutoff: float, size: int) -> Tensor:
    """The circular low-pass filter `w J_1(w r) / (2 pi r)`, cut to a square.

    Args:
        cutoff: w, in radians a pixel, at most pi.
        size: side, an odd number of pixels.
    """
    r = np.hypot(*_offsets(size))
    r[size // 2, size // 2] = 1  # where the limit stands
    wave = cutoff * j1(cutoff * r) / (2 * math.pi * r)
    wave[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return _normalised(wave)


def _offsets(size: int) -> Any:
    """x and y of the pixels from the centre, [2, size, size]."""
    y, x = np.indices((size, size), dtype=np.float64) - size // 2
    return np.stack([x, y])


def _normalised(values: Any) -> Tensor:
    return torch.from_numpy((values / values.sum()).astype(np.float32))


# Operations on one image


def blurred(image: Tensor, kernel: Tensor) -> Tensor:
    """The convolution with a symmetric kernel; the image goes on beyond its borders reflected."""
    size = len(kernel)
    rows, columns = (_reflected(side, size // 2) for side in image.shape[-2:])
    wide = image[..., rows[:, None], columns]
    return F.conv2d(wide, kernel.expand(image.shape[1], 1, size, size), groups=image.shape[1])


def _reflected(side: int, pad: int) -> Tensor:
    """Indices [side + 2 pad] of a row that goes on reflected, as often as it takes."""
    last = side - 1
    return last - (torch.arange(-pad, side + pad) % max(2 * last, 1) - last).abs()


def scaled(size: Sequence[int], by: float) -> tuple[int, int]:
    """A size times a factor, rounded down, at least one pixel."""
    return max(1, int(size[0] * by)), max(1, int(size[1] * by))


def resized(random: Generator, image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image at another size by one of the `MODES`, without antialiasing as in Real-ESRGAN."""
    mode = MODES[random.integers(len(MODES))]
    return image if tuple(image.shape[-2:]) == size else F.interpolate(image, size=size, mode=mode)


def noisy(random: Generator, image: Tensor, settings: Round) -> Tensor:
    """The image with Gaussian or with Poisson noise, equally often; within [0, 1]."""
    make, between = (gaussian_noise, settings.gaussian) if random.random() < 0.5 else (poisson_noise, settings.poisson)
    noise = make(random, image, uniform(random, between), random.random() < GREY)
    return (image + noise).clamp(0, 1)


def gaussian_noise(random: Generator, image: Tensor, std: float, grey: bool) -> Tensor:
    """Noise of a standard deviation in levels of 255."""
    channels = 1 if grey else image.shape[1]
    return torch.from_numpy(random.standard_normal((1, channels, *image.shape[-2:]), dtype=np.float32)) * (std / 255)


def poisson_noise(random: Generator, image: Tensor, scale: float, grey: bool) -> Tensor:
    """`scale (P(n v) / n - v)`: v is the image in 8 bits, n its number of values, a power of two.

    Grey noise is that of the luma.
    """
    values = image[0].clamp(0, 1).numpy()
    levels = np.rint(255 * ((LUMA * values).sum(0, keepdims=True) if grey else values)).astype(np.uint8)
    num = np.count_nonzero(np.bincount(levels.ravel(), minlength=256))
    n = 2 ** math.ceil(math.log2(num))
    clean = levels / 255
    noise = random.poisson(n * clean) / n - clean
    return torch.from_numpy((scale * noise).astype(np.float32))[None]


def jpeg(image: Tensor, quality: int) -> Tensor:
    """The image as it comes back from a JPEG file (4:2:0) of a quality from 1 to 95."""
    file = BytesIO()
    pixels = (image[0].clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).movedim(-1, 0)[None].float() / 255
