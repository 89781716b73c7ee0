"""LiDAR teachers."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import FolderTeacher
from domains.lidar.offsets import Offsets

WEIGHTS = Path(__file__).parent / "weights"


class Streets(Offsets, FolderTeacher):
    """The embedded teacher of scenes as points.

    Its model card says how it was trained.
    """

    home = WEIGHTS / "streets"

    def __init__(self):
        super().__init__(str(self.home))


class StreetsRange(FolderTeacher):
    """The embedded teacher of scenes as range images.

    Its model card says how it was trained.
    """

    home = WEIGHTS / "streets_range"

    def __init__(self):
        super().__init__(str(self.home))
