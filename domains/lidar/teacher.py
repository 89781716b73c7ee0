"""The embedded LiDAR teachers."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import FolderTeacher

WEIGHTS = Path(__file__).parent / "weights"


class StreetsRange(FolderTeacher):
    """The embedded teacher of range images: the beams between the given ones, on the streets.

    Its model card says how it was trained.
    """

    home = WEIGHTS / "streets_range"

    def __init__(self):
        super().__init__(str(self.home))
