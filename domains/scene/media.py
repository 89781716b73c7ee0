"""Pictures of scenes: the coarse clip, the made one and the true one, still and moving, and depths.

N: samples; F: frames; H, W: height and width in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import torch
from PIL import Image
from torch import Tensor

from distillkit.evaluation.pictures import labelled
from distillkit.evaluation.references import References
from distillkit.evaluation.samples import eight_bits
from domains.video import media

FPS = 6  # at which clips are shown
PALETTE = torch.tensor(matplotlib.colormaps["turbo"].reversed()(range(256)))[:, :3].float()  # near is red

REAL = "real"  # the set of held-out clips
MOST = 64  # clips that are known: pictures are of few

Cond = dict[str, Tensor]


class First:
    """The first clips of a data set, as a data set."""

    def __init__(self, clips: Any):
        self.clips = clips

    def __len__(self) -> int:
        return min(MOST, len(self.clips))

    def __getitem__(self, indices: Tensor) -> Cond:
        return self.clips[indices]


class SceneMedia:
    """Pictures of clips beside those that they were made of, and the true ones where they are held.

    Args:
        clips: a data set of true clips, the first of which are known by their coarse ones.
    """

    def __init__(self, clips: Any):
        self.references = References([First(clips)], "coarse", eight_bits)

    def picture(self, samples: Tensor, cond: Cond | None = None) -> Image.Image:
        """Clips [N, 3, F, H, W] in [-1, 1] as strips of frames, each below the coarse one."""
        return media.picture(side_by_side(_coarse(cond), samples))

    def compare(self, rows: dict[str, Tensor], cond: Cond | None = None, clips: int = 3) -> Image.Image:
        """The first `clips` samples of each set, labelled, between the coarse and the true ones.

        A set `real` is left out where the true ones are known, which it repeats. Below them are the
        true depths, where they are known: red is near, blue is far.
        """
        truth = self.truth(cond)
        strips = {**_coarse(cond), **{name: x for name, x in rows.items() if name != REAL or not truth}, **truth}
        return labelled({name: media.picture(clip[:clips]) for name, clip in strips.items()})

    def save(self, samples: Tensor, cond: Cond | None, folder: str | Path) -> list[Path]:
        """The clips `clips.gif` and `clips.mp4`: in a row the coarse, the made and the true one.

        The true depths stand beside them where they are known.
        """
        sets = {**_coarse(cond), "samples": samples, **self.truth(cond)}
        return media.save(side_by_side({}, *sets.values()), None, folder, FPS, columns=len(sets))

    def truth(self, cond: Cond | None) -> dict[str, Tensor]:
        """The true clips and depths of coarse ones by name; nothing if one of them is not held."""
        if not _coarse(cond):
            return {}
        try:
            rows = self.references.rows(cond["coarse"].cpu())
        except ValueError:
            return {}
        found = {"true": self.references.samples(rows)}
        if "depth" in self.references.held_out[0][torch.zeros(1, dtype=torch.long)]:
            found["depth"] = coloured(self.references.batch(rows, ("depth",))["depth"])
        return found


def _coarse(cond: Cond | None) -> dict[str, Tensor]:
    return {"coarse": cond["coarse"].cpu()} if cond and "coarse" in cond else {}


def side_by_side(before: dict[str, Tensor], *clips: Tensor) -> Tensor:
    """Equally many clips of each kind, those of one sample after each other."""
    return torch.stack([*before.values(), *(clip.cpu().float() for clip in clips)], 1).flatten(0, 1)


def coloured(depth: Tensor) -> Tensor:
    """Depths [N, 1, F, H, W] as clips [N, 3, F, H, W] in [-1, 1], by the range of each clip."""
    inverse = 1 / depth.clamp_min(1e-3)
    low, high = (getattr(inverse, name)((1, 2, 3, 4), keepdim=True) for name in ("amin", "amax"))
    levels = (255 * (high - inverse) / (high - low).clamp_min(1e-12)).long()
    return PALETTE[levels[:, 0]].movedim(-1, 1) * 2 - 1
