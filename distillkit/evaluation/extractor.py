"""Feature extractors in one safetensors file, whose header holds the network's arguments."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from distillkit.files import write_atomic

Net = TypeVar("Net", bound=nn.Module)


def once(fit: Callable[..., Net]) -> Callable[..., Net]:
    """Wrap `fit(data, ...)` so that its last network is kept: one fit for several measurements.

    Each call returns a copy, which may be moved to another device.
    """
    known: list[tuple[Any, tuple, dict, Net]] = []

    @wraps(fit)
    def kept(data: Any, *settings: Any, **named: Any) -> Net:
        if not known or known[0][0] is not data or known[0][1:3] != (settings, named):
            known[:] = [(data, settings, named, fit(data, *settings, **named))]
        return copy.deepcopy(known[0][3])

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
    command = f"python -m {kind.__module__.rpartition('.')[0]}.ship --out {path.parent}"
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


def arguments(module: str, steps: int, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a script that trains a shipped extractor.

    They are `out`, `steps`, `seed` and `command`.

    Args:
        module: the script's module name, as for `python -m`.
        steps: default number of training steps.
        argv: the command line; None takes that of the process.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description="Train the features that are shipped.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and their README.md")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.command = f"{parser.prog} --out {args.out} --steps {args.steps} --seed {args.seed}"
    return args


def ship(path: Path, train: Callable[[], Net]) -> tuple[Net, dict[str, Any]]:
    """The network of `train`, written to `path`, and facts for its card (CPU seconds)."""
    start = time.process_time()
    net = train()
    seconds, content = time.process_time() - start, packed(net)
    write_atomic(path, lambda temporary: temporary.write_bytes(content))
    facts = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "parameters": sum(p.numel() for p in net.parameters()),
        "kilobytes": len(content) / 1000,
        "seconds": seconds,
    }
    print(json.dumps({"file": str(path)} | facts, indent=2))
    return net, facts
