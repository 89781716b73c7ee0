"""Turns a released checkpoint of Proteina into a teacher folder.

python -m domains.protein.convert CHECKPOINT.ckpt FOLDER

A checkpoint is a pickle. It is read with PyTorch's restricted unpickler, which runs no code from
it; the classes of OmegaConf, in which Proteina keeps its configuration, come as inert stand-ins
that hold data. Anything else is refused.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow
from distillkit.errors import Arguments, Failure, exit_code, one_line
from distillkit.files import fill_weights, read_checkpoint, write_text
from distillkit.teachers.base import Teacher
from distillkit.teachers.folder import CONFIG
from domains.protein.proteina import CATH, FOLDS, ProteinaTransformer

# Settings that the network here has in one value only.
GIVEN = {
    "residual_mha": True,
    "residual_transition": True,
    "parallel_mha_transition": False,
    "use_attn_pair_bias": True,
}
TRAINING_ONLY = (
    "pair_head_prediction."  # guesses distances from pairs for a further loss; nothing that is sampled needs it
)


class Inert:
    """Stands for an object of OmegaConf: it takes attributes and does nothing."""


OMEGACONF = ("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata")
OMEGACONF += tuple(f"nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean"))
HARMLESS = [(Inert, name) for name in ("typing.Any", *(f"omegaconf.{name}" for name in OMEGACONF))]
HARMLESS += [defaultdict, dict, list, int]
WANTED = "a checkpoint of Proteina"


def convert(checkpoint: str | Path, folder: str | Path, cath: str | Path | None = None, longest: int = 256) -> Path:
    """Write the folder that `domains.protein.proteina.Proteina` reads.

    Args:
        checkpoint: the Lightning checkpoint, with `state_dict` and `hyper_parameters`.
        folder: where to; must not hold a teacher yet.
        cath: the released `cath_label_mapping.pt`, for `Proteina.fold`.
        longest: N, residues of the longest chain that it is asked for (`teacher.event_shape` may
            say otherwise).

    Raises:
        ValueError: the checkpoint holds more than data, is not Proteina's, or its weights are not
            those of its configuration.
    """
    folder = Path(folder)
    if (folder / CONFIG).exists():
        raise ValueError(f"{folder} holds a teacher already: give another folder")
    config, state = parts(read_checkpoint(checkpoint, HARMLESS, WANTED), checkpoint)
    target = config["model"]["target_pred"]
    network = build(config["model"]["nn"], target, state, checkpoint)
    fill_weights(network, state, checkpoint)

    denoiser = Denoiser(network, RectifiedFlow(), "flow" if target == "v" else "x0")
    folds = dict(zip(FOLDS, fold_classes(state), strict=False))
    tables = None if cath is None else read_cath(cath, list(folds.values()))
    teacher = Teacher(denoiser, (longest, 3), folds, context=("mask",))
    teacher.best = {"solver": "sde", "steps": 400}
    facts = {"id": Path(checkpoint).stem, "domain": "protein", "license": "that of the released checkpoint"}
    teacher.save(folder, **facts, self_conditioning=bool((config.get("training") or {}).get("self_cond")))
    if tables:
        write_text(folder / CATH, json.dumps(tables))
    return folder


def parts(held: Any, source: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration `cfg_exp` in a checkpoint, and the weights for sampling, LoRA merged.

    Raises:
        ValueError: the checkpoint lacks them, or describes what is not known here.
    """
    try:
        config = plain(held["hyper_parameters"]["cfg_exp"])
        settings, _, lora = config["model"]["nn"], config["model"]["target_pred"], config.get("lora") or {}
        state = {name.removeprefix("nn."): value for name, value in held["state_dict"].items()}
        if not isinstance(settings, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("they are of other types")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{source} is no checkpoint of Proteina: it lacks state_dict or hyper_parameters.cfg_exp.model ({error})"
        ) from None
    for name, value in GIVEN.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{source} has model.nn.{name} = {settings[name]}; only {value} is known here")
    state = {name: value for name, value in state.items() if not name.startswith(TRAINING_ONLY)}
    return config, merge_lora(state, lora)


def plain(value: Any) -> Any:
    """OmegaConf's containers, or their stand-ins, as dicts and lists.

    Interpolations stay as they are written.
    """
    if isinstance(value, Inert):
        inner = vars(value)
        return plain(inner["_content"] if "_content" in inner else inner.get("_val"))
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def merge_lora(state: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
    """Low-rank changes added to their weights: `W + (alpha / r) B A`.

    The names are those of loralib (arXiv 2106.09685).
    """
    merged = {name: value for name, value in state.items() if not name.endswith((".lora_A", ".lora_B"))}
    for name in [name for name in state if name.endswith(".lora_A")]:
        stem, a = name.removesuffix(".lora_A"), state[name].float()
        b, weight = state.get(f"{stem}.lora_B"), merged.get(f"{stem}.weight")
        if b is None or weight is None or "lora_alpha" not in settings:
            raise ValueError(
                f"{stem} is changed by LoRA, but its lora_B, its weight or cfg_exp.lora.lora_alpha is missing"
            )
        change = settings["lora_alpha"] / len(a) * (b.float() @ a)
        merged[f"{stem}.weight"] = weight.float() + (change.T if ".embedding_" in stem else change)
    return merged


def fold_classes(state: dict[str, Tensor]) -> list[int]:
    """The numbers of classes, architectures and topologies in the checkpoint; empty without folds.

    The row for none is not counted.
    """
    rows = {
        level: len(v) for name, v in state.items() for level in "CAT" if name.endswith(f".embedding_{level}.weight")
    }
    return [rows[level] - 1 for level in "CAT"] if len(rows) == 3 else []


def build(settings: dict[str, Any], target: str, state: dict[str, Tensor], source: Any) -> ProteinaTransformer:
    """The network of `model.nn`, without weights."""
    known = inspect.signature(ProteinaTransformer).parameters
    arguments = {name: value for name, value in settings.items() if name in known and value is not None}
    try:
        with torch.device("meta"):
            return ProteinaTransformer(**arguments, target_pred=target, fold_classes=fold_classes(state) or [0, 0, 0])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} describes a network that is not known here: {one_line(error)}") from None


def read_cath(path: str | Path, sizes: list[int]) -> list[dict[str, int]]:
    """The tables from code to number of classes, architectures and topologies."""
    held = read_checkpoint(path, HARMLESS, WANTED)
    tables = [held.get(level) for level in "CAT"] if isinstance(held, dict) else [None]
    if not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path} does not hold the tables C, A and T of CATH codes")
    found = [len(table) for table in tables]
    if found != sizes or any(sorted(table.values()) != list(range(len(table))) for table in tables):
        raise ValueError(
            f"{path} numbers {found} classes, architectures and topologies, the checkpoint {sizes or 'none'}"
        )
    return tables


def command(arguments: Sequence[str]) -> None:
    parser = Arguments(
        prog="python -m domains.protein.convert", description="A checkpoint of Proteina as a teacher folder."
    )
    parser.add_argument("checkpoint", help="the released .ckpt")
    parser.add_argument("folder", help="where to write the teacher")
    parser.add_argument("--cath", help="cath_label_mapping.pt, to name folds by their code")
    parser.add_argument("--longest", type=int, default=256, help="residues of the longest chain (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        folder = convert(given.checkpoint, given.folder, given.cath, given.longest)
    except (ValueError, OSError) as error:
        raise Failure(one_line(error)) from error
    print(f"teacher: {folder}\nuse it with teacher=proteina teacher.path={folder}")


def main(arguments: Sequence[str]) -> int:
    return exit_code(command, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
