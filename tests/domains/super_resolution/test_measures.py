"""Measures of pixels against their formulas, written out, and against other programs."""

# ruff: noqa: E501 (a fault is a row of a table)

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import Mutation, prove
from PIL import Image
from scipy.ndimage import convolve, correlate1d
from torchmetrics.functional.image import structural_similarity_index_measure

from domains.super_resolution import measures
from domains.super_resolution.measures import fine_energy, gmsd, luma, psnr, psnr_y, ssim_y
from domains.super_resolution.resize import enlarged, shrunk

KODAK = Path(os.environ.get("DISTILLKIT_TEST_DATA", "")) / "sr" / "kodak"


def images(num: int = 2, height: int = 24, width: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 256 levels, and others not far from them that no file has seen."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (num, 3, height, width), generator=generator) / 127.5 - 1
    return x, x + 0.1 * torch.randn(x.shape, generator=generator)


def check_luma() -> None:
    x, y = images()
    levels = y.clamp(-1, 1).double().add(1).mul(127.5).round().numpy()
    expected = (65.481 * levels[:, 0] + 128.553 * levels[:, 1] + 24.966 * levels[:, 2]) / 255 + 16
    np.testing.assert_allclose(luma(y), expected, atol=1e-9)
    np.testing.assert_allclose(luma(y, 4), expected[:, 4:-4, 4:-4], atol=1e-9)
    white = torch.ones(1, 3, 2, 2)
    assert luma(white)[0, 0, 0] == pytest.approx(235) and luma(-white)[0, 0, 0] == pytest.approx(16)


def test_luma_is_that_of_bt601():
    check_luma()


def check_psnr() -> None:
    """A thousandth of the square of the peak is 30 dB, in every image for itself."""
    y = torch.zeros(3, 4, 5, dtype=torch.float64)
    y[0], y[1, 0, 0] = 255 / math.sqrt(1000), 255
    expected = torch.tensor([30, 10 * math.log10(20), 100], dtype=torch.float64)
    torch.testing.assert_close(psnr_y(y, torch.zeros_like(y)), expected)


def test_psnr():
    check_psnr()
    assert psnr(torch.tensor([4e-3, 0.0]), 2).tolist() == pytest.approx([30, 100])


def written_out_ssim(a: np.ndarray, b: np.ndarray) -> float:
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    line /= line.sum()

    def mean(x):
        return correlate1d(correlate1d(x, line, 0, mode="mirror"), line, 1, mode="mirror")

    m, n = mean(a), mean(b)
    c1, c2 = 2.55**2, 7.65**2
    top = (2 * m * n + c1) * (2 * (mean(a * b) - m * n) + c2)
    return (top / ((m**2 + n**2 + c1) * (mean(a * a) - m**2 + mean(b * b) - n**2 + c2))).mean()


def check_ssim() -> None:
    a, b = (luma(x) for x in images())
    expected = [written_out_ssim(*pair) for pair in zip(a.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(ssim_y(a, b), expected, rtol=1e-6)
    np.testing.assert_allclose(ssim_y(a[:1], a[:1]), [1.0], rtol=1e-12)


def test_ssim():
    check_ssim()
    a, b = (luma(x) for x in images())
    theirs = structural_similarity_index_measure(a[:, None], b[:, None], data_range=255.0, reduction="none")
    torch.testing.assert_close(ssim_y(a, b), theirs.flatten(), rtol=1e-6, atol=0)


def written_out_gmsd(a: np.ndarray, b: np.ndarray) -> float:
    down = np.array([[1, 1, 1], [0, 0, 0], [-1, -1, -1]]) / 3

    def size(x):
        x = (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4
        return np.hypot(convolve(x, down), convolve(x, down.T))[1:-1, 1:-1]

    m, n = size(a), size(b)
    return ((2 * m * n + 170) / (m**2 + n**2 + 170)).std()


def check_gmsd() -> None:
    a, b = (luma(x) for x in images())
    expected = [written_out_gmsd(*pair) for pair in zip(a.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(gmsd(a, b), expected, rtol=1e-9)
    assert gmsd(a, a).tolist() == [0, 0]


def test_gmsd():
    check_gmsd()


def check_fine_energy() -> None:
    """Waves of 1/3 cycle a pixel are fine and those of 1/6 are not, along and across."""
    place = torch.arange(48.0, dtype=torch.float64)
    fine, coarse = torch.cos(2 * torch.pi * place / 3), torch.cos(2 * torch.pi * place / 6)
    flat = torch.ones(48, dtype=torch.float64)
    oblique = torch.outer(
        torch.cos(2 * torch.pi * place / 5), torch.cos(2 * torch.pi * place / 5)
    )  # 0.28 along its way
    y = torch.stack(
        [torch.outer(fine, flat), torch.outer(flat, fine), oblique, torch.outer(coarse, flat), 100 + 0 * oblique]
    )
    found = fine_energy(y)
    fade = torch.hann_window(48, False, dtype=torch.float64).square().sum()
    whole = 0.5 * fade**2  # Parseval: the squares of the faded wave
    torch.testing.assert_close(found[:2], whole.expand(2), rtol=1e-2, atol=0)
    torch.testing.assert_close(found[2], whole / 2, rtol=2e-2, atol=0)
    assert found[3] < 1e-4 * whole and found[4] < 1e-12
    torch.testing.assert_close(fine_energy(3 * y[:1] + 50), 9 * found[:1], rtol=1e-6, atol=0)


def test_fine_energy():
    check_fine_energy()


FAULTS = [
    ("weights of red and blue swapped", luma, "(65.481, 128.553, 24.966)", "(24.966, 128.553, 65.481)", check_luma),
    ("the full range", luma, "16 + torch", "0 + torch", check_luma),
    ("not rounded to 8 bits", luma, "eight_bits(images[..., border : height - border, border : width - border])", "images[..., border : height - border, border : width - border]", check_luma),
    ("the border kept", luma, "border : height - border", "0 : height", check_luma),
    ("the root of the error", psnr, "10 * torch", "20 * torch", check_psnr),
    ("no most", psnr, ".clamp_max(BEST_PSNR)", "", check_psnr),
    ("the peak of another range", psnr_y, "255", "219", check_psnr),
    ("one error for all images", psnr_y, "mean((1, 2))", "mean().expand(3)", check_psnr),
    ("another window", ssim_y, "/ 1.5", "/ 2.0", check_ssim),
    ("another range", ssim_y, "(0.03 * 255)", "(0.03 * 219)", check_ssim),
    ("zeros around", ssim_y, "mode=\"reflect\"", "mode=\"constant\"", check_ssim),
    ("the means kept", ssim_y, "mean(ours * theirs) - a * b", "mean(ours * theirs)", check_ssim),
    ("not halved", gmsd, "F.avg_pool2d(x[:, None], 2)", "x[:, None]", check_gmsd),
    ("another constant", gmsd, "a * b + CONTRAST", "a * b + 2 * CONTRAST", check_gmsd),
    ("the mean instead of the deviation", gmsd, ".std(1, unbiased=False)", ".mean(1)", check_gmsd),
    ("one direction", measures._gradient, "[down, down.T]", "[down, down]", check_gmsd),
    ("a quarter of the largest frequency", fine_energy, "> 0.25", "> 0.125", check_fine_energy),
    ("along or across", fine_energy, "(across[:, None].square() + along.square()).sqrt()", "torch.maximum(across[:, None].abs(), along.abs())", check_fine_energy),
    ("not faded out", fine_energy, "* fade)", ")", check_fine_energy),
    ("the mean kept", fine_energy, "y - y.mean((1, 2), keepdim=True)", "y", check_fine_energy),
]  # fmt: skip


@pytest.mark.parametrize("fault", [Mutation(*fault) for fault in FAULTS], ids=str)
def test_faults_are_noticed(fault):
    prove(fault)


def test_each_image_is_measured_alone():
    a, b = (luma(x) for x in images(3))
    for measure in (psnr_y, ssim_y, gmsd, lambda a, b: fine_energy(b)):
        torch.testing.assert_close(measure(a[1:2], b[1:2]), measure(a, b)[1:2], rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not KODAK.is_dir(), reason="DISTILLKIT_TEST_DATA names no folder with it")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "decibels", "similarity"), [(2, 31.04, 0.8738), (4, 27.30, 0.7201), (8, 25.20, 0.6240)]
)
def test_bicubic_interpolation_of_kodaks_photographs(scale, decibels, similarity):
    """Numbers that were measured with other programs."""
    found = []
    for path in sorted(KODAK.glob("*.png")):
        x = torch.from_numpy(np.array(Image.open(path))).movedim(-1, 0)[None].float() / 127.5 - 1
        pair = [luma(image, scale) for image in (enlarged(shrunk(x, scale), x.shape[-2:]), x)]
        found.append((float(psnr_y(*pair)), float(ssim_y(*pair))))
    assert len(found) == 24
    assert (np.abs(np.mean(found, axis=0) - [decibels, similarity]) < [0.05, 0.002]).all()
