"""Features to compare sounds by: a small classifier; `ship.py` trains the shipped one.

N: sounds; C: channels; T: samples; M: bands; F: frames; D: features.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.evaluation.extractor import once
from distillkit.progress import counted
from domains.music.codec import Mel
from domains.music.mel import BANDS, bands, logarithm, magnitudes

SHIPPED = Path(__file__).parent / "weights" / "features" / "model.safetensors"
STEPS = 600  # of training, shipped or on the spot
BATCH = 32  # sounds as they are, and half as many through the codec
REBUILT = 5_000_000  # samples of sounds that go through the codec
ROUGH = 8  # iterations of Griffin and Lim's algorithm for these
WINDOW = 0.1  # seconds, about: long enough to tell semitones apart
FLOOR = 1e-3  # of magnitudes: -60 dB, below which a vocoder leaves noise
NOISE = (-90.0, -50.0)  # dB, the range of the noise in training
GAIN = 6.0  # dB, likewise of loudness, both ways
FRAMES = 128  # that are looked at, at most


def window(rate: int) -> int:
    """Samples of the window at a rate in Hz, a power of 2."""
    return 2 ** round(math.log2(WINDOW * rate))


def spectrogram(x: Tensor, rate: int) -> Tensor:
    """The logarithm of mel magnitudes [N, C, 64, F] of sounds [N, C, T] in [-1, 1], from -60 dB."""
    size = window(rate)
    return logarithm(magnitudes(x, size, size // 4), bands(rate, size), FLOOR)


class Classifier(nn.Module):
    """A small classifier of sounds whose last hidden layer serves as features.

    It sees log-mel spectrograms of the sounds themselves. Where a note lies in a spectrogram is
    kept (no global pooling), because it is the pitch. Smooth activations: no feature is ever dead.

    Args:
        channels: of the sounds.
        classes: `{name: number of classes}`, at least one name.
        rate: samples a second, in Hz.
        width: channels of the first layer.
    """

    num_features = 64

    def __init__(self, channels: int, classes: dict[str, int], rate: int, width: int = 16):
        super().__init__()
        self.config = {"channels": channels, "classes": classes, "rate": rate, "width": width}
        self.classes, self.rate, d = classes, rate, self.num_features
        layers = []
        for inputs, outputs, stride in ((channels, width, 1), (width, width, 2), (width, 24, 2), (24, 24, 1)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d((8, 4)), nn.Flatten())
        self.neck = nn.Sequential(nn.Linear(24 * 8 * 4, d), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(d, num) for name, num in classes.items()})

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 64] of sounds [N, C, T] in [-1, 1]."""
        return self.features(spectrogram(x, self.rate))

    def features(self, mels: Tensor) -> Tensor:
        """Features [N, 64] of what `spectrogram` gives."""
        mels = 1 - 2 * mels / math.log(FLOOR)  # in [-1, 1]
        if mels.shape[-1] > FRAMES:
            mels = F.adaptive_avg_pool2d(mels, (BANDS, FRAMES))
        return self.neck(self.body(mels))

    def logits(self, features_ND: Tensor) -> dict[str, Tensor]:
        """Logits of every kind of class, [N, classes]."""
        return {name: head(features_ND) for name, head in self.heads.items()}


@once
def train_classifier(data: Any, classes: dict[str, int], rate: int, steps: int = STEPS, seed: int = 0) -> Classifier:
    """A classifier fitted to `data`, len() and data[indices] -> {"data", *classes}.

    A third of the sounds have gone through a mel codec, whose artefacts the features then forgive;
    all are louder or quieter by up to 6 dB, with a little noise. It is fitted on the CPU, so that
    the samples of all devices are measured with the same one. The global generator is untouched.
    """
    rng = torch.Generator().manual_seed(seed)
    # An evaluation, which is where it is fitted on the spot, runs without gradients.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rebuilt = through_codec(data, rate, rng)
        net = Classifier(rebuilt["data"].shape[1], classes, rate).train()
        optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
        for _ in counted("training the classifier that samples are measured with", steps):
            batch = data[torch.randint(len(data), (BATCH,), generator=rng)]
            rows = torch.randint(len(rebuilt["data"]), (BATCH // 2,), generator=rng)
            batch = {name: torch.cat([batch[name], rebuilt[name][rows]]) for name in ("data", *classes)}
            features = net(varied(batch["data"], rng))
            losses = (
                F.cross_entropy(logits, batch[name], label_smoothing=0.05)
                for name, logits in net.logits(features).items()
            )
            optimiser.zero_grad()
            sum(losses).backward()
            optimiser.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def varied(x: Tensor, rng: torch.Generator) -> Tensor:
    """Sounds [N, C, T], each at another level and with white noise of another level."""
    gain, noise = torch.rand(2, len(x), 1, 1, generator=rng)
    noise = 10 ** ((NOISE[0] + (NOISE[1] - NOISE[0]) * noise) / 20)
    return x * 10 ** (GAIN * (2 * gain - 1) / 20) + noise * torch.randn(x.shape, generator=rng)


def through_codec(data: Any, rate: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Sounds drawn from `data` as a mel codec gives them back, and their classes."""
    codec = Mel(sample_rate=rate, size=window(rate), low=0.0, steps=ROUGH)
    channels, length = data[torch.zeros(1, dtype=torch.long)]["data"].shape[1:]
    size = max(8, min(len(data), REBUILT // (channels * length)))
    parts = []
    for rows in torch.randint(len(data), (size,), generator=rng).split(BATCH):
        batch = data[rows]
        whole = F.pad(batch["data"], (0, -length % codec.hop))
        parts.append(batch | {"data": codec.decode(codec.spectrogram(whole), {})[..., :length]})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def accuracy(net: Classifier, data: Any) -> dict[str, float]:
    """Share of `data` whose class the classifier names, in [0, 1], for every kind of class."""
    hits, device = dict.fromkeys(net.classes, 0), next(net.parameters()).device
    for rows in torch.arange(len(data)).split(128):
        batch = {name: value.to(device) for name, value in data[rows].items()}
        for name, logits in net.logits(net(batch["data"])).items():
            hits[name] += int((logits.argmax(1) == batch[name]).sum())
    return {name: count / len(data) for name, count in hits.items()}
