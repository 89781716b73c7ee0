"""The codec between sounds and the space of the diffusion: log-mel spectrograms as images.

B: batch; C: channels; N: samples; M: bands; F: frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distillkit import checks
from distillkit.codec import Codec
from domains.music.mel import bands, griffin_lim, logarithm, magnitudes, unbanded

WIDEST = 1.5  # normalised values lie in [-WIDEST, WIDEST]


class Mel(Codec):
    """Log-mel spectrograms [C, M, F] of standard deviation 1/2; the sound by Griffin and Lim.

    `x = (log(max(mel, floor)) - mean) / (2 std)`, cut to [-1.5, 1.5]. A sound of F hop samples has
    F frames, centred at samples 0, hop, 2 hop ...; one that is made for a beginning, the sound
    `cond["first"]`, begins with it.

    Args:
        sample_rate: of the sounds, in Hz.
        size: samples of a window, of which `hop` is a quarter.
        num: bands, from `low` to `high` Hz; null means half the sample rate.
        floor: smallest magnitude; a full-scale sine has 1.
        mean, std: of the logarithms over the data.
        steps: iterations of Griffin and Lim's algorithm.
    """

    def __init__(
        self,
        sample_rate: int = 8_000,
        size: int = 1_024,
        num: int = 64,
        low: float = 150.0,
        high: float | None = None,
        floor: float = 1e-4,
        mean: float = -6.0,
        std: float = 2.5,
        steps: int = 32,
    ):
        checks.whole(1, sample_rate=sample_rate, num=num, steps=steps)
        checks.whole(4, size=size)
        checks.positive(floor=floor, std=std)
        checks.finite(mean=mean)
        checks.not_negative(low=low)
        high = high or sample_rate / 2
        if size % 4:
            raise ValueError(f"size must be divisible by 4, got {size}")
        if not low < high <= sample_rate / 2:
            raise ValueError(f"bands need 0 <= low < high <= sample_rate / 2, got {low} and {high} at {sample_rate} Hz")
        self.sample_rate, self.size, self.hop, self.steps = sample_rate, size, size // 4, steps
        self.bands, self.floor, self.mean, self.std = (num, low, high), floor, mean, std

    def weights(self) -> Tensor:
        """Of frequencies in bands, [M, S]."""
        return bands(self.sample_rate, self.size, *self.bands)

    def encode(self, batch):
        return self.spectrogram(batch["data"])

    def spectrogram(self, sound: Tensor) -> Tensor:
        """Normalised spectrograms [B, C, M, N / hop] of sounds [B, C, N]."""
        frames = sound.shape[-1] // self.hop
        log = logarithm(magnitudes(sound, self.size, self.hop)[..., :frames], self.weights(), self.floor)
        return ((log - self.mean) / (2 * self.std)).clamp(-WIDEST, WIDEST)

    def log_mel(self, x: Tensor) -> Tensor:
        """The logarithms of mel magnitudes of normalised spectrograms, at least log(floor)."""
        return (x * (2 * self.std) + self.mean).clamp_min(math.log(self.floor))

    def decode(self, x, cond):
        mels = self.log_mel(x.float().clamp(-WIDEST, WIDEST)).exp()
        mels = torch.cat([mels, mels[..., -1:]], -1)  # a frame at the very end
        return griffin_lim(unbanded(mels, self.weights()), self.hop, self.steps, first=cond.get("first"))

    def data_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        channels, _, frames = event_shape
        return channels, frames * self.hop
