"""Feature extractors in one safetensors file, whose header holds the network's arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def once(fit: Callable[..., Net]) -> Callable[..., Net]:
    """Wrap `fit(data, ...)` so that its last network is kept: one fit for several measurements."""
    known: list[tuple[Any, tuple, dict, Net]] = []

    @wraps(fit)
    def kept(data: Any, *settings: Any, **named: Any) -> Net:
        if not known or known[0][0] is not data or known[0][1:3] != (settings, named):
            known[:] = [(data, settings, named, fit(data, *settings, **named))]
        return known[0][3]

    return kept


def packed(net: Any) -> bytes:
    """The weights of a network in safetensors format, its arguments `net.config` in the header."""
    state = {name: value.contiguous().cpu() for name, value in net.state_dict().items()}
    return save(state, metadata={"config": json.dumps(net.config)})


def load_extractor(kind: type[Net], path: Path) -> Net:
    """Load a network of class `kind`, frozen, from a file that `packed` made.

    Raises:
        ValueError: there is no such file, or it is damaged; the message says how to get it.
    """
    command = f"python -m {kind.__module__} --out {path.parent}"
    if not path.is_file():
        raise ValueError(f"no classifier at {path}; train it by: {command}")
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads(file.metadata()["config"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        net = kind(**config)
        net.load_state_dict(state)
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is no classifier of {kind.__module__} ({error!r}); copy it again") from None
    return net.eval().requires_grad_(False)
