"""What is measured before the first step, from a batch and a few network passes."""

from __future__ import annotations

from typing import Any

from distillkit.watch.causes import Finding
from distillkit.watch.reference import Reference


def look(model: Any, data: Any, reference: Reference) -> tuple[dict[str, float], list[Finding]]:
    """The facts of data and teacher, and the causes of failure that they show."""
    return {}, []
