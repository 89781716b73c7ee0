"""Objects that remember how they were made, so that a folder on disk can say it and a later process can repeat it."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import torch

TRUSTED = ("distillkit", "domains")


class Recorded:
    """Mixin: keeps the constructor's arguments, for `to_spec`."""

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        # straight into __dict__: nn.Module refuses attributes before its own __init__
        self.__dict__["_arguments"] = dict(
            inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs).arguments
        )
        return self


def to_spec(value: Any) -> Any:
    """`{class_path, init_args}` of a `Recorded` object, at every depth; plain data stays plain."""
    if isinstance(value, Recorded):
        arguments = dict(value._arguments)
        arguments.pop("self", None)
        arguments.update(arguments.pop("kwargs", {}))
        cls = type(value)
        made = {name: to_spec(argument) for name, argument in arguments.items()}
        return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": made}
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {k: to_spec(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_spec(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{type(value).__name__} cannot be written to a folder: derive it from distillkit.spec.Recorded")


def from_spec(spec: Any, trust: tuple[str, ...] = ()) -> Any:
    """The object that `to_spec` described. Only classes of the packages in `TRUSTED` and `trust` are imported.

    Raises:
        ValueError: for a class from elsewhere; a folder from a stranger must not choose what gets imported.
    """
    if isinstance(spec, dict) and "class_path" in spec:
        path, arguments = spec["class_path"], spec.get("init_args") or {}
        if not isinstance(path, str) or not isinstance(arguments, dict):
            raise ValueError(f"the folder is damaged: class_path {path!r} with init_args {arguments!r} names no object")
        module, _, name = path.rpartition(".")
        allowed = (*TRUSTED, *trust)
        if module.partition(".")[0] not in allowed:
            raise ValueError(
                f"the folder names class {path}, which is outside {', '.join(allowed)}: pass trust=(package,) if you trust it"
            )
        try:
            cls = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            raise ValueError(f"the folder names {path}, which cannot be imported here ({error})") from error
        if not (isinstance(cls, type) and issubclass(cls, Recorded)):
            raise ValueError(f"the folder names {path}, which is no class that distillkit writes to folders")
        arguments = {k: from_spec(v, trust) for k, v in arguments.items()}
        if "trust" in arguments:
            arguments["trust"] = list(trust)  # a folder does not choose whom to trust
        try:
            return cls(**arguments)
        except TypeError as error:
            raise ValueError(
                f"the folder's {path} cannot be built ({error}); was it written by another version?"
            ) from error
    if isinstance(spec, dict):
        return {k: from_spec(v, trust) for k, v in spec.items()}
    if isinstance(spec, list):
        return [from_spec(v, trust) for v in spec]
    return spec
