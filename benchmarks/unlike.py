"""How well the embedded teachers denoise their data, and the same data changed.

    python benchmarks/unlike.py [--only domain=image]

The rows of docs/read_your_curves.md: `own / guess` at the three levels of `watch.likeness`. Bold is
what a run refuses.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WORLDS = {
    "digits": "domain=image method=dmd",
    "clips": "domain=video method=dmd",
    "clips that go on": "domain=video stage=continuation method=dmd",
    "coloured solids": "domain=text_to_3d method=dmd",
    "tones": "domain=music method=dmd",
    "tones that go on": "domain=music stage=sound_continuation method=dmd",
    "solids, structure": "domain=threed stage=structure method=dmd",
    "solids, features": "domain=threed stage=features method=dmd",
    "photographs": "domain=super_resolution method=dmd",
    "rooms": "domain=scene method=dmd",
    "streets, range images": "domain=lidar stage=range method=dmd",
    "streets, points": "domain=lidar stage=points method=dmd",
    "folds": "domain=protein method=dmd",
    "toy Gaussian": "domain=toy method=dmd",
    "toy, labelled": "domain=toy method=dmd teacher=labelled",
    "text": "domain=discrete method=lsd",
    "text, uniform noise": "domain=discrete method=lsd teacher.noise=uniform",
    "Potts": "domain=discrete method=lsd teacher=potts data=world",
    "countdown": "domain=discrete method=lsd teacher=countdown data=world",
}
NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "held-out data": lambda x: x,
    "negative": lambda x: -x,
    "half as large": lambda x: x / 2,
    "twice as large": lambda x: 2 * x,
}
TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    "held-out data": lambda x: x,
    "positions permuted": lambda x: x[:, shuffled(x.shape[1])],
    "tokens renamed": lambda x: shuffled(int(x.max()) + 1)[x],
}


class Measured(Exception):
    """The run has told what it was made for."""


def shuffled(num: int) -> Tensor:
    return torch.randperm(num, generator=torch.Generator().manual_seed(0))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="How well embedded teachers denoise their data, and changed data.")
    parser.add_argument("--only", default="", help="worlds whose words have this in them")
    args = parser.parse_args(argv)
    if not any(args.only in words for words in WORLDS.values()):
        parser.error(f"--only: no world has {args.only!r} in its words; some are {', '.join([*WORLDS.values()][::4])}")
    for changes in (NUMBERS, TOKENS):
        print(f"| teacher | {' | '.join(changes)} |\n|---|" + "---|" * len(changes))
        for name, words in WORLDS.items():
            if args.only in words and ("discrete" in words) == (changes is TOKENS):
                print(f"| {name} | {' | '.join(measure(words.split(), changes))} |", flush=True)
        print()
    return 0


def measure(words: list[str], changes: dict[str, Callable[[Tensor], Tensor]]) -> list[str]:
    """The cells of one world, from a run that ends before its first step."""
    import distillkit.callbacks.watch as callback
    from distillkit.cli import front
    from distillkit.watch.before import GUESS, OWN, OWN_NATS, encoded
    from distillkit.watch.likeness import Judge

    cells = []

    def look(model: Any, data: Any, reference: Any) -> None:
        judge = Judge(model.teacher, reference.unguided, reference.teacher_cond, data.batch_size)
        real, limit = encoded(model, data, reference), OWN if judge.gaussian else OWN_NATS
        with torch.no_grad():
            for change in changes.values():
                levels = judge.likeness(change(real))
                said = "; ".join(f"{level.own:.2f} / {level.guess:.2f}" for level in levels)
                refused = any(level.own > limit and level.guess > GUESS for level in levels)
                cells.append(f"**{said}**" if refused else said)
        raise Measured

    callback.look, before = look, callback.look
    said = io.StringIO()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(),
            contextlib.suppress(Measured),
        ):
            front.main(["fit", *words, "--out", f"{folder}/run"])
    finally:
        callback.look = before
    return cells or [said.getvalue().strip().splitlines()[-1]]


if __name__ == "__main__":
    sys.exit(main())
