"""Degradations: kernels by their moments, noise by its variance, choices by their frequency."""

# ruff: noqa: E501 (a fault is a row of a table)

import math
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
from mutations import Mutation, prove
from numpy.random import PCG64, Generator
from PIL import Image
from torch.nn import functional as F

from domains.super_resolution import degradation as d
from domains.super_resolution.resize import eight_bits, shrunk

DRAWN = ("realesrgan", "realesrgan_light")


@pytest.fixture(scope="module")
def squares():
    """200 squares of 64 pixels of the two photographs that scikit-learn ships, in [-1, 1]."""
    random, folder = rng(), Path(sklearn.__file__).parent / "datasets" / "images"
    images = [np.asarray(Image.open(folder / name).convert("RGB")) for name in ("china.jpg", "flower.jpg")]
    found = []
    for i in range(200):
        image = images[i % 2]
        top, left = (random.integers(side - 64) for side in image.shape[:2])
        found.append(torch.from_numpy(image[top : top + 64, left : left + 64].copy()).movedim(-1, 0))
    return torch.stack(found).float() / 127.5 - 1


def rng(seed: int = 0) -> Generator:
    return Generator(PCG64(seed))


def luma(x):
    """Y of BT.601, from 16 to 235."""
    red, green, blue = ((x + 1) / 2).unbind(1)
    return 65.481 * red + 128.553 * green + 24.966 * blue + 16


def psnr(x, y):
    return 10 * torch.log10(255**2 / (luma(x) - luma(y)).square().mean((1, 2)))


def agrees(counts: Counter, expected: dict, limit: float) -> None:
    """Pearson's chi-square of the counts is below `limit`, its quantile at 99.9 percent."""
    num = sum(counts.values())
    assert set(counts) == set(expected) and sum(expected.values()) == pytest.approx(1)
    statistic = sum((counts[key] - num * p) ** 2 / (num * p) for key, p in expected.items())
    assert statistic < limit, (statistic, counts)


# Whole degradations


# Against the bicubic observation, in dB, on the 200 squares; measured once, each to +- 1 dB.
@pytest.mark.parametrize(("name", "expected"), [("realesrgan", 28.4), ("realesrgan_light", 34.2)])
def test_observations_are_images_clearly_below_the_clean_ones(name, expected, squares):
    low = d.DEGRADATIONS[name](squares, 4, range(200))
    assert low.shape == (200, 3, 16, 16) and low.isfinite().all() and low.dtype == torch.float32
    assert low.min() >= -1 and low.max() <= 1 and torch.equal(low, eight_bits(low))
    assert psnr(low, shrunk(squares, 4)).mean().item() == pytest.approx(expected, abs=1)


def test_bicubic_is_the_one_of_the_domain(squares):
    assert torch.equal(d.DEGRADATIONS["bicubic"](squares[:3], 2, [0, 1, 2]), shrunk(squares[:3], 2))


@pytest.mark.parametrize("name", DRAWN)
def test_a_row_follows_from_its_image_and_seed_alone(name, squares):
    degrade = d.DEGRADATIONS[name]
    made = degrade(squares[:4], 4, [5, 6, 7, 2**40])
    assert torch.equal(made, degrade(squares[:4], 4, torch.tensor([5, 6, 7, 2**40])))
    assert torch.equal(made[2:], degrade(squares[2:4], 4, [7, 2**40]))
    other = degrade(squares[:4], 4, [5, 8, 7, 2**40])
    assert [torch.equal(a, b) for a, b in zip(made, other, strict=True)] == [True, False, True, True]
    with pytest.raises(ValueError):
        degrade(squares[:4], 4, [1, 2, 3])


@pytest.mark.parametrize("name", d.DEGRADATIONS)
@pytest.mark.parametrize(("scale", "height", "width"), [(2, 32, 48), (3, 33, 30), (4, 32, 32), (8, 32, 64), (8, 8, 8)])
def test_every_scale_and_also_tiny_squares(name, scale, height, width, squares):
    images = squares[:, :, :height, :width]
    low = d.DEGRADATIONS[name](images[:24], scale, range(24))
    assert low.shape == (24, 3, height // scale, width // scale) and low.isfinite().all()
    with pytest.raises(ValueError, match=f"31 x {height} pixels cannot be made {scale} times smaller"):
        d.DEGRADATIONS[name](torch.zeros(1, 3, height, 31), scale, [0])


# Kernels


def moments(kernel):
    """Mean [2] and covariance [2, 2] of a kernel, x before y."""
    size = len(kernel)
    y, x = torch.meshgrid(*2 * [torch.arange(size, dtype=torch.float64) - size // 2], indexing="ij")
    r, w = torch.stack([x, y]).flatten(1), kernel.double().flatten()
    return r @ w, (r * w) @ r.T


def gaussian_covariance(sigma, other, angle):
    """`S = R diag(sigma^2, other^2) R^T`, the first axis turned by the angle from x to y."""
    mean, covariance = moments(d.kernel("gaussian", 31, sigma, other, angle))
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    expected = turn @ torch.diag(torch.tensor([sigma, other or sigma]).double().square()) @ turn.T
    torch.testing.assert_close(covariance, expected, atol=2e-3, rtol=2e-3)
    assert mean.abs().max() < 1e-6


@pytest.mark.parametrize(
    "shape", [(1.0, None, 0.0), (2.5, None, 0.7), (2.5, 1.0, 0.0), (3.0, 1.2, 0.6), (1.2, 3.0, -2.0)]
)
def test_gaussian_kernels_have_their_covariance(shape):
    gaussian_covariance(*shape)


@pytest.mark.parametrize(("beta", "sigma", "size"), [(0.5, 1.0, 101), (1.0, 2.0, 41), (2.0, 5.0, 41), (4.0, 6.0, 41)])
def test_generalised_kernels_have_their_variance(beta, sigma, size):
    """On each axis it is `sigma^2 2^(1/beta) Gamma(2/beta) / (2 Gamma(1/beta))`."""
    _, covariance = moments(d.kernel("generalised", size, sigma, beta=beta))
    expected = sigma**2 * 2 ** (1 / beta) * math.gamma(2 / beta) / (2 * math.gamma(1 / beta))
    torch.testing.assert_close(covariance, expected * torch.eye(2).double(), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("beta", [1.0, 1.4, 2.0])
def test_plateaus_fall_to_one_half_at_sigma(beta):
    """And to `1 / (1 + 4^beta)` at twice that, on each axis by its own sigma."""
    kernel = d.kernel("plateau", 21, 4.0, 2.0, 0.0, beta)
    row, column = kernel[10] / kernel[10, 10], kernel[:, 10] / kernel[10, 10]
    for values, sigma in ((row, 4), (column, 2)):
        assert values[10 + sigma].item() == pytest.approx(1 / 2)
        assert values[10 - 2 * sigma].item() == pytest.approx(1 / (1 + 4**beta))


def response(kernel, x: float, y: float = 0.0) -> float:
    """The filter's factor for the wave of these frequencies, in radians a pixel."""
    places = torch.arange(len(kernel)) - len(kernel) // 2
    return float((kernel * (x * places[None] + y * places[:, None]).cos()).sum())


def low_pass_response():
    """Waves below the cutoff pass in all directions, those above are stopped."""
    for cutoff in (math.pi / 3, math.pi / 2):
        kernel = d.low_pass(cutoff, 21)
        for angle in (0.0, 0.3, math.pi / 4):
            at = [(share * cutoff * math.cos(angle), share * cutoff * math.sin(angle)) for share in (0.5, 1, 1.6)]
            passed, half, stopped = (response(kernel, *each) for each in at)
            assert abs(passed - 1) < 0.12 and abs(half - 0.5) < 0.1 and abs(stopped) < 0.1
    assert response(d.low_pass(math.pi, 7), 2.0) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("settings", [d.FIRST, d.SECOND], ids=["first", "second"])
def test_all_kernels_are_symmetric_and_sum_to_one(settings):
    random = rng()
    for kernel in (d.blur_kernel(random, settings) for _ in range(200)):
        assert kernel.sum().item() == pytest.approx(1, abs=1e-5) and kernel.isfinite().all()
        torch.testing.assert_close(kernel, kernel.flip(0, 1))
        assert len(kernel) % 2 and settings.sizes[0] <= len(kernel) <= settings.sizes[1]


# Operations


def borders_are_reflected():
    """As `pad` does it where it can, and further where it cannot."""
    for side, size in ((5, 9), (32, 21), (9, 3)):
        image, kernel = torch.rand(1, 3, side, side + 2), torch.rand(size, size)
        wide = F.pad(image, 4 * [size // 2], mode="reflect")
        expected = F.conv2d(wide.movedim(0, 1), kernel[None, None]).movedim(0, 1)
        torch.testing.assert_close(d.blurred(image, kernel), expected)
    assert d._reflected(3, 5).tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    assert d._reflected(1, 2).tolist() == 5 * [0]


def gaussian_noise_has_its_deviation():
    for grey in (False, True):
        noise = d.gaussian_noise(rng(), torch.zeros(1, 3, 150, 150), 20.0, grey).expand(1, 3, -1, -1)
        assert noise.std().item() == pytest.approx(20 / 255, rel=0.02) and abs(noise.mean().item()) < 2e-3
        assert torch.equal(noise[:, 0], noise[:, 1]) == grey


def poisson_noise_has_its_variance():
    """`scale^2 v / n` where the image is v; here n = 4 is the power of two above 3 values."""
    image = torch.tensor([51, 102, 204]).float()[None, None, :, None].expand(1, 3, 3, 30_000) / 255
    noise = d.poisson_noise(rng(), image, 2.0, False)
    assert noise.shape == image.shape and not torch.equal(noise[:, 0], noise[:, 1])
    for row, value in enumerate((0.2, 0.4, 0.8)):
        assert noise[:, :, row].var().item() == pytest.approx(4 * value / 4, rel=0.03)
        assert abs(noise[:, :, row].mean().item()) < 0.02


def grey_poisson_noise_is_that_of_the_luma():
    image = torch.zeros(1, 3, 1, 60_000)
    image[:, 1] = 1  # a luma of 0.587, and one value
    noise = d.poisson_noise(rng(), image, 1.0, True).expand(1, 3, -1, -1)
    assert torch.equal(noise[:, 0], noise[:, 2]) and noise.var().item() == pytest.approx(0.587, rel=0.03)


def test_noise_without_light_and_of_one_value():
    assert not d.poisson_noise(rng(), torch.zeros(1, 3, 4, 4), 3.0, False).any()


def test_jpeg_keeps_flat_images_and_loses_more_at_a_lower_quality(squares):
    flat = torch.full((1, 3, 20, 12), 0.4)
    torch.testing.assert_close(d.jpeg(flat, 30), flat, atol=2 / 255, rtol=0)
    image = (squares[:1] + 1) / 2
    errors = [(d.jpeg(image, quality) - image).square().mean().item() for quality in (95, 60, 30)]
    assert errors == sorted(errors) and errors[2] > 3 * errors[0]
    assert d.jpeg(image * 3 - 1, 95).shape == image.shape  # cut to what a file holds


# Choices


def kinds():
    random = rng(1)
    agrees(Counter(d.kind(random) for _ in range(20_000)), d.KINDS, 20.5)
    assert list(d.KINDS.values()) == [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]


def factors(settings, shares):
    random = rng(2)
    drawn = np.array([d.factor(random, settings) for _ in range(5000)])
    agrees(Counter(np.sign(drawn - 1).tolist()), dict(zip((1.0, -1.0, 0.0), shares, strict=True)), 13.8)
    low, high = settings.factors
    for values, ends in ((drawn[drawn < 1], (low, 1)), (drawn[drawn > 1], (1, high))):
        assert values.min() >= ends[0] and values.max() <= ends[1]
        assert values.mean() == pytest.approx(sum(ends) / 2, abs=0.02)


def sizes_and_qualities():
    random = rng(3)
    agrees(Counter(d.odd(random, (7, 21)) for _ in range(8000)), dict.fromkeys(range(7, 23, 2), 1 / 8), 24.3)
    agrees(Counter(d.odd(random, (7, 15)) for _ in range(5000)), dict.fromkeys(range(7, 17, 2), 1 / 5), 18.5)
    agrees(Counter(d.quality(random) for _ in range(20_000)), dict.fromkeys(range(30, 96), 1 / 66), 105)


def exponents():
    random = rng(4)
    drawn = np.array([d.exponent(random, (0.5, 4.0)) for _ in range(4000)])
    assert (drawn < 1).mean() == pytest.approx(0.5, abs=0.03) and drawn.min() >= 0.5 and 3.9 < drawn.max() <= 4
    assert drawn[drawn > 1].mean() == pytest.approx(2.5, abs=0.06)


def kernels_drawn(settings):
    """A tenth are filters, whose cutoff depends on the size; a round kernel has one sigma."""
    random, counts, cutoffs = rng(5), Counter(), defaultdict(list)

    def low_pass(cutoff, size):
        counts["filter"] += 1
        cutoffs[size].append(cutoff)

    def kernel(form, size, sigma, other, angle, beta):
        counts[form, other == sigma] += 1
        assert all(settings.sigma[0] <= each <= settings.sigma[1] for each in (sigma, other)) and abs(angle) <= math.pi
        low, high = {"gaussian": (1, 1), "generalised": (0.5, 4), "plateau": (1, 2)}[form]
        assert low <= beta <= high

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(d, "low_pass", low_pass)
        patch.setattr(d, "kernel", kernel)
        for _ in range(10_000):
            d.blur_kernel(random, settings)
    agrees(counts, {"filter": 0.1, **{kind: 0.9 * share for kind, share in d.KINDS.items()}}, 22.5)
    for size, drawn in cutoffs.items():
        lowest = math.pi / (3 if size < 13 else 5)
        assert lowest <= min(drawn) < lowest + 0.2 and math.pi - 0.2 < max(drawn) <= math.pi


def noises():
    """Gaussian and Poisson equally often, four in ten grey, by the settings; within [0, 1]."""
    random, counts = rng(6), Counter()

    def stand_in(name, between):
        def make(random, image, amount, grey):
            assert between[0] <= amount <= between[1]
            counts[name, grey] += 1
            return torch.tensor(3.0)

        return make

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(d, "gaussian_noise", stand_in("gaussian", d.SECOND.gaussian))
        patch.setattr(d, "poisson_noise", stand_in("poisson", d.SECOND.poisson))
        made = [d.noisy(random, torch.zeros(1), d.SECOND).item() for _ in range(5000)]
    assert set(made) == {1.0}
    agrees(
        counts,
        {(name, grey): 0.5 * (0.4 if grey else 0.6) for name in ("gaussian", "poisson") for grey in (True, False)},
        16.3,
    )


def order():
    """The order of the steps, and how often each of the twelve ways is taken."""
    random, counts, way = rng(7), Counter(), []

    def step(name):
        return lambda *arguments: way.append(name) or next(each for each in arguments if isinstance(each, torch.Tensor))

    first = ("blur", "resize", "noise", "jpeg")
    again = {(): 0.5, ("resize", "noise"): 0.1, ("blur", "resize", "noise"): 0.4}
    last = {
        ("resize", "filter", "jpeg"): 0.4,
        ("resize", "jpeg"): 0.1,
        ("jpeg", "resize", "filter"): 0.4,
        ("jpeg", "resize"): 0.1,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, said in (("resized", "resize"), ("noisy", "noise"), ("jpeg", "jpeg")):
            patch.setattr(d, name, step(said))
        patch.setattr(d, "blur_kernel", lambda random, settings: "blur")
        patch.setattr(d, "low_pass", lambda cutoff, size: "filter")
        patch.setattr(d, "blurred", lambda image, kernel: way.append(kernel) or image)
        for _ in range(2000):
            way.clear()
            d._realesrgan(random, torch.zeros(1, 3, 8, 8), (2, 2))
            counts[tuple(way)] += 1
    agrees(counts, {first + a + b: p * q for a, p in again.items() for b, q in last.items()}, 31.3)


def sizes_of_the_rounds():
    """The first size is relative to the photograph, the second to the observation."""
    random, seen = rng(8), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(d, "AGAIN", 1.0)
        patch.setattr(d, "factor", lambda random, settings: 0.5)
        patch.setattr(d, "resized", lambda random, image, size: seen.append(size) or torch.zeros(1, 3, *size))
        d._realesrgan(random, torch.zeros(1, 3, 40, 64), (10, 16))
    assert seen == [(20, 32), (5, 8), (10, 16)]


def modes():
    random, counts, image = rng(9), Counter(), torch.rand(1, 3, 6, 6)
    ways = {mode: F.interpolate(image, size=(4, 4), mode=mode) for mode in ("area", "bilinear", "bicubic")}
    for _ in range(900):
        made = d.resized(random, image, (4, 4))
        counts[next(mode for mode, expected in ways.items() if torch.equal(made, expected))] += 1
    agrees(counts, dict.fromkeys(ways, 1 / 3), 13.8)
    assert (
        d.scaled((10, 7), 0.15) == (1, 1) and d.scaled((10, 7), 0.02) == (1, 1) and d.scaled((10, 7), 1.5) == (15, 10)
    )


CHECKS = {
    "the filter's response": low_pass_response,
    "borders": borders_are_reflected,
    "gaussian noise": gaussian_noise_has_its_deviation,
    "poisson noise": poisson_noise_has_its_variance,
    "grey poisson noise": grey_poisson_noise_is_that_of_the_luma,
    "kinds": kinds,
    "factors of the first round": partial(factors, d.FIRST, (0.2, 0.7, 0.1)),
    "factors of the second round": partial(factors, d.SECOND, (0.3, 0.4, 0.3)),
    "sizes and qualities": sizes_and_qualities,
    "exponents": exponents,
    "kernels of the first round": partial(kernels_drawn, d.FIRST),
    "kernels of the second round": partial(kernels_drawn, d.SECOND),
    "noises": noises,
    "order": order,
    "sizes of the rounds": sizes_of_the_rounds,
    "modes": modes,
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_parts(check):
    check()


turned = partial(gaussian_covariance, 3.0, 1.2, 0.6)
FAULTS = [
    ("turned the other way", d.kernel, "math.sin(angle) * y, math.cos(angle) * y - ", "-math.sin(angle) * y, math.cos(angle) * y + ", turned),
    ("always round", d.kernel, "(other or sigma)", "sigma", turned),
    ("the variance for its root", d.kernel, "(along / sigma) ** 2", "along**2 / sigma", turned),
    ("the centre of the filter", d.low_pass, "cutoff**2 / (4", "cutoff**2 / (2", low_pass_response),
    ("a cutoff of one", d.low_pass, "j1(cutoff * r)", "j1(r)", low_pass_response),
    ("half the period", d._reflected, "2 * last", "last", borders_are_reflected),
    ("levels of 256", d.gaussian_noise, "(std / 255)", "(std / 127.5)", gaussian_noise_has_its_deviation),
    ("grey for colour", d.gaussian_noise, "1 if grey", "1 if not grey", gaussian_noise_has_its_deviation),
    ("the number of values itself", d.poisson_noise, "2 ** math.ceil(math.log2(num))", "num", poisson_noise_has_its_variance),
    ("no scale", d.poisson_noise, "scale * noise", "noise", poisson_noise_has_its_variance),
    ("not about the image", d.poisson_noise, "/ n - clean", "/ n", poisson_noise_has_its_variance),
    ("grey from one channel", d.poisson_noise, "(LUMA * values).sum(0, keepdims=True)", "values[:1]", grey_poisson_noise_is_that_of_the_luma),
    ("up for down", d.factor, "(1.0, settings.factors[1]), (settings.factors[0], 1.0)", "(settings.factors[0], 1.0), (1.0, settings.factors[1])", CHECKS["factors of the first round"]),
    ("no best quality", d.quality, "QUALITIES[1] + 1", "QUALITIES[1]", sizes_and_qualities),
    ("no largest kernel", d.odd, "// 2 + 1)", "// 2)", sizes_and_qualities),
    ("beta uniform over its range", d.exponent, "(1.0, betas[1])", "betas", exponents),
    ("a filter as often as a blur", d.blur_kernel, "< SINC", "< 0.5", CHECKS["kernels of the first round"]),
    ("one range of cutoffs", d.blur_kernel, "math.pi / 3 if size < 13 else math.pi / 5", "math.pi / 3", CHECKS["kernels of the first round"]),
    ("cutoffs by another size", d.blur_kernel, "size < 13", "size < 15", CHECKS["kernels of the first round"]),
    ("the first round's sigma", d.blur_kernel, "uniform(random, settings.sigma), uniform", "uniform(random, FIRST.sigma), uniform", CHECKS["kernels of the second round"]),
    ("Gaussian more often", d.noisy, "random.random() < 0.5", "random.random() < 0.6", noises),
    ("grey more often", d.noisy, "< GREY", "< 0.5", noises),
    ("not cut to the range", d.noisy, ".clamp(0, 1)", "", noises),
    ("a second round always", d._realesrgan, "< AGAIN", "< 1", order),
    ("its blur always", d._realesrgan, "< BLUR_AGAIN", "< 1", order),
    ("JPEG last always", d._realesrgan, "random.random() < 0.5", "random.random() < 1", order),
    ("the last filter too rarely", d._last, ">= LAST_SINC", "< LAST_SINC", order),
    ("the first JPEG left out", d._realesrgan, "jpeg(noisy(random, image, FIRST), quality(random))", "noisy(random, image, FIRST)", order),
    ("the second size by the photograph's", d._realesrgan, "scaled(size, factor", "scaled(image.shape[-2:], factor", sizes_of_the_rounds),
    ("no size of the observation", d._last, "resized(random, image, size)", "resized(random, image, image.shape[-2:])", sizes_of_the_rounds),
    ("one mode left out", d.resized, "len(MODES)", "len(MODES) - 1", modes),
]  # fmt: skip


@pytest.mark.parametrize("fault", [Mutation(says, *rest) for says, *rest in FAULTS], ids=str)
def test_each_fault_is_noticed(fault):
    prove(fault)
