"""CLAP (arXiv 2211.06687): embeddings of sounds and of prompts, of the user's own model.

N: sounds; C: channels; T: samples; V: views; F: frames; M: bands; D: size of an embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation.contrastive import CHUNK, Contrastive
from domains.music.resample import resample

QUIETEST = 1e-10  # the least power of a band: -100 dB


class Clap(Contrastive):
    """Embeddings of sounds, their Frechet distance's features, and the CLAP score of prompts.

    A sound is mono and resampled to what the model expects. One longer than the model hears is
    heard in even parts, whose embeddings are averaged.

    Args:
        path: folder of a `ClapModel`, with its `ClapProcessor`.
        prompts: as in `Contrastive`.
    """

    name, kinds = "CLAP", ("ClapModel", "ClapProcessor")

    @torch.no_grad()
    def features(self, samples: Tensor, rate: int) -> Tensor:
        """Embeddings [N, D] float64 of sounds [N, C, T] in [-1, 1]; see `heard`."""
        return torch.cat([self.heard(x, rate).double() for x in samples.split(CHUNK)])

    def heard(self, sounds: Tensor, rate: int) -> Tensor:
        """Embeddings [N, D] of sounds [N, C, T], each of length 1, differentiable in the sounds.

        Args:
            sounds: in [-1, 1]; what lies outside counts as its end.
            rate: samples a second, in Hz.
        """
        model, hears = self.parts[0].to(self.device), self.parts[1].feature_extractor
        mono = resample(sounds.to(self.device).float().clamp(-1, 1).mean(1), rate, hears.sampling_rate)
        found = []
        for part in mono.tensor_split(-(-mono.shape[-1] // hears.nb_max_samples), dim=-1):
            mels = log_mel(part.double(), hears).float().contiguous()  # else batch_norm's gradient is wrong
            longer = torch.zeros(len(part), 1, dtype=torch.bool, device=self.device)  # no part is
            states = model.audio_model(mels, is_longer=longer).pooler_output
            found.append(F.normalize(model.audio_projection(states)))
        return F.normalize(torch.stack(found).mean(0))

    def tokens(self, texts):
        return self.parts[1].tokenizer(texts, padding=True, truncation=True, return_tensors="pt")


def log_mel(mono: Tensor, hears: Any) -> Tensor:
    """Log-mels [N, V, F, M] in dB of sounds [N, T], as the model sees them, differentiable.

    They are those of transformers' `ClapFeatureExtractor`. A sound that is shorter than the model
    hears is repeated and goes on with silence as `hears.padding` says. Models that fuse views of a
    longer sound have the whole of a shorter one as all four.

    Args:
        mono: sounds of at most `hears.nb_max_samples` samples.
        hears: the extractor.
    """
    most, fused = hears.nb_max_samples, hears.truncation == "fusion"
    times = {"repeat": most // mono.shape[-1] + 1, "repeatpad": most // mono.shape[-1]}.get(hears.padding, 1)
    whole = mono.repeat(1, times)[:, :most]
    whole = F.pad(whole, (0, most - whole.shape[-1]))
    window = torch.hann_window(hears.fft_window_size, dtype=mono.dtype, device=mono.device)
    waves = torch.stft(whole, len(window), hears.hop_length, window=window, pad_mode="reflect", return_complex=True)
    bands_SM = torch.from_numpy(hears.mel_filters if fused else hears.mel_filters_slaney).to(mono)
    mels = 10 * (bands_SM.mT @ waves.abs().square()).clamp_min(QUIETEST).log10()
    return mels.mT[:, None].expand(-1, 4 if fused else 1, -1, -1)
