"""LiDiff from a folder that `python -m domains.lidar.lidiff.convert` has made of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from distillkit import checks
from distillkit.codec import Codec
from distillkit.networks.dtypes import Dtype
from distillkit.teachers.folder import FolderTeacher
from domains.lidar.lidiff.network import LiDiffNetwork
from domains.lidar.offsets import Offsets


class LiDiff(Offsets, FolderTeacher):
    """LiDiff (arXiv 2403.13470): points that noise moves about the repeated points of a scan.

    Args:
        path: the folder.
        event_shape: (N, 3) of the data; None takes the folder's, of whole scenes.
        codec: of the data, which says how often the scan is repeated; None takes the folder's.
        solver: `ve` samples as the network was trained, with DDIM; `vp` as published, see
            `domains.lidar.offsets`.
        steps: number of steps with which it counts as at its best.
        dtype: see `BaseTeacher`.
    """

    provides = frozenset({"denoiser"})  # its features are of voxels, which no head of a GAN takes
    chunk = 1  # a scene has as many points as a batch of other samples

    def __init__(
        self,
        path: str,
        event_shape: Sequence[int] | None = None,
        codec: Codec | None = None,
        solver: Literal["ve", "vp"] = "ve",
        steps: int = 50,
        dtype: Dtype = "float32",
    ):
        if solver not in ("ve", "vp"):
            raise ValueError(f"solver must be ve or vp, got {solver!r}")
        checks.whole(1, 1000, steps=steps)
        super().__init__(path, dtype=dtype)
        if not isinstance(self.denoiser.network, LiDiffNetwork):
            raise ValueError(f"{path} holds no LiDiff: convert a checkpoint, or take teacher=folder")
        self.codec = codec or self.codec
        self.event_shape = tuple(event_shape or self.event_shape)
        self.best = {"solver": "vp" if solver == "vp" else "ddim", "steps": steps}

    def grid(self, steps: int) -> Tensor:
        """LiDiff's times: whole numbers, from 999 down in equal parts of the table."""
        return torch.linspace(self.process.t_max, 0, steps + 1, dtype=torch.float64)[:-1].round()
