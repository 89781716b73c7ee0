"""The embedded teacher."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import FolderTeacher

WEIGHTS = Path(__file__).parent / "weights"


class Folds(FolderTeacher):
    """Of `domains.protein.folds`: C-alpha traces of up to 64 residues, three classes; its card says how it was trained."""

    home = WEIGHTS / "folds"

    def __init__(self):
        super().__init__(str(self.home))
