"""Image teachers."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import FolderTeacher

WEIGHTS = Path(__file__).parent / "weights"


class Digits(FolderTeacher):
    """The embedded teacher of handwritten digits (8x8, ten classes).

    Its model card says how it was trained.
    """

    home = WEIGHTS / "digits"

    def __init__(self):
        super().__init__(str(self.home))
