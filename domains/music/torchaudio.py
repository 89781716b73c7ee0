"""The user's torchaudio, for resampling and mel bands; without it both are computed here."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def functional() -> Any:
    """The module `torchaudio.functional`, or None where it does not import."""
    try:
        from torchaudio import functional
    except Exception:  # a build for another torch raises OSError
        return None
    return functional
