"""Turns a released checkpoint of LiDiff into a folder.

python -m domains.lidar.lidiff.convert diff_net.ckpt FOLDER
python -m domains.lidar.lidiff.convert refine_net.ckpt FOLDER

The first is a teacher, the second a refinement. A checkpoint is a pickle. It is read with PyTorch's
restricted unpickler, which runs no code from it; the classes by which Lightning names its callbacks
come as inert stand-ins. Anything else is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import DiscreteVarianceExploding
from distillkit.diffusion.start import Start
from distillkit.errors import Arguments, Failure, exit_code, one_line
from distillkit.files import fill_weights, read_checkpoint
from distillkit.spec import bounded
from distillkit.teachers.base import Teacher
from distillkit.teachers.folder import CONFIG
from domains.lidar import refinement
from domains.lidar.codec import Completion
from domains.lidar.lidiff.network import BOTTOM, LiDiffNetwork
from domains.lidar.lidiff.teacher import LiDiff
from domains.lidar.refinement import Refinement, save_refinement

POINTS, REPEAT = 180_000, 10  # of a sample in the release, and for each of the scan
REFINE = "model_refine."
PARTS = ("partial_enc.", "model.")
LICENSE = "MIT, Photogrammetry & Robotics Bonn"


class Inert:
    """Stands for a class whose name alone is in a checkpoint."""


CALLBACKS = ("model_checkpoint.ModelCheckpoint", "lr_monitor.LearningRateMonitor")
HARMLESS = [(Inert, f"pytorch_lightning.callbacks.{name}") for name in CALLBACKS]


def convert(checkpoint: str | Path, folder: str | Path) -> Path:
    """Write the folder that `LiDiff` or `load_refinement` reads.

    Args:
        checkpoint: the Lightning checkpoint, or its `state_dict` alone.
        folder: where to; must not hold a teacher or a refinement yet.

    Raises:
        ValueError: the checkpoint holds more than data, is not LiDiff's, or has other weights; or
            the folder is taken.
    """
    folder = Path(folder)
    if taken := [name for name in (CONFIG, refinement.CONFIG) if (folder / name).exists()]:
        raise ValueError(f"{folder} holds {taken[0]} already: give another folder")
    held = read_checkpoint(checkpoint, HARMLESS, "diff_net.ckpt or refine_net.ckpt of LiDiff")
    state, settings = weights(held, checkpoint), settings_of(held)
    size = settings("data", "resolution", 0.05)
    facts = {"id": Path(checkpoint).stem, "domain": "lidar", "license": LICENSE}
    with bounded([value.numel() for value in state.values()]):
        if all(name.startswith(REFINE) for name in state):
            state = {name.removeprefix(REFINE): value for name, value in state.items()}
            made = Refinement(widths(state, checkpoint), size, factor(state, checkpoint))
            fill_weights(made, state, checkpoint)
            return save_refinement(made, folder, **facts)
        inner = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        process = DiscreteVarianceExploding(
            settings("diff", "t_steps", 1000),
            settings("diff", "beta_start", 3.5e-5),
            settings("diff", "beta_end", 0.007),
            settings("diff", "beta_func", "linear"),
        )
        network = LiDiffNetwork(widths(inner, checkpoint), size, process.num_steps)
        fill_weights(network, state, checkpoint)
    points = settings("data", "num_points", POINTS)
    teacher = Teacher(
        Denoiser(network, process, "eps"), (points, 3), context=("part",), codec=Completion(REPEAT), start=Start("part")
    )
    teacher.best, teacher.provides = {"solver": "ddim", "steps": 50}, LiDiff.provides
    return teacher.save(folder, **facts)


def weights(held: Any, source: Any) -> dict[str, Tensor]:
    """The weights by their names in the checkpoint, all finite.

    Raises:
        ValueError: they are of no network of LiDiff.
    """
    state = held.get("state_dict", held) if isinstance(held, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{source} is no checkpoint of LiDiff: it holds no state_dict of tensors")
    for known in (PARTS, (REFINE,)):
        if all(str(name).startswith(known) for name in state):
            break
    else:
        other = next(name for name in state if not str(name).startswith((*PARTS, REFINE)) or REFINE in str(name))
        raise ValueError(f"{source} is no checkpoint of LiDiff: besides {' and '.join(PARTS)} it holds {other}")
    for name, value in state.items():
        if not value.isfinite().all():
            raise ValueError(f"{source} holds NaN or infinity in {name}: its network was lost in training")
    return state


def settings_of(held: Any) -> Any:
    """`settings(part, key, default)`: a value of the checkpoint's hyper_parameters."""
    known = held.get("hyper_parameters") if isinstance(held.get("hyper_parameters"), dict) else {}

    def settings(part: str, key: str, default: Any) -> Any:
        there = known.get(part)
        return there.get(key, default) if isinstance(there, dict) else default

    return settings


def widths(state: dict[str, Tensor], source: Any) -> list[int]:
    """The nine widths of a U-Net with these weights."""
    names = ["stem.0.kernel", *(f"stage{i}.1.net.0.kernel" for i in range(1, BOTTOM + 1))]
    names += [f"up{i}.0.net.0.kernel" for i in range(1, BOTTOM + 1)]
    return [_shape(state, name, source)[-1] for name in names]


def factor(state: dict[str, Tensor], source: Any) -> int:
    """The number of points that a refinement with these weights makes of each."""
    return _shape(state, "last.2.weight", source)[0] // 3


def _shape(state: dict[str, Tensor], name: str, source: Any) -> torch.Size:
    if name not in state or not state[name].ndim:
        raise ValueError(f"{source} is no checkpoint of LiDiff: it lacks {name}")
    return state[name].shape


def command(arguments: Sequence[str]) -> None:
    parser = Arguments(prog="python -m domains.lidar.lidiff.convert", description="A checkpoint of LiDiff as a folder.")
    parser.add_argument("checkpoint", help="the released diff_net.ckpt or refine_net.ckpt")
    parser.add_argument("folder", help="where to write")
    given = parser.parse_args(arguments)
    try:
        folder = convert(given.checkpoint, given.folder)
    except (ValueError, OSError) as error:
        raise Failure(one_line(error)) from error
    teacher = (folder / CONFIG).exists()
    use = f"teacher=lidiff teacher.path={folder}" if teacher else f"vars.codec.refine={folder}"
    print(f"{'teacher' if teacher else 'refinement'}: {folder}\nuse it with {use}")


def main(arguments: Sequence[str]) -> int:
    return exit_code(command, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
