"""Checks of folders for transformers and diffusers: they may not choose code or lead elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LIBRARIES = ("diffusers", "transformers", None)  # the sources of a pipeline's parts; None: an absent part
OWN = (  # parts that lie beside their pipelines in the package diffusers
    ["audioldm2", "AudioLDM2ProjectionModel"],
    ["audioldm2", "AudioLDM2UNet2DConditionModel"],
    ["stable_audio", "StableAudioProjectionModel"],
    ["stable_audio_3", "StableAudio3DurationEmbedder"],
)


def check_foreign(root: Path, own_code: bool = False) -> None:
    """Checks that the folder of a model or a pipeline chooses no code.

    Args:
        root: the folder; the configurations in it and in its sub-folders are checked.
        own_code: allow code of its own (`auto_map`), for a caller that does not run it.

    Raises:
        ValueError: the folder names code of its own, kernels of a hub, parts from other packages,
            or another model as its base; or a configuration is not readable.
    """
    for file in sorted({*root.glob("*/*.json"), *root.rglob("*.json")}):
        if file.name == "adapter_config.json":
            raise ValueError(
                f"{file} would load another model in the place of this one: merge the adapter and remove it"
            )
        if not file.name.endswith(("config.json", "model_index.json")):
            continue
        try:
            left = [json.loads(file.read_text(encoding="utf-8"))]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not readable as json: {error}") from None
        if file.name == "model_index.json":
            _check_parts(file, left[0])
        while left:
            value = left.pop()
            if isinstance(value, list):
                left += value
            if not isinstance(value, dict):
                continue
            if "auto_map" in value and not own_code:
                raise ValueError(
                    f"{file} names code of its own (auto_map), which is not run: remove it, or take another copy"
                )
            for key, inner in value.items():
                if key.endswith("implementation") and "/" in str(inner):
                    raise ValueError(f"{file} says {key} = {inner!r:.80}, code from a hub, which is not run: remove it")
                left.append(inner)


def _check_parts(file: Path, index: Any) -> None:
    """Checks that the parts of a diffusers pipeline are classes of known libraries.

    A list of numbers is a setting, not a part.
    """
    for part, value in index.items() if isinstance(index, dict) else ():
        if not isinstance(value, list) or value and all(type(number) in (int, float) for number in value):
            continue
        if not value or value[0] not in LIBRARIES and value not in OWN:
            raise ValueError(
                f"{file} takes its {part} from {value!r:.80}: only parts of diffusers and transformers are read"
            )
