"""The embedded teachers of the two stages."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import FolderTeacher

WEIGHTS = Path(__file__).parent / "weights"


class SolidsStructure(FolderTeacher):
    """The embedded teacher of stage one: occupied voxels of 16^3, five classes of solids.

    Made for `domains.threed.solids`. Its model card says how it was trained.
    """

    home = WEIGHTS / "solids_structure"

    def __init__(self):
        super().__init__(str(self.home))


class SolidsFeatures(FolderTeacher):
    """The embedded teacher of stage two: the voxels of a shell, five classes of solids.

    Made for `domains.threed.solids`. Its model card says how it was trained.
    """

    home = WEIGHTS / "solids_features"

    def __init__(self):
        super().__init__(str(self.home))
