"""distillkit: slow generative models in, one-step and few-step students out."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public names and their modules, imported on first use: the command line answers without torch.
_HOMES = {
    "DistillData": "distillkit.data",
    "Distiller": "distillkit.methods.base",
    "Student": "distillkit.students.base",
    "Teacher": "distillkit.teachers.base",
    "UsageError": "distillkit.errors",
    "load_student": "distillkit.students.base",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'distillkit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
