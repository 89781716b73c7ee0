"""Prepared designs: what RFD4-Proteina is asked for, as tensors.

The package rfd4-proteina-prep makes them of an annotated structure file; a file here holds what it
returns, `safetensors.torch.save_file(features, "design.safetensors")`. What the tensors mean is
that package's own: their names and values are kept, so that any task is passed on as it is.

N: tokens (a residue is one) of the largest design.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.files import read_tensors
from domains.protein.data import UNKNOWN

MASKS = ("padding_mask", "is_in_context_conditioning", "supports_local_latent")  # bool [1, N] each
NEEDED = (*MASKS, "condition_sequence_1_residue", "molecule_iid")  # the last two int [1, N] each
UNUSED = ("coords_nm",)  # the input's own coordinates, for partial diffusion alone
PAIRS = ("token_bond_path_length", "bond_mask", "bond_order", "is_aromatic", "canonical_polymer_ordering")
PAIRS += ("na_ss_pair", "na_ss_pair_mask")  # [1, N, N] each
GROUPS, RANKS = "condition_CoordinateGroup_1_atom", "_prepared_coord_group_seq"


def read_designs(path: str) -> dict[str, Tensor]:
    """The conditions of all designs in a file or a folder, in the order of the files' names.

    A condition has the name of its feature with `__` for `-`. Floats that are not finite, which
    mean none, are `UNKNOWN`. Beside the features there is `mask` bool [designs, N], true for the
    tokens that are designed; the padding is zero.

    Raises:
        ValueError: there is no such file, or one lacks what every design has, or has other features
            than the first.
    """
    root = Path(path).expanduser()
    files = sorted(root.glob("*.safetensors")) if root.is_dir() else [root]
    if not files or not files[0].is_file():
        raise ValueError(
            f"there are no designs in {path}: give a .safetensors file of prepared features, or a folder of such"
        )
    found = [_read(file) for file in files]
    for file, one in zip(files, found, strict=True):
        if odd := one.keys() ^ found[0].keys():
            raise ValueError(
                f"{file} and {files[0]} differ in {sorted(odd)[0]}: prepare all designs in the same way, or give "
                f"them apart"
            )
    tokens = max(one["mask"].shape[1] for one in found)
    return {name: torch.cat([_padded(name, one[name], tokens) for one in found]) for name in found[0]}


def features(cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The features of conditions as the pipeline's models take them."""
    known = {name.replace("__", "-"): value for name, value in cond.items() if name != "mask"}
    return {
        name: torch.where(value.abs() >= UNKNOWN, torch.nan, value) if value.is_floating_point() else value
        for name, value in known.items()
    }


def latent_mask(cond: Mapping[str, Tensor]) -> Tensor:
    """The tokens that are designed with all their atoms, bool [B, N]."""
    return cond["mask"] & cond["supports_local_latent"]


def _read(file: Path) -> dict[str, Tensor]:
    read = {name: value for name, value in read_tensors(file).items() if name not in UNUSED}
    if missing := [name for name in NEEDED if name not in read]:
        raise ValueError(f"{file} holds no {missing[0]}: save the features that rfd4-proteina-prep makes")
    num, tokens = read["padding_mask"].shape[:1], read["padding_mask"].shape[-1:]
    for name, value in read.items():
        if "__" in name or not name.replace("-", "__").isidentifier() or value.shape[:1] != num:
            raise ValueError(
                f"{file} holds {name} {list(value.shape)}: it should hold features of {num[0]} designs alone"
            )
        if name in NEEDED and value.shape != num + tokens or name in MASKS and value.dtype != torch.bool:
            raise ValueError(
                f"{file} holds {name} as {str(value.dtype).removeprefix('torch.')} {list(value.shape)}: save the "
                f"features as rfd4-proteina-prep makes them"
            )
    if GROUPS in read:
        read[RANKS] = torch.stack([_ranks(row) for row in read[GROUPS]])
    made = {name.replace("-", "__"): _finite(value) for name, value in read.items()}
    made["mask"] = made["padding_mask"] & ~made["is_in_context_conditioning"]
    if not made["mask"].any(1).all():
        raise ValueError(f"{file} leaves nothing to design: all its tokens are given")
    return made


def _finite(value: Tensor) -> Tensor:
    return value.float().nan_to_num(UNKNOWN, UNKNOWN, UNKNOWN) if value.is_floating_point() else value


def _ranks(groups: Tensor) -> Tensor:
    """The groups of a design's atoms counted from 0, -1 for none; the pipeline shuffles them."""
    ranks, given = groups.float(), groups != -1
    ranks[given] = torch.unique(groups[given], return_inverse=True)[1].float()
    return ranks


def _padded(name: str, value: Tensor, tokens: int) -> Tensor:
    """A condition [n, ...] with zeros up to so many tokens."""
    more = tokens - value.shape[1] if value.ndim > 1 else 0
    rest = [0, 0] * (value.ndim - (3 if name in PAIRS else 2))
    return F.pad(value, [*rest, *([0, more] * (2 if name in PAIRS else 1))]) if more else value
