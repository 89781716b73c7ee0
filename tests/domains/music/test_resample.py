"""Sounds at another sample rate: sines stay sines, the length rule, memory."""

import math

import pytest
import torch

from domains.music import torchaudio
from domains.music.resample import GROUP, ROLLOFF, ZEROS, filters, polyphase, resample


@pytest.fixture(autouse=True)
def without_torchaudio(monkeypatch):
    """What is tested is our own way, whatever is installed."""
    monkeypatch.setattr(torchaudio, "functional", lambda: None)


def sine(hertz: float, rate: int, num: int) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(num, dtype=torch.float64) / rate + 0.3)


@pytest.mark.parametrize(
    ("old", "new", "frequencies"),
    [
        (44_100, 16_000, (100, 440, 1_000, 3_000, 5_000, 6_000)),
        (8_000, 44_100, (100, 440, 1_000, 2_900)),
        (11_025, 4_001, (100, 250, 1_500)),  # coprime
        (48_000, 44_100, (100, 10_000)),
    ],
)
def test_sines_stay_sines(old, new, frequencies):
    """Away from both ends; the worst measured are 4.0e-4, at 1.5 and 6 kHz, and 2.4e-5 below."""
    sounds = torch.stack([sine(hertz, old, old // 2) for hertz in frequencies]).float()
    made = resample(sounds, old, new)
    edge, bounds = new // 20, [6e-4 if hertz >= 0.3 * min(old, new) else 3e-5 for hertz in frequencies]
    for row, hertz, bound in zip(made, frequencies, bounds, strict=True):
        error = (row - sine(hertz, new, len(row)))[edge:-edge].abs().max()
        assert error < bound, (hertz, float(error))


def test_what_the_new_rate_cannot_hold_is_silent():
    """10 kHz at 16 kHz would be heard as 6 kHz."""
    made = resample(sine(10_000, 44_100, 22_050), 44_100, 16_000)
    assert made[800:-800].abs().max() < 1e-3


def test_every_sample_is_the_windowed_sinc(old=7, new=5):
    """The definition, sample by sample, in float64."""
    x = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made, cutoff = resample(x, 7 * 11, 5 * 11), ROLLOFF * new / old
    for n in range(made.shape[-1]):
        away = (torch.arange(40, dtype=torch.float64) - n * old / new) * cutoff
        window = torch.where(away.abs() < ZEROS, (math.pi * away / (2 * ZEROS)).cos() ** 2, 0.0)
        torch.testing.assert_close(made[..., n], (x * cutoff * away.sinc() * window).sum(-1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("old", "new"), [(44_100, 16_000), (8_000, 44_100), (3, 2), (2, 3), (999, 1_000)])
@pytest.mark.parametrize("num", [1, 2, 500, 1_001])
def test_lengths(old, new, num):
    """The smallest number of samples that last as long."""
    assert resample(torch.ones(1, num), old, new).shape == (1, math.ceil(num * new / old))


def test_equal_rates_and_nothing():
    x = torch.randn(2, 1, 50)
    assert resample(x, 8_000, 8_000) is x and resample(x[..., :0], 8_000, 16_000).shape == (2, 1, 0)
    assert resample(x[:0], 8_000, 16_000).shape == (0, 1, 100)


def test_groups_of_phases_join_to_one_sound():
    """More phases than one group; a part of a sound is resampled as in the whole."""
    old, new = 2 * GROUP + 3, 2 * GROUP + 1
    x = torch.randn(3 * old, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, later = polyphase(x, old, new), polyphase(x[old:], old, new)
    torch.testing.assert_close(later[60:], whole[new + 60 :], atol=1e-12, rtol=0)


def test_gradients_and_types():
    x = torch.randn(1, 400, requires_grad=True)
    resample(x, 3, 2).square().sum().backward()
    assert x.grad.abs().min() > 0 and resample(x.half(), 3, 2).dtype == torch.half
    with pytest.raises(ValueError, match="floating-point numbers .* got torch.int16"):
        resample(torch.ones(3, dtype=torch.int16), 2, 1)
    with pytest.raises(ValueError, match="old must be at least 1"):
        resample(x, 0, 1)


def test_coprime_rates_take_little_memory(monkeypatch):
    """One filter bank as long as a period would be 16,001 x 44,194 numbers, 2.8 GB."""
    sizes, before = [], torch.nn.functional.conv1d

    def counted(x, filters, **options):
        sizes.append(filters.numel())
        return before(x, filters, **options)

    monkeypatch.setattr(torch.nn.functional, "conv1d", counted)
    resample(torch.randn(1, 9_000), 44_100, 16_001)
    assert len(sizes) == math.ceil(3_266 / GROUP) and max(sizes) < GROUP * (3 * GROUP + 6 * ZEROS)


def test_torchaudio_is_asked_where_it_imports(monkeypatch):
    """But not for filters that would not fit in memory."""
    asked = []

    class Theirs:
        @staticmethod
        def resample(x, old, new, **options):
            asked.append((old, new, options))
            return x

    monkeypatch.setattr(torchaudio, "functional", lambda: Theirs)
    x = torch.randn(1, 30)
    assert resample(x, 44_100, 16_000) is x
    assert asked == [(441, 160, {"lowpass_filter_width": ZEROS, "rolloff": ROLLOFF})]
    resample(x, 44_100, 16_001)
    assert len(asked) == 1


def test_filters_are_kept_for_the_next_sound():
    """A few of them; those made while inferring serve gradients."""
    filters.cache_clear()
    with torch.inference_mode():
        resample(torch.randn(2, 300), 44_100, 16_000)
    x = torch.randn(1, 2_000, requires_grad=True)
    resample(x, 44_100, 16_000).sum().backward()
    assert x.grad.isfinite().all() and (filters.cache_info().misses, filters.cache_info().hits) == (1, 1)
    resample(torch.randn(1, 9_000), 44_100, 16_001)
    assert filters.cache_info().currsize == filters.cache_info().maxsize


def test_gradients_are_the_filters_transposed():
    """Up, down and of coprime rates, in float64; equal rates give the sound itself."""
    for old, new in ((4, 3), (3, 4), (7, 5), (1, 6)):
        x = torch.randn(2, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, old=old, new=new: resample(x, old, new), x)
    assert resample(x, 5, 5) is x
