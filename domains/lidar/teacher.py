"""LiDAR teachers."""

from __future__ import annotations

from pathlib import Path

from distillkit.codec import Codec
from distillkit.teachers.folder import FolderTeacher
from domains.lidar.offsets import Offsets

WEIGHTS = Path(__file__).parent / "weights"


class Streets(Offsets, FolderTeacher):
    """The embedded teacher of scenes as points.

    Its model card says how it was trained.

    Args:
        codec: a codec with a refinement, say; None takes the folder's.
    """

    home = WEIGHTS / "streets"

    def __init__(self, codec: Codec | None = None):
        super().__init__(str(self.home))
        self.codec = codec or self.codec


class StreetsRange(FolderTeacher):
    """The embedded teacher of scenes as range images.

    Its model card says how it was trained.
    """

    home = WEIGHTS / "streets_range"

    def __init__(self):
        super().__init__(str(self.home))
