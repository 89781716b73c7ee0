"""A teacher that lives in a folder: what `method=pretrain` writes and what the embedded teachers are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distillkit.diffusion.denoiser import check_facts
from distillkit.files import load_weights, read_yaml, save_weights, write_yaml
from distillkit.spec import from_spec, to_spec
from distillkit.teachers.base import Teacher

WEIGHTS, CONFIG = "model.safetensors", "teacher.yaml"


class Folder:
    """Mixin of teachers: a denoiser from `model.safetensors` and `teacher.yaml`.

    Args:
        path: the folder.
        trust: further packages whose network classes the folder may name.
    """

    def __init__(self, path: str, trust: list[str] | None = None):
        folder = Path(path)
        if not folder.is_dir():
            raise ValueError(
                f"teacher folder {path} does not exist: train one with `fit method=pretrain` or give its path as teacher.path=..."
            )
        config = read_yaml(folder / CONFIG)
        missing = [key for key in ("denoiser", "event_shape") if key not in config]
        if missing:
            raise ValueError(f"{folder / CONFIG} is damaged: it lacks {', '.join(missing)}")
        denoiser = from_spec(config["denoiser"], tuple(trust or ()))
        check_facts(config, folder / CONFIG, denoiser, self.denoiser_kind)
        best = config.get("best", self.best)
        if (
            not isinstance(best, dict)
            or best.get("solver") not in self.solvers
            or not isinstance(best.get("steps"), int)
        ):
            raise ValueError(f"{folder / CONFIG} is damaged: best cannot be {best!r}")
        load_weights(denoiser, folder / WEIGHTS)
        super().__init__(denoiser, tuple(config["event_shape"]), config.get("classes"), config.get("context") or ())
        self.best = best
        self._id = str(config.get("id") or folder.name)

    @property
    def id(self) -> str:
        return self._id


class FolderTeacher(Folder, Teacher):
    """A teacher of a Gaussian process from a folder."""


def save_teacher(path: str | Path, teacher: Teacher, **facts: Any) -> Path:
    """Write a teacher folder; `facts` (id, domain ...) join teacher.yaml."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / WEIGHTS, teacher.denoiser)
    config = {
        **facts,
        "best": teacher.best,
        "event_shape": list(teacher.event_shape),
        "classes": teacher.classes,
        "context": list(teacher.context),
        "denoiser": to_spec(teacher.denoiser),
    }
    write_yaml(folder / CONFIG, config)
    return folder
