"""Music teachers."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import EmbeddedTeacher

WEIGHTS = Path(__file__).parent / "weights"


class Tones(EmbeddedTeacher):
    """The embedded teacher of notes, chords and rhythms; its model card says how it was trained."""

    home = WEIGHTS / "tones"


class TonesContinuation(EmbeddedTeacher):
    """The embedded teacher that is also given the first quarter of a second."""

    home = WEIGHTS / "tones_continuation"
