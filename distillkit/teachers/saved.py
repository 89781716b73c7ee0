"""A teacher folder as its teacher: of a Gaussian process or of discrete diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distillkit.discrete.teacher import DiscreteFolderTeacher, DiscreteTeacher
from distillkit.files import read_yaml
from distillkit.networks.dtypes import Dtype
from distillkit.spec import Recorded
from distillkit.teachers.base import CONFIG, BaseTeacher, Teacher
from distillkit.teachers.folder import FolderTeacher

DISCRETE = "distillkit.discrete."  # the denoiser of folders that do not say what they provide


class SavedTeacher(Recorded):
    """Stands in a configuration for the teacher of a folder, of the kind that the folder says.

    Args:
        path: the folder.
        trust: further permissions of the folder, see `distillkit.spec.from_spec`.
        dtype: see `BaseTeacher`.
    """

    provides: frozenset[str] = frozenset()  # nothing is known before the folder is read, see `offers`

    def __new__(cls, path: str, trust: list[str] | None = None, dtype: Dtype = "float32") -> BaseTeacher:
        # its own constructor says what is wrong with a folder that cannot be read
        kind = FolderTeacher if "denoiser" in cls.offers({"path": path}) else DiscreteFolderTeacher
        return kind(path, trust, dtype)

    def __init__(self, path: str, trust: list[str] | None = None, dtype: Dtype = "float32"):
        raise NotImplementedError  # it is there for parsers, which read its signature

    @classmethod
    def offers(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """The capabilities of the folder's kind, by teacher.yaml alone.

        A folder that cannot be read has all of them.
        """
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            config = read_yaml(Path(arguments["path"]) / CONFIG)
            if "provides" in config:
                discrete = "log_probs" in config["provides"]
            else:  # an earlier version's
                discrete = config["denoiser"]["class_path"].startswith(DISCRETE)
            return (DiscreteFolderTeacher if discrete else FolderTeacher).offers(arguments)
        return FolderTeacher.provides | DiscreteFolderTeacher.provides


# A folder may stand for a teacher of either kind: `requires` tells whether it fits.
Teacher.register(SavedTeacher)
DiscreteTeacher.register(SavedTeacher)
