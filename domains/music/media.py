"""Sounds as files (.wav) and as pictures of their mel spectrograms.

N: sounds; C: channels; T: samples.
"""

from __future__ import annotations

import wave
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation.pictures import labelled
from distillkit.files import write_atomic
from domains.music.mel import FLOOR, log_mel

RATE = 44_100  # Hz, of sounds whose rate nobody says
HEIGHT, WIDTH = 2, 512  # pixels of a band; pixels that a spectrogram is wide at most
GAP, GREY = 2, 96
COLOURS = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]])  # from silence to loud


def at(rate: int) -> SimpleNamespace:
    """This module's functions at a sample rate in Hz."""
    return SimpleNamespace(**{show.__name__: partial(show, rate=rate) for show in (picture, compare, save)})


def picture(samples: Tensor, cond: Mapping[str, Tensor] | None = None, rate: int = RATE) -> Image.Image:
    """Mel spectrograms of sounds [N, C, T] in [-1, 1], one below the other.

    Channels are averaged, and low notes are at the bottom. Colours go from -100 dB to the level of
    a full-scale sine.
    """
    if samples.ndim != 3 or 0 in samples.shape:
        raise ValueError(f"a picture needs samples [N, C, T] with N, C, T >= 1, got {list(samples.shape)}")
    x = samples.detach().float().cpu().nan_to_num(0.0).clamp(-1, 1)
    mels = log_mel(x, rate).mean(1)
    mels = F.adaptive_avg_pool1d(mels, min(mels.shape[-1], WIDTH))
    levels = (1 - mels / np.log(FLOOR)).clamp(0, 1).flip(1).repeat_interleave(HEIGHT, 1).numpy()
    places = np.linspace(0, 1, len(COLOURS))
    pixels = np.stack([np.interp(levels, places, colour) for colour in COLOURS.T], -1).round().astype(np.uint8)
    pixels = pixels.repeat(max(1, WIDTH // pixels.shape[2]), axis=2)
    rows = np.pad(pixels, ((0, 0), (0, GAP), (0, 0), (0, 0)), constant_values=GREY)
    return Image.fromarray(np.concatenate(list(rows)))


def compare(
    rows: Mapping[str, Tensor], cond: Mapping[str, Tensor] | None = None, sounds: int = 3, rate: int = RATE
) -> Image.Image:
    """The first `sounds` samples of each set, labelled.

    Sets are such as a teacher's and a student's from the same noise.
    """
    return labelled({name: picture(samples[:sounds], rate=rate) for name, samples in rows.items()})


def save(samples: Tensor, cond: Mapping[str, Tensor] | None, folder: str | Path, rate: int = RATE) -> list[Path]:
    """Each of the samples [N, C, T] as `sound_{i}.wav` of 16 bits."""
    x = samples.detach().float().cpu().nan_to_num(0.0)
    return [save_wav(one, Path(folder) / f"sound_{i}.wav", rate) for i, one in enumerate(x)]


def save_wav(x: Tensor, path: Path, rate: int) -> Path:
    """A sound [C, T] as a .wav file of 16 bits; one with a peak above 1 is made quieter."""
    levels = (x / x.abs().max().clamp_min(1) * 32767).round().to(torch.int16)

    def write(path: Path) -> None:
        with wave.open(str(path), "wb") as file:
            file.setparams((x.shape[0], 2, rate, 0, "NONE", ""))
            file.writeframes(levels.T.contiguous().numpy().astype("<i2").tobytes())

    return write_atomic(path, write)
