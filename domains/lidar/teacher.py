"""LiDAR teachers."""

from __future__ import annotations

from pathlib import Path

from distillkit.codec import Codec
from distillkit.networks.dtypes import Dtype
from distillkit.teachers.folder import EmbeddedTeacher
from domains.lidar.offsets import Offsets

WEIGHTS = Path(__file__).parent / "weights"


class Streets(Offsets, EmbeddedTeacher):
    """The embedded teacher of scenes as points.

    Its model card says how it was trained.

    Args:
        codec: a codec with a refinement, say; None takes the folder's.
        extent: side of the data's scenes in metres, at most that of the network's grid; None for
            whole scans.
        dtype: see `BaseTeacher`.

    Raises:
        ValueError: the scenes are larger: what lies beyond the grid would count for its border.
    """

    home = WEIGHTS / "streets"

    def __init__(self, codec: Codec | None = None, extent: float | None = 12.8, dtype: Dtype = "float32"):
        super().__init__(dtype)
        self.codec = codec or self.codec
        known = self.denoiser.network.extent
        if extent is None or extent > known:
            larger = "whole scans" if extent is None else f"scenes of {extent:g} m"
            raise ValueError(
                f"the embedded teacher knows scenes of {known:g} m, no {larger}: say data.crop={known:g}, or train a "
                f"teacher on them by method=pretrain"
            )


class StreetsRange(EmbeddedTeacher):
    """The embedded teacher of scenes as range images.

    Its model card says how it was trained.
    """

    home = WEIGHTS / "streets_range"
