"""Files that are either whole or absent, and weights without pickles."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call `write(temporary)` and move the result to `path`: a reader sees the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's 0600 is for secrets
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file atomically."""
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_weights(path: str | Path, module: nn.Module) -> Path:
    """A module's state as safetensors, atomically."""
    from safetensors.torch import save_file

    state = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
    return write_atomic(path, lambda temporary: save_file(state, temporary))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: the file is missing, truncated or not safetensors (a pickle, for example, is never opened).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a folder written by distillkit")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}): copy it again; pickles are not read"
        ) from None


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Fill a module from a safetensors file, strictly."""
    state = read_weights(path)
    try:
        module.load_state_dict(state)  # copies into the module's own precision
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(f"{path} does not fit the network its folder describes: {first}") from None


def fill_weights(network: nn.Module, state: dict[str, Tensor], source: object) -> None:
    """Put weights of others in place, in float32, or say in one sentence which do not fit.

    Args:
        source: where they come from, for that sentence.
    """
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise ValueError(
            f"{source} does not fit its configuration: {len(missing)} weights are missing {missing[:3]}, {len(unknown)} "
            f"unknown {unknown[:3]}"
        )
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"{source} does not fit its configuration: {name} is {list(value.shape)} instead of {list(own[name].shape)}"
            )
    network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)


def hash_weights(digest: hashlib._Hash, module: nn.Module) -> None:
    """Add a module's state to a digest: names and bytes, in the order of the names."""
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def read_yaml(path: str | Path) -> dict:
    """A yaml file with a mapping at its top (safe loader)."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a folder written by distillkit")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as yaml: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is damaged: it should hold a mapping")
    return data


def read_npz(path: str | Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of the arrays `keys` that an .npz file holds.

    Raises:
        ValueError: the file is not a whole .npz file, or these are no plain arrays (pickled objects are never opened).
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is none or is cut off")
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in keys if key in file.files}
        if other := [key for key, value in arrays.items() if not isinstance(value, np.ndarray)]:
            raise ValueError(f"{', '.join(other)} is no array")
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(
            f"{path} cannot be read as an .npz file of plain arrays ({error}); write it with np.savez"
        ) from None
    return arrays


def write_yaml(path: str | Path, data: dict) -> Path:
    """A mapping as yaml, keys in the order given."""
    import yaml

    return write_text(path, yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120))
