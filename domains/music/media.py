"""Sounds as files (.wav) and as pictures of their mel spectrograms.

N: sounds; C: channels; T: samples; M: bands; F: frames.
"""

from __future__ import annotations

import math
import wave
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation.pictures import labelled, save_picture
from distillkit.files import write_atomic
from domains.music.mel import BANDS, htk_mel, log_mel

FASTEST = 1_000_000  # Hz
ZOOM = 2  # pixels of a band
WIDTH, WIDEST = 320, 512  # pixels that a short spectrogram is enlarged to, about, and of a long one at most
QUIETEST = -80.0  # dB, of the first colour; a full-scale sine has 0
COLOURS = (matplotlib.colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
LEFT, BELOW, GAP = 42, 18, 8  # pixels: room for frequencies and for seconds, and between spectrograms
OCTAVES = (14080, 7040, 3520, 1760, 880, 440, 220, 110)  # Hz, the notes A that are marked
APART = (13, 44)  # pixels between two marks at least, upwards and to the right
INK = (90, 90, 90)


def of(codec: Any, shown: Any = None) -> SimpleNamespace:
    """This module's functions at the sample rate of a codec, or else at the `rate` in `shown`.

    Raises:
        ValueError: neither says a rate.
    """
    rate = getattr(codec, "sample_rate", None) or (shown.get("rate") if isinstance(shown, Mapping) else None)
    if type(rate) is not int or not 1 <= rate <= FASTEST:
        raise ValueError(
            "the student's folder does not say the sample rate of its sounds (`shown: {rate: 16000}` would)"
        )
    return at(rate)


def at(rate: int) -> SimpleNamespace:
    """This module's functions at a sample rate in Hz."""
    return SimpleNamespace(**{show.__name__: partial(show, rate=rate) for show in (picture, compare, sounds, save)})


def picture(samples: Tensor, cond: Mapping[str, Tensor] | None = None, columns: int = 2, *, rate: int) -> Image.Image:
    """Mel spectrograms of sounds [N, C, T] in [-1, 1], in rows, over seconds and Hz.

    Low notes are at the bottom, and the notes A are marked. Colours go from -80 dB to the level of
    a full-scale sine; of several channels the loudest is seen.
    """
    if samples.ndim != 3 or 0 in samples.shape:
        raise ValueError(f"a picture needs samples [N, C, T] with N, C, T >= 1, got {list(samples.shape)}")
    cells = [spectrogram(sound, rate) for sound in samples]
    height, width = cells[0].shape[:2]
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (LEFT + columns * (width + GAP), rows * (height + GAP) + BELOW), "white")
    for i, cell in enumerate(cells):
        left, top = LEFT + i % columns * (width + GAP), i // columns * (height + GAP)
        sheet.paste(Image.fromarray(cell), (left, top))
        if i % columns == 0:
            mark_hertz(sheet, left, top + height, rate)
        if i + columns >= len(cells):
            mark_seconds(sheet, left, top + height, width, samples.shape[2] / rate)
    put(sheet, (LEFT - 14, sheet.height - BELOW - GAP + 4), "Hz", "rt")
    return sheet


def spectrogram(x: Tensor, rate: int) -> np.ndarray:
    """The pixels uint8 [ZOOM M, zoom F, 3] of a sound [C, T], of a long one fewer columns."""
    x = x.detach().float().cpu().nan_to_num(0.0).clamp(-1, 1)  # a diverging model is shown
    decibels = 20 / math.log(10) * log_mel(x[None], rate)[0].amax(0)
    frames = F.adaptive_avg_pool1d(decibels, min(decibels.shape[1], WIDEST))
    levels = (255 * (1 - frames / QUIETEST)).clamp(0, 255).round().long().flip(0).numpy()
    return COLOURS[levels].repeat(ZOOM, axis=0).repeat(max(1, WIDTH // levels.shape[1]), axis=1)


def mark_hertz(sheet: Image.Image, left: int, bottom: int, rate: int) -> None:
    """Mark the notes A on the left of a spectrogram, from the highest on, where there is room."""
    last, top = -math.inf, htk_mel(torch.tensor(rate / 2))
    for hertz in OCTAVES:
        place = htk_mel(torch.tensor(float(hertz))) / top * (BANDS + 1)
        y = bottom - round(ZOOM * (float(place) - 0.5))  # the middle of its band
        if max(bottom - ZOOM * BANDS, last + APART[0]) <= y <= bottom:
            ImageDraw.Draw(sheet).line((left - 4, y, left - 1, y), fill=INK)
            put(sheet, (left - 6, y), str(hertz), "rm")
            last = y


def mark_seconds(sheet: Image.Image, left: int, bottom: int, width: int, seconds: float) -> None:
    """Mark round times below a spectrogram."""
    least = seconds * APART[1] / width
    decade = 10 ** math.floor(math.log10(least))
    step = next(decade * k for k in (1, 2, 5, 10) if decade * k >= least)
    for i in range(math.floor(seconds / step) + 1):
        x = left + round(i * step / seconds * (width - 1))
        ImageDraw.Draw(sheet).line((x, bottom, x, bottom + 3), fill=INK)
        put(sheet, (x, bottom + 4), f"{i * step:g}" + " s" * (i == 0), "mt")


def put(sheet: Image.Image, place: tuple[int, int], text: str, anchor: str) -> None:
    """Write a small text at a place, see Pillow's anchors."""
    ImageDraw.Draw(sheet).text(place, text, fill=INK, font=ImageFont.load_default(), anchor=anchor)


def compare(
    rows: Mapping[str, Tensor], cond: Mapping[str, Tensor] | None = None, num: int = 3, *, rate: int
) -> Image.Image:
    """The first `num` samples of each set in a row, labelled; the same place is the same noise.

    Sets are such as a teacher's and a student's.
    """
    return labelled({name: picture(samples[:num], columns=num, rate=rate) for name, samples in rows.items()})


def sounds(samples: Tensor, cond: Mapping[str, Tensor] | None, folder: str | Path, *, rate: int) -> list[Path]:
    """What `save` writes, and a picture of each, `sound_{i}.png`."""
    paths = save(samples, cond, folder, rate=rate)
    for path, sound in zip(paths, samples, strict=True):
        save_picture(path.with_suffix(".png"), picture(sound[None], rate=rate))
    return paths


def save(samples: Tensor, cond: Mapping[str, Tensor] | None, folder: str | Path, *, rate: int) -> list[Path]:
    """Each of the samples [N, C, T] as `sound_{i}.wav` of 16 bits."""
    x = samples.detach().float().cpu().nan_to_num(0.0)
    return [save_wav(one, Path(folder) / f"sound_{i}.wav", rate) for i, one in enumerate(x)]


def save_wav(x: Tensor, path: Path, rate: int) -> Path:
    """A sound [C, T] as a .wav file of 16 bits: 1 is 32768, of which 32767 is the largest.

    One with a peak above 1 is made quieter as a whole, so that its peak is 1.
    """
    levels = (x / x.abs().max().clamp_min(1) * 32768).round().clamp_max(32767).to(torch.int16)

    def write(path: Path) -> None:
        with wave.open(str(path), "wb") as file:
            file.setparams((x.shape[0], 2, rate, 0, "NONE", ""))
            file.writeframes(levels.T.contiguous().numpy().astype("<i2").tobytes())

    return write_atomic(path, write)
