"""Sounds as normalised mel spectrograms and back."""

import math
import os
from pathlib import Path

import pytest
import tiny_audio
import torch
from torch.nn import functional as F
from transformers import SpeechT5HifiGan

from distillkit.spec import from_spec, to_spec
from domains.music import reading
from domains.music.codec import Mel
from domains.music.data import Tones
from domains.music.vocoder import HifiGan

CODEC = Mel(mean=-7.97, std=1.97)  # of conf/data/tones.yaml
NOTES = Path(os.environ.get("DISTILLKIT_TEST_DATA", "none"), "audio", "orchestra_notes")


@pytest.fixture(scope="module")
def sounds():
    data = Tones(768, 8, 8)
    data.setup()
    return data.train[torch.arange(0, 768, 16) + torch.arange(48) % 16]["data"]


def test_normalised_spectrograms_have_the_deviation_of_the_teacher(sounds):
    x = CODEC.spectrogram(sounds)
    assert x.shape == (48, 1, 64, 32) and x.abs().max() <= 1.5
    assert abs(x.mean()) < 0.05 and abs(x.std() - 0.5) < 0.03


def test_the_round_trip(sounds):
    """Measured: a mean error of 0.13 in the logarithm."""
    x = CODEC.spectrogram(sounds[:8])
    made = CODEC.decode(x, {})
    assert made.shape == sounds[:8].shape
    assert (CODEC.log_mel(CODEC.spectrogram(made)) - CODEC.log_mel(x)).abs().mean() < 0.25
    assert torch.equal(made, CODEC.decode(x, {}))
    torch.testing.assert_close(CODEC.decode(x[3:4], {}), made[3:4], atol=1e-3, rtol=0)
    assert CODEC.decode(x.bfloat16(), {}).dtype == torch.float32


def test_gradients_reach_sounds(sounds):
    x = sounds[:2].clone().requires_grad_()
    CODEC.spectrogram(x).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0


@pytest.mark.skipif(not NOTES.is_dir(), reason="DISTILLKIT_TEST_DATA names no folder with them")
def test_the_round_trip_of_real_notes():
    """Measured: 0.10 to 0.18 for five notes of three instruments, down to -100 dB."""
    codec = Mel(16_000, 1_024, 64, low=0.0, floor=1e-5)
    for path in sorted(NOTES.rglob("*.mp3"))[::136]:
        note = reading.read(path, reading.probe(path), 0, 16_384, 16_000, 1)
        note = F.pad(note / note.abs().max(), (0, 16_384 - note.shape[-1]))[None]
        heard = codec.decode(codec.spectrogram(note), {})
        assert (codec.logarithms(heard) - codec.logarithms(note)).abs().mean() < 0.3, path.name


def test_refusals():
    with pytest.raises(ValueError, match="size must be divisible by 4"):
        Mel(size=1022)
    for wrong in ({"hop": 0}, {"high": 0.0}):
        with pytest.raises(ValueError, match="hop|bands need 0 <= low < high"):
            Mel(**wrong)
    with pytest.raises(ValueError, match="a window of 16384 samples is longer than the 8192 of a clip"):
        Mel(size=16_384).check(Tones())
    with pytest.raises(ValueError, match="bands need 0 <= low < high"):
        Mel(low=5_000.0)


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory):
    return tiny_audio.vocoder_folder(tmp_path_factory.mktemp("vocoder"))


def test_a_vocoder_makes_the_sound(vocoder):
    """It sees natural logarithms of spectra as torch.stft has them, in its own base."""
    codec = Mel(size=64, num=8, hop=16, low=0.0, slaney=True, vocoder=HifiGan(str(vocoder), base=10))
    x = codec.spectrogram(torch.rand(2, 1, 256, generator=torch.Generator().manual_seed(0)) - 0.5)
    made = codec.decode(x, {})
    logs = (codec.log_mel(x) + math.log(torch.hann_window(64).sum() / 2)) / math.log(10)
    with torch.no_grad():
        expected = SpeechT5HifiGan.from_pretrained(vocoder).eval()(logs[:, 0].mT)
    torch.testing.assert_close(made[:, 0], expected)
    assert to_spec(from_spec(to_spec(codec), trust=(str(vocoder),))) == to_spec(codec)


def test_a_vocoder_of_other_sounds_is_refused(vocoder, tmp_path):
    with pytest.raises(
        ValueError, match="makes sounds of sample_rate=8000 num=8 hop=16, and the codec has 8000, 64 and 256"
    ):
        Mel(vocoder=HifiGan(str(vocoder)))
    with pytest.raises(ValueError, match="there is no folder"):
        Mel(vocoder=HifiGan(str(tmp_path / "none"))).decode(torch.zeros(1, 1, 64, 32), {})
    with pytest.raises(ValueError, match="wants to read"):
        from_spec(to_spec(Mel(size=64, num=8, hop=16, vocoder=HifiGan(str(vocoder)))))
