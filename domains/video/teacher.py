"""Video teachers."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import EmbeddedTeacher

WEIGHTS = Path(__file__).parent / "weights"


class Clips(EmbeddedTeacher):
    """The embedded teacher of moving digits (ten digits, three motions).

    Its model card says how it was trained.
    """

    home = WEIGHTS / "clips"


class ClipsContinuation(EmbeddedTeacher):
    """The embedded teacher of moving digits that is also given the first four frames as context."""

    home = WEIGHTS / "clips_continuation"
