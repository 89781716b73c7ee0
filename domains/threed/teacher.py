"""The embedded teachers of the two stages."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import FolderTeacher

WEIGHTS = Path(__file__).parent / "weights"


class SolidsStructure(FolderTeacher):
    """Stage one for `domains.threed.solids`: occupied voxels of 16^3, five classes; its card says how it was trained."""

    home = WEIGHTS / "solids_structure"

    def __init__(self):
        super().__init__(str(self.home))


class SolidsFeatures(FolderTeacher):
    """Stage two for `domains.threed.solids`: the voxels of a shell, five classes; its card says how it was trained."""

    home = WEIGHTS / "solids_features"

    def __init__(self):
        super().__init__(str(self.home))
