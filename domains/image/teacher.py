"""Image teachers."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import EmbeddedTeacher

WEIGHTS = Path(__file__).parent / "weights"


class Digits(EmbeddedTeacher):
    """The embedded teacher of handwritten digits (8x8, ten classes).

    Its model card says how it was trained.
    """

    home = WEIGHTS / "digits"
