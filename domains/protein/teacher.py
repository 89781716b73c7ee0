"""The embedded teacher."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import EmbeddedTeacher

WEIGHTS = Path(__file__).parent / "weights"


class Folds(EmbeddedTeacher):
    """The embedded teacher of `domains.protein.folds`: C-alpha traces, three classes.

    Chains have up to 64 residues. Its model card says how it was trained.
    """

    home = WEIGHTS / "folds"
