"""Music teachers."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import FolderTeacher

WEIGHTS = Path(__file__).parent / "weights"


class Tones(FolderTeacher):
    """The embedded teacher of notes, chords and rhythms; its model card says how it was trained."""

    home = WEIGHTS / "tones"

    def __init__(self):
        super().__init__(str(self.home))


class TonesContinuation(FolderTeacher):
    """The embedded teacher that is also given the first quarter of a second."""

    home = WEIGHTS / "tones_continuation"

    def __init__(self):
        super().__init__(str(self.home))
