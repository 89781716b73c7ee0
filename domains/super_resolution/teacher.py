"""Super-resolution teachers."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import EmbeddedTeacher

WEIGHTS = Path(__file__).parent / "weights"


class Photos(EmbeddedTeacher):
    """The embedded teacher of photographs: 4 times larger, ResShift's process, any size.

    Its model card says how it was trained.
    """

    home = WEIGHTS / "photos"
