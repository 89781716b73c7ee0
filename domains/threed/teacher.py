"""The embedded teachers of the two stages."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import EmbeddedTeacher

WEIGHTS = Path(__file__).parent / "weights"


class SolidsStructure(EmbeddedTeacher):
    """The embedded teacher of stage one: occupied voxels of 16^3, five classes of solids.

    Made for `domains.threed.solids`. Its model card says how it was trained.
    """

    home = WEIGHTS / "solids_structure"


class SolidsFeatures(EmbeddedTeacher):
    """The embedded teacher of stage two: the voxels of a shell, five classes of solids.

    Made for `domains.threed.solids`. Its model card says how it was trained.
    """

    home = WEIGHTS / "solids_features"
