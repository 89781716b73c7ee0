"""Video teachers."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import FolderTeacher

WEIGHTS = Path(__file__).parent / "weights"


class Clips(FolderTeacher):
    """The embedded teacher of moving digits (ten digits, three motions).

    Its model card says how it was trained.
    """

    home = WEIGHTS / "clips"

    def __init__(self):
        super().__init__(str(self.home))


class ClipsContinuation(FolderTeacher):
    """The embedded teacher of moving digits that is also given the first four frames as context."""

    home = WEIGHTS / "clips_continuation"

    def __init__(self):
        super().__init__(str(self.home))
