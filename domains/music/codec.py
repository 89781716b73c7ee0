"""The codec between sounds and the space of the diffusion: log-mel spectrograms as images.

B: batch; C: channels; N: samples; M: bands; F: frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distillkit import checks
from distillkit.codec import Codec
from distillkit.feeding import Feed
from domains.music.mel import bands, gone_on, griffin_lim, logarithm, magnitudes, unbanded
from domains.music.vocoder import HifiGan

WIDEST = 1.5  # normalised values lie in [-WIDEST, WIDEST]
MEASURED = 512  # sounds of which mean and standard deviation are told


class Mel(Codec):
    """Log-mel spectrograms [C, M, F] of standard deviation 1/2; the sound by Griffin and Lim.

    `x = (log(max(mel, floor)) - mean) / (2 std)`, cut to [-1.5, 1.5]. A sound of F hop samples has
    F frames, centred at samples 0, hop, 2 hop ...; one that is made for a beginning, the sound
    `cond["first"]`, begins with it.

    Args:
        sample_rate: of the sounds, in Hz.
        size: samples of a window.
        num: bands, from `low` to `high` Hz; null means half the sample rate.
        floor: smallest magnitude; a full-scale sine has 1.
        mean, std: of the logarithms over the data; training from data refuses null, and says them.
        steps: iterations of Griffin and Lim's algorithm.
        hop: samples from a frame to the next; null means a quarter of a window.
        slaney: whether bands are those of librosa, see `domains.music.mel.bands`.
        vocoder: a network that makes sounds of spectrograms, in place of Griffin and Lim.
    """

    def __init__(
        self,
        sample_rate: int = 8_000,
        size: int = 1_024,
        num: int = 64,
        low: float = 150.0,
        high: float | None = None,
        floor: float = 1e-4,
        mean: float | None = -6.0,
        std: float | None = 2.5,
        steps: int = 16,
        hop: int | None = None,
        slaney: bool = False,
        vocoder: HifiGan | None = None,
    ):
        checks.whole(1, sample_rate=sample_rate, num=num, steps=steps)
        checks.whole(4, size=size)
        checks.positive(floor=floor, **({} if std is None else {"std": std}))
        checks.finite(**({} if mean is None else {"mean": mean}))
        checks.not_negative(low=low)
        if hop is None and size % 4:
            raise ValueError(f"size must be divisible by 4, got {size}")
        hop = size // 4 if hop is None else hop
        checks.whole(1, size // 2, hop=hop)
        high = sample_rate / 2 if high is None else high
        if not low < high <= sample_rate / 2:
            raise ValueError(f"bands need 0 <= low < high <= sample_rate / 2, got {low} and {high} at {sample_rate} Hz")
        self.sample_rate, self.size, self.hop, self.steps = sample_rate, size, hop, steps
        self.bands, self.floor, self.mean, self.std = (num, low, high, slaney), floor, mean, std
        self.vocoder = vocoder
        if vocoder is not None:
            vocoder.check(sample_rate, num, self.hop)

    def weights(self, device: torch.device) -> Tensor:
        """Of frequencies in bands, [M, S]."""
        return bands(self.sample_rate, self.size, *self.bands, device)

    def check(self, data):
        if data.event_shape[-1] < self.size:
            raise ValueError(
                f"a window of {self.size} samples is longer than the {data.event_shape[-1]} of a clip: lower vars.codec.size"
            )
        if None in (self.mean, self.std):
            mean, std = (round(value, 2) for value in self.measure(data.train))
            raise ValueError(
                f"the logarithms of these data's mels have the mean {mean} and the standard deviation {std}: say "
                f"vars.codec.mean={mean} vars.codec.std={std}"
            )

    def measure(self, sounds: Any) -> tuple[float, float]:
        """Mean and standard deviation of log-mels over `MEASURED` sounds of a data set, or all."""
        rows = torch.arange(min(MEASURED, len(sounds))) * len(sounds) // min(MEASURED, len(sounds))
        logs = [self.logarithms(batch["data"]).flatten() for batch in Feed(sounds)(rows.split(16))]
        std, mean = torch.std_mean(torch.cat(logs).double())
        return float(mean), float(std)

    def encode(self, batch):
        return self.spectrogram(batch["data"])

    def spectrogram(self, sound: Tensor) -> Tensor:
        """Normalised spectrograms [B, C, M, N / hop] of sounds [B, C, N]."""
        return ((self.logarithms(sound) - self.mean) / (2 * self.std)).clamp(-WIDEST, WIDEST)

    def logarithms(self, sound: Tensor) -> Tensor:
        """The logarithms of mel magnitudes [B, C, M, N / hop] of sounds [B, C, N]."""
        found = magnitudes(sound, self.size, self.hop)[..., : sound.shape[-1] // self.hop]
        return logarithm(found, self.weights(sound.device), self.floor)

    def log_mel(self, x: Tensor) -> Tensor:
        """The logarithms of mel magnitudes of normalised spectrograms, at least log(floor)."""
        return (x * (2 * self.std) + self.mean).clamp_min(math.log(self.floor))

    def decode(self, x, cond):
        logs, first = self.log_mel(x.float().clamp(-WIDEST, WIDEST)), cond.get("first")
        if self.vocoder is not None:
            made = self.vocoder(logs + math.log(self.size / 4))  # of spectra as they are, not of a sine's height
            return made if first is None else gone_on(first, made, self.hop // 4)
        mels = torch.cat([logs, logs[..., -1:]], -1).exp()  # with a frame at the very end
        return griffin_lim(unbanded(mels, self.weights(x.device)), self.hop, self.steps, first=first)

    def data_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        channels, _, frames = event_shape
        return channels, frames * self.hop
