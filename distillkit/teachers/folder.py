"""Teachers that live in a folder: those of `method=pretrain` and the embedded ones."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distillkit.codec import Codec
from distillkit.diffusion.denoiser import check_facts
from distillkit.diffusion.start import Start
from distillkit.files import load_weights, read_yaml
from distillkit.networks.dtypes import Dtype
from distillkit.rollouts import Continuation
from distillkit.spec import from_spec, named
from distillkit.teachers.base import CONFIG, WEIGHTS, Teacher

MOST_STEPS = 10_000  # at which a teacher may be at its best


class Folder:
    """Mixin of teachers: a denoiser from `model.safetensors` and `teacher.yaml`.

    Args:
        trust: further permissions of the folder, see `distillkit.spec.from_spec`: packages whose
            network classes it may name, and paths outside of it that it may read.
        dtype: see `BaseTeacher`.

    Attributes:
        home: the folder of an embedded teacher.
        drop: the share of samples that it was trained on without their condition; None where
            teacher.yaml does not say it.
    """

    parts: dict[str, type] = {"codec": Codec, "continuation": Continuation}  # recorded objects besides the denoiser
    home: Path | None = None

    def __init__(self, path: str, trust: list[str] | None = None, dtype: Dtype = "float32"):
        folder = Path(path)
        if not folder.is_dir():
            raise ValueError(
                f"teacher folder {path} does not exist: train one with `fit method=pretrain` or give its path as teacher.path=..."
            )
        config = read_yaml(folder / CONFIG)
        missing = [key for key in ("denoiser", "event_shape") if key not in config]
        if missing:
            raise ValueError(f"{folder / CONFIG} is damaged: it lacks {', '.join(missing)}")
        with named(folder / CONFIG):
            denoiser = from_spec(config["denoiser"], tuple(trust or ()), folder, folder / WEIGHTS)
            parts = {name: from_spec(config[name], tuple(trust or ()), folder) for name in self.parts if name in config}
        check_facts(config, folder / CONFIG, denoiser, self.denoiser_kind)
        best = config.get("best", self.best)
        if not (isinstance(best, dict) and best.get("solver") in [*self.solvers] and _steps(best.get("steps"))):
            raise ValueError(f"{folder / CONFIG} is damaged: best cannot be {repr(best)[:80]}")
        for name, part in parts.items():
            if not isinstance(part, self.parts[name]):
                raise ValueError(f"{folder / CONFIG} is damaged: {name} cannot be {repr(config[name])[:80]}")
        load_weights(denoiser, folder / WEIGHTS)
        context = config.get("context") or ()
        super().__init__(denoiser, tuple(config["event_shape"]), config.get("classes"), context, **parts, dtype=dtype)
        self.best, self.drop = best, config.get("drop")
        self._id = str(config.get("id") or folder.name)

    @classmethod
    def offers(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """As of the class, with classes and decoder as teacher.yaml, the only file read, says.

        The constructor raises the errors of a folder.
        """
        with suppress(OSError, ValueError, TypeError):
            arguments = {**arguments, **read_yaml(Path(arguments.get("path", cls.home)) / CONFIG)}
        said = arguments.get("provides")
        return super().offers(arguments) | (
            {"classes", "decoder"}.intersection(said) if isinstance(said, list) else set()
        )

    @property
    def id(self) -> str:
        return self._id


def _steps(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_STEPS


class FolderTeacher(Folder, Teacher):
    """A teacher of a Gaussian process from a folder."""

    parts = {**Folder.parts, "start": Start}


class EmbeddedTeacher(FolderTeacher):
    """A teacher that ships with the package, in its `home`.

    Args:
        dtype: see `BaseTeacher`.
    """

    def __init__(self, dtype: Dtype = "float32"):
        super().__init__(str(self.home), dtype=dtype)
