"""Mel spectrograms in closed form, and the way back."""

import math

import pytest
import torch

from domains.music import mel, torchaudio
from domains.music.mel import bands, griffin_lim, log_mel, magnitudes, spectrum, unbanded

RATE, SIZE = 16_000, 1_024


def sine(hertz: float, num: int = 8_192) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(num) / RATE)[None, None]


@pytest.fixture
def own(monkeypatch):
    """Our own bands, whatever is installed."""
    monkeypatch.setattr(torchaudio, "functional", lambda: None)
    bands.cache_clear()
    yield
    bands.cache_clear()


def test_a_full_scale_sine_has_magnitude_one():
    found = magnitudes(sine(440 * RATE / SIZE / 440 * 28), SIZE, 256)  # at the centre of frequency 28
    assert found.shape == (1, 1, 513, 33)
    torch.testing.assert_close(found[0, 0, 28, 2:-2], torch.ones(29), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[0, 0, 28, 0], torch.tensor(0.5), atol=0.01, rtol=0)  # half is silence


def test_a_tone_peaks_in_the_band_that_contains_it(own):
    """On the HTK scale, whose formula is written out here."""
    loudest = int(log_mel(sine(440), RATE)[0, 0, :, 16].argmax())
    step = 2595 * math.log10(1 + 8000 / 700) / 65
    place = 2595 * math.log10(1 + 440 / 700) / step  # band k is centred at k + 1
    assert abs(place - (loudest + 1)) < 0.5


def test_bands_are_triangles(own):
    weights = bands(RATE, SIZE, 40, 100.0, 7_000.0)
    assert weights.shape == (40, 513) and 0.8 < weights.max() <= 1 and weights.min() == 0
    inside = slice(int(1_000 / RATE * SIZE), int(6_000 / RATE * SIZE))
    torch.testing.assert_close(weights.sum(0)[inside], torch.ones(inside.stop - inside.start), atol=1e-5, rtol=0)
    areas = bands(RATE, SIZE, 40, 100.0, 7_000.0, True).sum(1) * RATE / SIZE
    torch.testing.assert_close(areas[-20:], torch.ones(20), atol=0.01, rtol=0)


def test_bands_made_while_inferring_serve_gradients(own):
    with torch.inference_mode():
        log_mel(sine(440), RATE)
    x = sine(440).requires_grad_()
    log_mel(x, RATE).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0


def test_magnitudes_of_bands(own):
    """The bands of what is found are what was asked for, in quiet bands too."""
    weights = bands(RATE, SIZE)
    wanted = weights @ (
        torch.rand(513, 5, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, 513)[:, None]
    )
    found = unbanded(wanted, weights, steps=60)
    assert found.min() >= 0 and ((weights @ found) / wanted).log().abs().mean() < 0.02


def test_the_way_back_from_magnitudes():
    x = sine(440) * 0.5
    made = griffin_lim(magnitudes(x, SIZE, 256), 256)
    assert made.shape == x.shape and torch.equal(made, griffin_lim(magnitudes(x, SIZE, 256), 256))
    assert (magnitudes(made, SIZE, 256) - magnitudes(x, SIZE, 256)).abs().mean() < 2e-3


def test_the_gradient_is_that_of_magnitudes_at_the_phases_found(monkeypatch):
    """A sound is linear in the magnitudes of given phases; no gradient goes through the search."""
    seen = []
    monkeypatch.setattr(mel, "spectrum", lambda *_: seen.append(torch.is_grad_enabled()) or spectrum(*_))
    m = magnitudes(sine(440) * 0.5, SIZE, 256).detach().requires_grad_()
    made = griffin_lim(m, 256, steps=4)
    weights = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad((made * weights).sum(), m)
    assert float((grad * m.detach()).sum()) == pytest.approx(float((made.detach() * weights).sum()), rel=1e-4)
    assert seen[-4:] == [False] * 4
    other = torch.rand(m.shape, generator=torch.Generator().manual_seed(2))
    first = griffin_lim(m, 256, steps=0)
    (grad,) = torch.autograd.grad((first * weights).sum(), m)
    assert float((grad * other).sum()) == pytest.approx(float((griffin_lim(other, 256, 0) * weights).sum()), rel=1e-4)


def test_a_beginning_is_held_and_gone_on_from():
    x = sine(443) * 0.5
    made = griffin_lim(magnitudes(x, SIZE, 256), 256, first=x[..., :2_048])
    assert torch.equal(made[..., :2_048], x[..., :2_048])
    assert (made - x)[..., 2_048:3_072].square().mean().sqrt() < 0.1 < x.square().mean().sqrt()  # in phase
