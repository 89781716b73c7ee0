"""Teachers of views."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import EmbeddedTeacher

WEIGHTS = Path(__file__).parent / "weights"


class ColouredSolids(EmbeddedTeacher):
    """The embedded teacher of renders of sixteen coloured solids, which is told the view's word.

    Its model card says how it was trained.
    """

    home = WEIGHTS / "coloured_solids"
