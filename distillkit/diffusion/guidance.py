"""Classifier-free guidance in one convention: `D_0 + kappa (D_c - D_0)`.

The guidance scale kappa = 1 means no guidance, 0 the unconditional model; negative values repel.
Published scales convert as: diffusers, DMD2 and SD `guidance_scale = kappa`; Self-Forcing and other
`w` forms `kappa = 1 + w`. Guidance is linear, so guiding x_0 equals guiding eps, v or the score at
the same (x_t, t).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.process import expand


def guided(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Cond, null: Cond, kappa: float | Tensor = 1.0) -> Tensor:
    """The guided denoised sample; both passes run in one batch (arXiv 2207.12598).

    kappa is one number, or a tensor [B] with one for each sample. The number 1 calls the network
    once with `cond`, the number 0 once with `null`, with the bits of an unguided call. The values
    of a tensor are not inspected: it always takes both passes.
    """
    number = not isinstance(kappa, Tensor)
    if not cond or (number and kappa == 1):
        return denoiser(x_t, t, cond)
    if number and kappa == 0:
        return denoiser(x_t, t, null)
    t = torch.as_tensor(t, device=x_t.device, dtype=torch.promote_types(torch.float32, x_t.dtype)).expand(x_t.shape[0])
    both = {key: torch.cat([cond[key], null[key]]) for key in cond}
    with_cond, without = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
    if not number:
        kappa = expand(kappa.to(with_cond), with_cond)
    return without + kappa * (with_cond - without)


def null_condition(cond: Cond, classes: dict[str, int], network: Any = None) -> Cond:
    """The unconditional counterpart of `cond`.

    Args:
        cond: conditions.
        classes: numbers of classes by name; each class is replaced by its null index, that number.
        network: if it has a `null` (see `networks.base.WithNull`), this replaces the others.
    """
    known = {**cond, **{name: torch.full_like(cond[name], num) for name, num in classes.items()}}
    return network.null(known) if hasattr(network, "null") else known


def drop_condition(cond: Cond, null: Cond, drop: Tensor) -> Cond:
    """Returns `cond` with the null condition in the rows where `drop` [B] (bool) is true."""
    return {
        key: torch.where(drop.reshape(-1, *[1] * (value.ndim - 1)), null[key], value) for key, value in cond.items()
    }
