"""Files that are whole or absent, and weights without pickles."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillkit.errors import one_line
from distillkit.runs import PARTIAL

if TYPE_CHECKING:  # the command line reads yaml without torch
    import numpy as np
    from torch import Tensor, nn


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call `write(temporary)` and move the result to `path`, so that readers never see a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=PARTIAL, suffix=f"-{path.name}", dir=path.parent)
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
    """Save a module's state as safetensors, atomically."""
    return save_tensors(path, module.state_dict())


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> Path:
    """Save tensors by name as safetensors, atomically."""
    from safetensors.torch import save_file

    state = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    return write_atomic(path, lambda temporary: save_file(state, temporary))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        ValueError: the file is missing, truncated or not safetensors (pickles are never opened),
            or holds NaN or infinity.
    """
    import torch

    state = read_tensors(path)
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value.float() if value.itemsize == 1 else value).all():
            raise ValueError(
                f"{path} holds NaN or infinity in {name}: its network was lost in training, so it is not used"
            )
    return state


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, NaN included; raises as `read_weights` otherwise."""
    from safetensors.torch import load_file

    return _safely(path, load_file)


def shapes(path: str | Path) -> dict[str, list[int]]:
    """Shapes by name, from the header of a safetensors file; raises as `read_weights`."""
    from safetensors import safe_open

    def header(file: Path) -> dict[str, list[int]]:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 (no mapping)

    return _safely(path, header)


def sizes(path: str | Path) -> list[int]:
    """Numbers in each tensor, from the header of a safetensors file; raises as `read_weights`."""
    return [math.prod(shape) for shape in shapes(path).values()]


def _safely(path: str | Path, read: Callable[[Path], Any]) -> Any:
    """Returns `read(path)`, or raises a one-sentence ValueError about the safetensors file."""
    from safetensors import SafetensorError

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a folder written by distillkit")
    try:
        return read(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}): copy it again; pickles are not read"
        ) from None


def read_checkpoint(
    path: str | Path,
    harmless: Sequence[Any],
    wanted: str,
    mend: str = "save its state_dict and hyper_parameters alone, as plain tensors, dicts and lists",
) -> Any:
    """The contents of a file of `torch.save` by others, read without running code from it.

    Args:
        path: the file, a pickle: PyTorch's restricted unpickler opens it.
        harmless: what it may name besides plain data: classes, and pairs of a class and the name
            for which it stands in.
        wanted: the files that are read, for the error about a missing one.
        mend: what helps where it might run code.

    Raises:
        ValueError: it is missing or damaged, or reading it might run code.
    """
    import torch

    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give {wanted}")
    try:
        with torch.serialization.safe_globals([*harmless]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # of many kinds, for damaged files too
        asked = re.search(r"GLOBAL (\S+) was not|unsupported GLOBAL (\S+)", str(error))
        if asked is None:
            raise ValueError(f"{path} cannot be read as plain tensors and settings ({one_line(error, 120)})") from None
        raise ValueError(
            f"{path} asks for {asked[1] or asked[2]}, which is no plain data, so that reading it could run code: where you "
            f"trust it, {mend}"
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
    """Load weights from elsewhere in float32; a ValueError names those that do not fit.

    Args:
        source: their origin, for the error.
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
    hash_tensors(digest, module.state_dict())


def hash_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Add tensors to a digest: names and bytes, in the order of the names."""
    import torch

    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


MOST_TEXT, MOST_NODES, DEEPEST = 2**22, 10**6, 64  # of a text file: bytes, values with all aliases written out, levels


def read_yaml(path: str | Path) -> dict:
    """Read a yaml file with a mapping at its top (safe loader).

    Raises:
        ValueError: the file is missing, no yaml, no mapping, or larger or deeper than any that
            distillkit writes.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a folder written by distillkit")
    if path.stat().st_size > MOST_TEXT:
        raise ValueError(
            f"{path} is damaged: it has {path.stat().st_size:,} bytes, more than the {MOST_TEXT:,} that are read"
        )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = path.read_text(encoding="utf-8")
        fits = _bounded(yaml.parse(text, loader))
        data = yaml.load(text, loader) if fits else None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not readable as yaml: {str(error).splitlines()[0]}") from None
    if not fits:
        raise ValueError(f"{path} is damaged: it holds more than {MOST_NODES:,} values or more than {DEEPEST} levels")
    if not isinstance(data, dict):
        raise ValueError(f"{path} is damaged: it should hold a mapping")
    return data


def read_json(path: str | Path) -> Any:
    """Read a JSON file; whole numbers that no float can hold are infinite.

    Raises:
        ValueError: the file is missing, may not be read, is no JSON, or is larger or deeper than
            any that distillkit writes.
    """
    path = Path(path)
    try:
        if not path.is_file() or path.stat().st_size > MOST_TEXT:
            raise ValueError
        data = json.loads(path.read_text(encoding="utf-8"), parse_int=_whole_number)
        if not _shallow(data, DEEPEST):
            raise ValueError
    except PermissionError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from None
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{path.name} is damaged") from None
    return data


def _whole_number(digits: str) -> float:
    return float(digits) if len(digits) > 308 else int(digits)


def _shallow(node: Any, levels: int) -> bool:
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return levels > 0 and all(_shallow(each, levels - 1) for each in inner)


def _bounded(events: Iterable[Any]) -> bool:
    """Whether a yaml document with all aliases expanded stays in bounds; stops reading if not."""
    import yaml

    known: dict[str, tuple[int, int]] = {}  # values and levels of an anchor
    parts: list[list[Any]] = [[None, 0, 0]]  # the collections that are open: anchor, values, levels
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            parts.append([event.anchor, 1, 0])
            if len(parts) > DEEPEST:
                return False
            continue
        if isinstance(event, yaml.AliasEvent):
            endless = any(event.anchor == anchor for anchor, *_ in parts)  # it stands inside of its own anchor
            size, depth = (MOST_NODES + 1, 0) if endless else known.get(event.anchor, (0, 0))
        elif isinstance(event, yaml.ScalarEvent):
            size, depth = 1 + len(event.value) // 64, 0
            known[event.anchor] = size, depth
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size, depth = parts.pop()
            depth += 1
            known[anchor] = size, depth
        else:
            continue
        parts[-1][1] += size
        parts[-1][2] = max(parts[-1][2], depth)
        if parts[-1][1] > MOST_NODES or len(parts) + depth > DEEPEST:
            return False
    return True


def read_npz(path: str | Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the arrays among `keys` that an .npz file holds.

    Raises:
        ValueError: the file is not a whole .npz file, or these are no plain arrays (pickled objects
            are never opened).
    """
    import numpy as np

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
    """Save a mapping as yaml, keys in the order given."""
    import yaml

    return write_text(path, yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120))
