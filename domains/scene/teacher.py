"""Teachers of scenes."""

from __future__ import annotations

from pathlib import Path

from distillkit.teachers.folder import EmbeddedTeacher

WEIGHTS = Path(__file__).parent / "weights"


class RoomClips(EmbeddedTeacher):
    """The embedded teacher of rooms: a clip from its two end frames.

    It never looks at the coarse clip, from which students start. Its model card says how it was
    trained.
    """

    home = WEIGHTS / "rooms"
