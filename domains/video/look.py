"""The features of a set of clips and how they move, measured once and then compared.

N: clips; C: channels; T: frames; H, W: height, width; D: features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from scipy.stats import wasserstein_distance
from torch import Tensor
from torch.nn import functional as F

from domains.video.motion import change, flicker, spectrum

CHUNK = 128  # clips in one pass of the classifier
AVERAGES = {"name": "averages over parts of the clip and of its changes"}

# Clips [N, C, T, H, W] to: features [N, D], those of single frames [N, T, D'], the classes seen in
# them, [N] each.
Features = Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]


class Look(NamedTuple):
    """Measurements of a set of clips."""

    clips: Tensor  # features [N, D], float64
    frames: Tensor  # features of single frames [N T, D'], float64
    change: Tensor  # [N (T - 1)]
    flicker: Tensor  # [N]
    spectrum: Tensor  # decibels [T // 2]
    classes: dict[str, Tensor]  # that the classifier sees, [N]


def look(parts: Iterable[Tensor], features: Features) -> Look:
    """The measurements of clips that come in parts [N, C, T, H, W]."""
    seen, changes, flickers, powers, sizes = [], [], [], [], []
    for part in parts:
        for x in part.split(CHUNK):
            seen.append(features(x))
            changes.append(change(x).flatten())
            flickers.append(flicker(x))
            powers.append(10 ** (spectrum(x) / 10))
            sizes.append(len(x))
    clips, frames, classes = zip(*seen, strict=True)
    share = torch.tensor(sizes).to(clips[0].device) / sum(sizes)
    return Look(
        torch.cat(clips).double(),
        torch.cat([of_frames.flatten(0, 1) for of_frames in frames]).double(),
        torch.cat(changes),
        torch.cat(flickers),
        10 * (share @ torch.stack(powers)).log10(),
        {name: torch.cat([part[name] for part in classes]) for name in classes[0]},
    )


def averages(x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Features without a classifier: means over parts of clips, of their changes and of frames."""
    frames = F.adaptive_avg_pool3d(x, (x.shape[2], 4, 4)).movedim(2, 1).flatten(2)
    moved = x.diff(dim=2).abs()
    whole, changes = (F.adaptive_avg_pool3d(y, (min(4, x.shape[2] - 1), 2, 2)).flatten(1) for y in (x, moved))
    return torch.cat([whole, changes], 1), frames, {}


def motion_apart(ours: Look, theirs: Look) -> dict[str, float]:
    """Distances from a reference in motion: `motion_gap` and `spectrum`, see `VideoEvaluator`."""
    gap = wasserstein_distance(ours.change.cpu(), theirs.change.cpu())
    return {
        "motion_gap": float(gap) / float(theirs.change.mean()),
        "spectrum": float((ours.spectrum - theirs.spectrum).square().mean().sqrt()),
    }
